"""Keeps the original outside the edit, at full resolution: the step between the model and the file.

A model works at its own size and through its VAE, which changes every pixel a little. This module takes from the
model only the pixels that may change; all others stay those of the original, bit by bit.
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
    """Computes the share of the edited picture at each pixel of the original, in [0, 1].

    `free` is smoothed and thresholded, which gives a region. The distance to that region decides the share: it is 1 up
    to `grow`, exactly 0 from `grow + feather` on, and a smooth step in between. Smoothing removes specks, but never
    everything: each part of `within` (or the picture, without `within`) in which something may change keeps some of it.

    The default numbers have the best overlap with the exact masks of rendered edits; 4 pixels are half a pixel of the
    latent.

    Args:
      free: the freedom of each pixel to change, in [0, 1], at the model's resolution.
      size: (height, width) of the original.
      threshold: the least smoothed freedom of an edited pixel.
      smooth: standard deviation of the smoothing, in pixels of `free`.
      grow: width that is added around the region, in pixels of `free`.
      feather: width of the seam around it, in pixels of `free`.
      within: the user's own mask, at the size of the original: nothing changes where it is 0, and the seam runs inside
        it.

    Returns:
      The share at the size of the original.
    """
    allowed = None if within is None else resize(within, free.shape, linear=True)
    region = _region(free, allowed, threshold, smooth)
    if not region.any():
        return np.zeros(size, np.float32)
    distance = _distance(~region)
    if size[0] >= free.shape[0] and size[1] >= free.shape[1]:
        # The distance is scaled rather than the mask: it is smooth, so the seam is as fine as the original.
        mask = _ramp(grow + feather - resize(distance, size, linear=True), feather)
    else:  # a mean of distances would be the distance of a region's surroundings
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
    """Finds where the smoothed freedom, relative to the user's smoothed mask, is above the threshold."""

    def blurred(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, smooth) if smooth else values

    even, inside = blurred(free), np.ones(free.shape, bool)
    if allowed is not None:
        # A forbidden neighbour must not lower the freedom of a pixel, hence the division.
        inside = allowed > 0
        even = np.where(inside, even / np.where(inside, blurred(allowed), 1), even)
    region = even > threshold
    parts = _parts(inside)
    some, left, peaks = (_peaks(values, parts) for values in (free, region, even))
    # After smoothing, the level of half the peak is about at the old border of a spot.
    level = np.where((some > 0) & (left == 0), peaks / 2, np.inf)
    return region | (inside & (even > level[parts]))


def _inward_seam(inside: Bool[np.ndarray, "h w"], width: float) -> Float[np.ndarray, "h w"]:
    """A mask that is 0 outside and rises inwards to 1 over `width`, or in a narrow part over half its own depth."""
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
    """Blends two pictures in [-1, 1]: `edited` where the mask is 1, `original` (bit by bit) where it is 0."""
    result = original.astype(np.float32)
    for top in range(
        0, len(mask), 256
    ):  # in strips, because copies of a large picture would fill the memory
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
    """Pastes the edited region into the original: the setting `preserve = "pixels"`.

    Args:
      original: the picture in [-1, 1], at its own size.
      edited: the model's picture in [-1, 1], at the model's size.
      free: the freedom of each pixel to change, in [0, 1], at the model's size.
      within: the user's mask in [0, 1] at the size of the original, if there is one.
      **seam: `threshold`, `smooth`, `grow` and `feather` of `soft_mask`.

    Returns:
      The result at the size of the original, and the mask with which it was blended.
    """
    size = (original.shape[0], original.shape[1])
    mask = soft_mask(free, size, within=within, **seam)
    return composite(original, resize(edited, size), mask), mask


def _parts(inside: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Numbers the connected parts from 1, where a common corner connects; 0 outside."""
    found: Any = label(inside, np.ones((3, 3)))
    return found[0]


def _peaks(values: np.ndarray, parts: np.ndarray) -> Float[np.ndarray, "parts"]:
    """The largest value of each part, by the number of the part; values must not be negative."""
    found = np.zeros(parts.max() + 1, np.float32)
    np.maximum.at(found, parts.ravel(), values.ravel().astype(np.float32, copy=False))
    return found


def _distance(inside: np.ndarray) -> np.ndarray:
    """The distance of each pixel inside to the nearest pixel outside."""
    return np.asarray(distance_transform_edt(inside), np.float32)


def _ramp(distance: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """A smooth step: 0 up to distance 0, and 1 from `width` on."""
    some = np.min(width) > 1e-3
    x = np.clip(distance / width, 0, 1) if some else (distance >= 0).astype(np.float32)
    return x * x * (3 - 2 * x)
