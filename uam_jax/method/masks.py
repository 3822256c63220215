"""Where an edit may change the latent: threshold, dilate, blend; everything per example.

Masks are float arrays in [0, 1] over a latent's pixels and channels. E (edit) is 1 where the
target may differ, P = 1 - E (preserve) is 1 where the auxiliary branch's clean estimate is kept.

Source: Algorithm 1 and §3.3.2 of arXiv 2411.19652; the rule "auto" is ours.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.types import Latent, Scalar, tree_of_arrays

Rule = Literal["released", "algorithm1", "auto"]
"""The adaptive masks: two readings of the paper (`edit_mask`), or the image itself (`auto_mask`)."""


@tree_of_arrays(static=("rule", "radius", "source_line"))
@dataclass(frozen=True)
class MaskRule:
    """How an edit finds its masks and what it does with them.

    Attributes:
      rule: which adaptive mask.
      quantile: q at the last step, see `quantiles`.
      radius: of the dilation, in latent pixels.
      source_line: blend the replayed source too: x0_src <- (1-P)·x0_u + P·x0_src.
    """

    rule: Rule = "released"
    quantile: Scalar = 0.5
    radius: int = 1
    source_line: bool = True


def quantiles(quantile: float | Float[Array, ""], steps: int) -> Float[Array, "{steps}"]:
    """q_i of every step: it grows from 0 at the first denoising step to `quantile` at the last."""
    return jnp.linspace(0.0, quantile, steps)


def threshold(difference: Latent, quantile: Float[Array, ""]) -> Float[Array, "b 1 1 1"]:
    """λ: a quantile of |Δ| over the pixels and channels of each example, linearly interpolated."""
    magnitude = jnp.abs(difference.astype(jnp.float32)).reshape(difference.shape[0], -1)
    return jnp.quantile(magnitude, quantile, axis=1)[:, None, None, None]


def dilate(mask: Latent, radius: int) -> Latent:
    """Each pixel's maximum over a (2r+1)² window, per channel; beyond the border there is nothing."""
    side = 2 * radius + 1
    window, strides = (1, side, side, 1), (1, 1, 1, 1)
    return jax.lax.reduce_window(mask, -jnp.inf, jax.lax.max, window, strides, "SAME")


def edit_mask(
    difference: Latent,
    quantile: Float[Array, ""],
    *,
    rule: Literal["released", "algorithm1"],
    radius: int,
) -> Latent:
    """E, per channel, from Δ = x0_src - x0_tgt.

    Args:
      difference: Δ, of the clean estimates before they are blended.
      quantile: this step's q_i.
      rule: "released", what the authors' code does, E = dilate(|Δ| > 2λ): a soft threshold by λ
        and then a second comparison with λ. Or "algorithm1" of the paper, P = dilate(|Δ| ≤ λ): the
        preserved region is dilated. The paper leaves λ and the channels open there; that λ is the
        quantile (no factor 2) and that channels are apart is our reading.
      radius: of the dilation, in latent pixels.
    """
    magnitude, level = jnp.abs(difference), threshold(difference, quantile)
    if rule == "released":
        return dilate((magnitude > 2 * level).astype(difference.dtype), radius)
    return 1 - dilate((magnitude <= level).astype(difference.dtype), radius)


CEILING = 0.5
"""`auto_mask` leaves every pixel free whose clean estimates differ by more than this, whatever the others do.

In units of the latent, whose standard deviation is about 1.
"""


def auto_mask(change: Float[Array, "b h w 1"], radius: int) -> Float[Array, "b h w 1"]:
    """E of all channels, from how much the branches have differed so far, without a threshold to choose.

    What differs because the text says so does so in step after step, and in several channels of
    neighbouring pixels: `change` is a mean over steps and channels, smoothed here, and cut in two by
    Otsu's criterion, image by image. The cut is `CEILING` at most: where the text changes two parts,
    one of them more than the other, a cut between the two would keep the second as it was.

    Args:
      change: mean |Δ| over the steps so far and the channels.
      radius: of the dilation, in latent pixels.
    """
    even = smooth(change)
    level, _ = otsu(even.reshape(change.shape[0], -1))
    cut = jnp.minimum(level, CEILING)[:, None, None, None]
    return dilate((even > cut).astype(change.dtype), radius)


def smooth(x: Latent) -> Latent:
    """Binomial weights 1 2 1 along both sides; the border's pixels are repeated."""
    for axis in (1, 2):
        padding = [(int(axis == side),) * 2 for side in range(4)]
        padded = jnp.pad(x, padding, mode="edge")
        count = x.shape[axis]
        first, middle, last = (
            jax.lax.slice_in_dim(padded, start, start + count, axis=axis) for start in range(3)
        )
        x = (first + 2 * middle + last) / 4
    return x


def otsu(values: Float[Array, "b n"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """The cut of each row that leaves the least variance within the two classes, over all cuts.

    Returns:
      The cuts, halfway between two values, and what share of the variance lies between the classes:
      towards 1 where there are two clear classes, 0 where all values are equal (nothing is above the cut).

    Source: Otsu 1979, "A Threshold Selection Method from Gray-Level Histograms", without histogram.
    """
    ordered = jnp.sort(values.astype(jnp.float32), axis=1)
    count = values.shape[1]
    low = jnp.arange(1, count) / count
    sums = jnp.cumsum(ordered - ordered.mean(axis=1, keepdims=True), axis=1)[:, :-1] / count
    between = sums**2 / (low * (1 - low))
    best = jnp.argmax(between, axis=1)[:, None]
    cut = (jnp.take_along_axis(ordered, best, 1) + jnp.take_along_axis(ordered, best + 1, 1)) / 2
    variance = jnp.maximum(ordered.var(axis=1), jnp.finfo(jnp.float32).tiny)
    return cut[:, 0], jnp.minimum(jnp.take_along_axis(between, best, 1)[:, 0] / variance, 1.0)


def blend(preserve: Float[Array, "b h w #c"], kept: Latent, changed: Latent) -> Latent:
    """P·kept + (1-P)·changed."""
    return preserve * kept + (1 - preserve) * changed
