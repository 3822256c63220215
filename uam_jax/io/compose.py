"""Keeps the original outside the edit, at full resolution: the step between the model and the file.

A model works at its own size and through its VAE, which changes every pixel a little. Here only the
pixels that were free to change are taken from it; all others stay those of the original, bit by bit.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

from uam_jax.io.images import resize


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
    feather: 1 up to `grow`, 0 exactly from `grow + feather` on, smooth in between. Specks beside it are
    smoothed away, but where something was free something is left: in every part of `within`, or if there
    is none in the picture.

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
    allowed = None if within is None else resize(within, free.shape, linear=True)
    region = _region(free, allowed, threshold, smooth)
    if not region.any():
        return np.zeros(size, np.float32)
    distance = _distance(~region)
    if size[0] >= free.shape[0] and size[1] >= free.shape[1]:
        # The distance is scaled rather than the mask: it is smooth, so the seam is as fine as the original.
        mask = _ramp(grow + feather - resize(distance, size, linear=True), feather)
    else:  # a mean distance would be that of a region's surroundings
        mask = resize(_ramp(grow + feather - distance, feather), size, linear=True)
    if within is not None:
        mask *= within
        if not within.all():  # along the border of the user's mask the seam can only run inwards
            mask *= _inward_seam(within > 0, feather * float(np.sqrt(within.size / free.size)))
    return mask.astype(np.float32)


def _region(
    free: Float[np.ndarray, "h w"],
    allowed: Float[np.ndarray, "h w"] | None,
    threshold: float,
    smooth: float,
) -> Bool[np.ndarray, "h w"]:
    """Where the smoothed freedom is above the threshold, as a share of what the user allowed there."""

    def blurred(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, smooth) if smooth else values

    even, inside = blurred(free), np.ones(free.shape, bool)
    if allowed is not None:
        # That the user has forbidden what lies beside a pixel says nothing of the pixel.
        inside = allowed > 0
        even = np.where(inside, even / np.where(inside, blurred(allowed), 1), even)
    region = even > threshold
    parts = _parts(inside)
    some, left, peaks = (_peaks(values, parts) for values in (free, region, even))
    # Smoothed, a spot is at half of its peak about where it was before.
    level = np.where((some > 0) & (left == 0), peaks / 2, np.inf)
    return region | (inside & (even > level[parts]))


def _inward_seam(inside: Bool[np.ndarray, "h w"], width: float) -> Float[np.ndarray, "h w"]:
    """0 outside, rising inwards to 1: over `width`, or in a narrow part over half of the way to its middle."""
    distance = _distance(inside)
    parts = _parts(inside)
    widths = np.minimum(_peaks(distance, parts) / 2, np.float32(width))
    narrow = (widths[1:] < width).any()
    return _ramp(distance, np.append(width, widths[1:])[parts] if narrow else width)


def composite(
    original: Float[np.ndarray, "h w 3"],
    edited: Float[np.ndarray, "h w 3"],
    mask: Float[np.ndarray, "h w"],
) -> Float[np.ndarray, "h w 3"]:
    """`edited` where the mask is 1, `original` (unchanged to the last bit) where it is 0."""
    result = original.astype(np.float32)
    for top in range(0, len(mask), 256):  # a large picture's copies would fill the memory
        share, kept, new = (each[top : top + 256] for each in (mask[..., None], original, edited))
        result[top : top + 256] = np.where(share > 0, kept + share * (new - kept), kept)
    return result


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


def _parts(inside: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Numbers from 1 for the parts that hang together, if only by a corner; 0 outside."""
    found: Any = label(inside, np.ones((3, 3)))
    return found[0]


def _peaks(values: np.ndarray, parts: np.ndarray) -> Float[np.ndarray, "parts"]:
    """The largest value of each part, by the part's number; values are not negative."""
    found = np.zeros(parts.max() + 1, np.float32)
    np.maximum.at(found, parts.ravel(), values.ravel().astype(np.float32, copy=False))
    return found


def _distance(inside: np.ndarray) -> np.ndarray:
    """How far each pixel inside is from the nearest one that isn't."""
    return np.asarray(distance_transform_edt(inside), np.float32)


def _ramp(distance: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """0 up to distance 0, 1 from `width` on, between them a smooth step."""
    some = np.min(width) > 1e-3
    x = np.clip(distance / width, 0, 1) if some else (distance >= 0).astype(np.float32)
    return x * x * (3 - 2 * x)
