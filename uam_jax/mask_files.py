"""Mask files to arrays, however their tools say yes and no."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from uam_jax.errors import InputError
from uam_jax.images import LUMA, by, read_image


def read_mask(
    path: str | Path, size: tuple[int, int], content: bytes | None = None
) -> Float[np.ndarray, "h w"]:
    """Reads a mask: white (1) may change, black or transparent (0) must not; 0/1 labels count as 0/255.

    Raises:
      InputError: as `read_image`, or the mask's size isn't `size` (height, width), or it's all black.
    """
    picture = read_image(path, content)
    if picture.size != size:
        raise InputError(
            f"{path}: the mask has {by(picture.size)} pixels, its picture {by(size)}: "
            "both must have the same size"
        )
    # Rounded, so that black is exactly 0.
    white = np.rint((picture.pixels @ LUMA + 1) * np.float32(picture.levels / 2))
    if picture.alpha is not None:
        white *= picture.alpha / np.float32(255)
    if not white.any():
        raise InputError(f"{path}: the mask is all black: paint white what may change")
    return white / np.float32(picture.levels if white.max() > 1 else 1)
