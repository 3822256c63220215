"""Measures of pictures, masks and scores. Pure NumPy in float64.

Pictures are (b, h, w, 3) in [-1, 1]; errors and PSNR are of values in [0, 1], so the peak is 1. A region is
(b, h, w), True inside. A measure over no pixel is nan.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy.ndimage import gaussian_filter

Pictures = Num[np.ndarray, "b h w 3"]
Region = Bool[np.ndarray, "b h w"]
Each = Float[np.ndarray, "b"]

EQUAL = 100.0
"""The PSNR in dB of equal pictures, and the highest."""


def mse(a: Pictures, b: Pictures, where: Region | None = None) -> Each:
    """Mean squared error of each picture over a region, or over all pixels."""
    error = np.square(np.asarray(a, np.float64) - b).mean(axis=-1) / 4
    return _mean(error, where)


def psnr(a: Pictures, b: Pictures, where: Region | None = None) -> Each:
    """Peak signal-to-noise ratio of each picture in dB, at most `EQUAL`."""
    return decibels(mse(a, b, where))


def decibels(error: Each) -> Each:
    """PSNR in dB of a mean squared error in [0, 1], at most `EQUAL`."""
    return -10 * np.log10(np.maximum(error, 10 ** (-EQUAL / 10)))


def ssim(a: Pictures, b: Pictures, where: Region | None = None) -> Each:
    """Structural similarity with a Gaussian window of σ 1.5 and 11 taps, k 0.01 and 0.03, and mirrored borders.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity".
    """
    x, y = ((np.asarray(picture, np.float64) + 1) / 2 for picture in (a, b))

    def blur(z: np.ndarray) -> np.ndarray:
        return gaussian_filter(z, (0, 1.5, 1.5, 0), mode="mirror", radius=(0, 5, 5, 0))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return _mean(similarity.mean(axis=-1), where)


def masked(pictures: Pictures, where: Region) -> Pictures:
    """Pictures that are black (0 in [0, 1]) outside a region, as PIE-Bench's background metrics compare them."""
    return np.where(where[..., None], pictures, -1.0)


def overlap(a: Region, b: Region) -> Each:
    """Intersection over union of two regions; nan where both are empty."""
    union = (a | b).sum(axis=(1, 2)).astype(np.float64)
    both = (a & b).sum(axis=(1, 2))
    return np.divide(both, union, out=np.full(len(a), np.nan), where=union > 0)


def auroc(scores: Each, positive: Bool[np.ndarray, "b"]) -> float:
    """Probability that a positive scores higher than a negative; a tie counts half; nan if either is missing."""
    high, low = scores[positive], scores[~positive]
    if not (len(high) and len(low)):
        return float("nan")
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")
    return float(below.mean() / (2 * len(low)))


def bootstrap(
    values: Each,
    statistic: Callable[..., np.ndarray] = np.mean,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A statistic of the finite values, and its 95 % interval by the percentile bootstrap.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", §13.3.
    """
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return (float("nan"),) * 3
    rows = np.random.default_rng(seed).integers(0, len(finite), (draws, len(finite)))
    low, high = np.percentile(statistic(finite[rows], axis=1), [2.5, 97.5])
    return float(statistic(finite, axis=0)), float(low), float(high)


def _mean(values: Float[np.ndarray, "b h w"], where: Region | None) -> Each:
    if where is None:
        return values.mean(axis=(1, 2))
    count = where.sum(axis=(1, 2)).astype(np.float64)
    total = (values * where).sum(axis=(1, 2))
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
