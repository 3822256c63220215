"""Validates and normalises the arguments of `Editor`."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from uam_jax.engine.inversion import Inversion
from uam_jax.errors import InputError
from uam_jax.method.config import EditConfig
from uam_jax.types import Condition, ImageLike, Latent, LatentLike, MaskLike

ROUNDING = 1e-3
"""How far beyond [-1, 1] a picture's values may lie: 1 in half precision may be this much more."""


def per_image(condition: Condition, count: int) -> Condition:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), condition)


def listed(inversions: Any) -> Sequence[Inversion]:
    """No inversion, one or several, as a list."""
    found = [inversions] if isinstance(inversions, Inversion) else list(inversions or ())
    for each in found:
        if not isinstance(each, Inversion):
            raise InputError(
                f"inversions holds a {type(each).__name__}: give what Editor.invert returned"
            )
    return found


def checked_number(name: str, given: Any) -> float:
    """A finite number as a float."""
    try:
        found = float(given)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{name} is {given!r}: it must be a finite number")
    return found


def checked_images(
    images: ImageLike, *, multiple: int, model: str, values: bool = True
) -> ImageLike:
    """Pictures as they are worked on: float32, and on the host if their values were looked at.

    Args:
      images: as given.
      multiple: of which sides must be multiples.
      model: to be named.
      values: look at the values, which brings those of a device to the host.

    Raises:
      InputError: another shape or type, values that are not finite or beyond [-1, 1].
    """
    if np.ndim(images) != 4 or np.shape(images)[-1] != 3:
        raise InputError(f"images have shape {np.shape(images)}: (b, h, w, 3) is needed")
    if any(side % multiple or not side for side in np.shape(images)[1:3]):
        height, width = np.shape(images)[1:3]
        raise InputError(
            f"images are {height}x{width}: {model} takes multiples of {multiple} pixels"
        )
    needed = "floating-point values in [-1, 1] are needed; from 0 to 255, images / 127.5 - 1"
    if not values:
        _refuse_integers("images", images, needed)
        return jnp.asarray(images, jnp.float32)
    found = _finite("images", images, needed)
    low, high = found.min(), found.max()
    if low < -1 - ROUNDING or high > 1 + ROUNDING:
        raise InputError(
            f"images have values from {low:g} to {high:g}: they must lie in [-1, 1]; of values from 0 to 255 "
            "that is images / 127.5 - 1"
        )
    return found


def checked_latents(
    latents: LatentLike, *, channels: int, multiple: int = 1, finite: bool = True
) -> Latent:
    """Scaled latents as they are worked on.

    Args:
      latents: as given.
      channels: that the model has.
      multiple: of which sides must be multiples.
      finite: look at the values too, which waits until they are computed.

    Raises:
      InputError: another shape or type, or values that are not finite.
    """
    shape = np.shape(latents)
    if len(shape) != 4 or shape[-1] != channels or 0 in shape:
        raise InputError(
            f"latents have shape {shape}: (b, h, w, {channels}) is needed, as Editor.encode returns them"
        )
    if any(side % multiple for side in shape[1:3]):
        raise InputError(
            f"latents are {shape[1]}x{shape[2]}: the model takes multiples of {multiple}"
        )
    needed = "floating-point values are needed, as Editor.encode returns them"
    if finite:
        _finite("latents", latents, needed)
    else:
        _refuse_integers("latents", latents, needed)
    return jnp.asarray(latents, jnp.float32)


def _refuse_integers(name: str, given: Any, needed: str) -> None:
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise InputError(f"{name} are {given.dtype}: {needed}")


def _finite(name: str, given: Any, needed: str) -> np.ndarray:
    """The values, where they are floating-point numbers and finite in every example."""
    _refuse_integers(name, given, needed)
    if not len(given):
        raise InputError(f"there are no {name}")
    values = np.asarray(given, np.float32)
    bad = [i for i, each in enumerate(values) if not np.isfinite(each).all()]
    if bad:
        raise InputError(f"{name}[{bad[0]}] has values that are not finite (NaN or infinite)")
    return values


def latent_masks(
    masks: MaskLike, shape: Sequence[int], factor: int
) -> Float[np.ndarray, "b h w 1"]:
    """Pictures' masks as shares of latent pixels.

    Args:
      masks: as given.
      shape: of the pictures' latents.
      factor: pixels to a latent pixel, along a side.

    Raises:
      InputError: not the pictures' shape, or values beyond [0, 1].
    """
    b, h, w, _ = shape
    needed = b, h * factor, w * factor
    if np.shape(masks) != needed:
        remedy = "; leave the last axis out: masks[..., 0]"
        raise InputError(
            f"masks have shape {np.shape(masks)}: {needed} is needed, as the images have"
            + (remedy if np.shape(masks) == (*needed, 1) else "")
        )
    values = np.asarray(masks)
    if not (values.dtype == bool or jnp.issubdtype(values.dtype, jnp.number)):
        raise InputError(f"masks are {values.dtype}: numbers in [0, 1] or bool are needed")
    values = values.astype(np.float32)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(
            f"masks have values outside [0, 1], from {values.min():g} to {values.max():g}: 1 may change, "
            "0 may not; of values from 0 to 255 that is masks / 255"
        )
    return values.reshape(b, h, factor, w, factor).mean(axis=(2, 4))[..., None]


def checked_regions(
    regions: Any, shape: Sequence[int]
) -> Float[np.ndarray, "blocks images rows columns"]:
    """Uniformity of every block, image and pixel, for latents of a shape."""
    regions = np.asarray(regions, np.float32)
    b, h, w, _ = shape
    if (
        regions.ndim != 4
        or regions.shape[1] not in (1, b)
        or regions.shape[2:] not in ((h, w), (1, 1))
    ):
        raise InputError(
            f"regions have shape {regions.shape}: (blocks, {b}, {h}, {w}) is needed, or 1 in place of "
            "blocks, of images, or of both sides"
        )
    if not ((regions >= 0) & (regions <= 1)).all():
        raise InputError("regions have values outside [0, 1]: 0 is the text's maps, 1 uniform ones")
    return np.broadcast_to(regions, (*regions.shape[:2], h, w))


def inversion_regions(
    allowed: Float[np.ndarray, "b h w 1"] | None, config: EditConfig
) -> Float[np.ndarray, "1 b h w"] | None:
    """Where the source's inversion is uniform, by `config.inversion.outside_uniformity` and the user's mask."""
    outside = config.inversion.outside_uniformity
    if not outside:
        return None
    if allowed is None:
        raise InputError(
            "inversion.outside_uniformity needs to know the region before the edit: give a mask"
        )
    inside = allowed[None, ..., 0]
    return inside * config.inversion.uniformity + (1 - inside) * outside
