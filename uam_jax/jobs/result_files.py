"""The files of an edited picture: result, mask and page's copies, for one picture and for a data set alike."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float

from uam_jax.io.encoding import (
    encode_error,
    encode_image,
    encode_mask,
    encode_preview,
    file_channel_max,
    refuse_nonfinite,
)
from uam_jax.io.focus import Crop
from uam_jax.io.images import Picture, quietly, resize

if TYPE_CHECKING:
    from uam_jax.engine.delivery import EditResult

Name = TypeVar("Name", str, Path)
"""Names of files: names in a job's folder, or paths."""


@dataclass(frozen=True)
class SourcePicture:
    """A picture at its own size, as it is given to an edit.

    Attributes:
      name: names it in messages.
      picture: decoded.
      user_mask: at the picture's size, if there is one.
      crop: the part that is edited.
    """

    name: str | Path
    picture: Picture
    user_mask: Float[np.ndarray, "H W"] | None
    crop: Crop


def original_files(
    source: SourcePicture, error_map: Float[np.ndarray, "h w"], *, preview: Name, error: Name
) -> dict[Name, bytes]:
    """The page's files that all results of a picture share: a small copy of it, and the reconstruction's error.

    Raises:
      InputError: the network gave numbers that are not finite.
    """
    picture, crop = source.picture, source.crop
    refuse_nonfinite(source.name, error_map)
    if crop != Crop.whole(picture.size):
        error_map = crop.paste(
            np.zeros(picture.size, np.float32), resize(error_map, crop.size, linear=True)
        )
    with quietly():
        return {preview: encode_preview(picture.pixels, picture), error: encode_error(error_map)}


def result_files(
    result: "EditResult",
    target: int,
    source: SourcePicture,
    *,
    output: Name,
    mask: Name | None = None,
    shown: Name | None = None,
) -> tuple[dict[Name, bytes], dict[str, Any]]:
    """The files of one result, and what its row says of it.

    Args:
      result: of the edit, on the host (`delivery.fetch`).
      target: the result's number in it.
      source: the original.
      output: names the result's file.
      mask: names the mask's file; None where none is wanted.
      shown: names a copy that browsers can show; None where none is needed.

    Returns:
      The files by their names; and the columns `confidence`, `review`, `mask_share`, `size`, `crop` and `figures`
      of a row.

    Raises:
      InputError: the network gave numbers that are not finite.
    """
    picture = source.picture
    refuse_nonfinite(source.name, np.asarray(result.images[target]))
    delivery = result.deliver(
        target,
        picture.pixels,
        within=source.user_mask,
        crop=source.crop,
        channel_max=file_channel_max(output, picture),
        grey=picture.grey,
    )
    with quietly():  # the user has been warned of the format's limits when the work was planned
        files = {output: encode_image(output, delivery.pixels, picture)}
        if mask is not None:
            files[mask] = encode_mask(delivery.mask)
        if shown is not None:
            files[shown] = encode_preview(delivery.pixels, picture)
    height, width = picture.size
    return files, {
        "confidence": round(delivery.confidence, 4),
        "review": delivery.review,
        "mask_share": round(delivery.mask_share, 5),
        "size": f"{width}x{height}",
        "crop": None if delivery.crop is None else str(delivery.crop),
        "figures": {name: _rounded(value) for name, value in delivery.figures.items()} or None,
    }


def _rounded(value: float) -> float | None:
    """Four digits; None for what is not finite, which JSON cannot hold."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
