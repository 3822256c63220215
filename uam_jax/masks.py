"""Where an edit may change the latent: threshold, dilate, blend; everything per example.

Masks are float arrays in [0, 1] over a latent's pixels and channels. E (edit) is 1 where the
target may differ, P = 1 - E (preserve) is 1 where the auxiliary branch's clean estimate is kept.

Source: Algorithm 1 and §3.3.2 of arXiv 2411.19652.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.types import Latent

Rule = Literal["released", "algorithm1"]


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


def edit_mask(difference: Latent, quantile: Float[Array, ""], *, rule: Rule, radius: int) -> Latent:
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


def blend(preserve: Float[Array, "b h w #c"], kept: Latent, changed: Latent) -> Latent:
    """P·kept + (1-P)·changed."""
    return preserve * kept + (1 - preserve) * changed
