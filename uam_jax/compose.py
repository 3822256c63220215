"""Keeps the original outside the edit, at full resolution: the step between the model and the file.

A model works at its own size and through its VAE, which changes every pixel a little. Here only the
pixels that were free to change are taken from it; all others stay those of the original, bit by bit.
"""

import numpy as np
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt, gaussian_filter

from uam_jax.images import resize


def soft_mask(
    free: Float[np.ndarray, "h w"],
    size: tuple[int, int],
    *,
    threshold: float = 0.3,
    smooth: float = 4.0,
    grow: float = 0.0,
    feather: float = 4.0,
    within: Float[np.ndarray, "H W"] | None = None,
) -> Float[np.ndarray, "H W"]:
    """How much of the edited picture to take at each pixel of the original.

    The numbers are those with the best overlap with the exact masks of rendered edits; 4 pixels are half
    a pixel of the latent.

    `free` is smoothed and thresholded to a region. From the distance to that region follow growth and
    feather: 1 up to `grow`, 0 exactly from `grow + feather` on, smooth in between.

    Args:
      free: how free each pixel was to change, in [0, 1], at the model's resolution.
      size: (height, width) of the original.
      threshold: the least smoothed freedom that counts as edited.
      smooth: standard deviation of the smoothing, in pixels of `free`, like the next two.
      grow: width that is added around the region.
      feather: width of the seam around that.
      within: the user's own limit, at the original's size: nothing changes where it is 0, and the seam
        runs inside it.
    """
    region = (gaussian_filter(free, smooth) if smooth else free) > threshold
    if not region.any():
        return np.zeros(size, np.float32)
    # The distance is scaled rather than the mask: it is smooth, so the seam is as fine as the original.
    distance = resize(_distance(~region), size, linear=True)
    mask = _ramp(grow + feather - distance, feather)
    if within is not None:
        mask *= within
        if not within.all():  # along the border of the user's mask the seam can only run inwards
            scale = float(np.sqrt(within.size / free.size))
            mask *= _ramp(_distance(within > 0), feather * scale)
    return mask.astype(np.float32)


def composite(
    original: Float[np.ndarray, "h w 3"],
    edited: Float[np.ndarray, "h w 3"],
    mask: Float[np.ndarray, "h w"],
) -> Float[np.ndarray, "h w 3"]:
    """`edited` where the mask is 1, `original` (unchanged to the last bit) where it is 0."""
    share = mask[..., None]
    return np.where(share > 0, original + share * (edited - original), original).astype(np.float32)


def keep_unedited(
    original: Float[np.ndarray, "H W 3"],
    edited: Float[np.ndarray, "h w 3"],
    free: Float[np.ndarray, "h w"],
    *,
    within: Float[np.ndarray, "H W"] | None = None,
    **seam: float,
) -> tuple[Float[np.ndarray, "H W 3"], Float[np.ndarray, "H W"]]:
    """The original with the edited region pasted in, and the mask that was used; `preserve = "pixels"`.

    Args:
      original: the picture as it was read, at its own size.
      edited: the model's picture, at the model's size.
      free: the edit's `masks` entry, at the model's size.
      within: the user's mask, if there is one, at the original's size.
      **seam: `threshold`, `smooth`, `grow`, `feather` of `soft_mask`.
    """
    size = (original.shape[0], original.shape[1])
    mask = soft_mask(free, size, within=within, **seam)
    return composite(original, resize(edited, size), mask), mask


def _distance(inside: np.ndarray) -> np.ndarray:
    """How far each pixel inside is from the nearest one that isn't."""
    return np.asarray(distance_transform_edt(inside), np.float32)


def _ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """0 up to distance 0, 1 from `width` on, between them a smooth step."""
    x = np.clip(distance / width, 0, 1) if width > 1e-3 else (distance >= 0).astype(np.float32)
    return x * x * (3 - 2 * x)
