"""Where in a picture the network attends to single words, from the inversion of the picture.

Source: Tang et al., What the DAAM, ACL 2023 (arXiv 2210.04885), §2: cross-attention maps, brought to one size and added
up over layers, heads and steps.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from uam_jax.method.samplers import Sampler
from uam_jax.runtime.loops import scan
from uam_jax.types import AttentionSite, Latent, Predictor, Step, Taps

HeatMaps = Float[Array, "b words h w"]
"""Attention to each word at every pixel of the latent: the mean over layers, heads and steps."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WordHeat:
    """Cross-attention that taps, as "heat", its attention to each word, meaned over heads and at the latent's size.

    Attributes:
      size: height and width of the latent.
      words: 1 at the places of each word's tokens, 0 elsewhere.
    """

    size: tuple[int, int] = field(metadata={"static": True})
    words: Float[Array, "b words s"]

    def __call__(
        self, site: AttentionSite, x: Float[Array, "b n c"], context: Float[Array, "b s e"]
    ) -> tuple[Float[Array, "b n c"], Taps]:
        query, key, value = site.query(x), site.key(context), site.value(context)
        maps, factor = site.maps(query, key), 2**site.level
        out = jnp.einsum("bhns,bshd->bnhd", maps, value.astype(maps.dtype)).astype(query.dtype)
        mean = maps.mean(axis=1)
        heat = jnp.einsum("bns,bws->bwn", mean, self.words, precision=lax.Precision.HIGHEST)
        height, width = self.size
        heat = heat.reshape(*heat.shape[:2], -(-height // factor), -(-width // factor))
        for axis in (2, 3):
            heat = heat.repeat(factor, axis=axis)
        return site.project(out), {"heat": heat[..., :height, :width]}


def heat_maps(
    predict: Predictor,
    latent: Latent,
    steps: Step,
    *,
    sampler: Sampler,
    words: int,
    layers: int,
) -> HeatMaps:
    """Takes a clean latent up through `steps`, and returns the mean of what its predictor taps as "heat".

    The maps are added up on the way; none of a single step is kept.

    Args:
      predict: the predictor, with the rule `WordHeat`.
      latent: z0.
      steps: inverting steps, lowest noise first.
      sampler: the rule of a step.
      words: how many there are.
      layers: how many layers tap.
    """
    b, h, w, _ = latent.shape

    def advance(carried: tuple[Any, HeatMaps], step: Step) -> tuple[Any, None]:
        state, total = carried
        prediction = predict(sampler.query(state), step)
        state = sampler.advance(state, prediction, step)
        return (state, total + prediction.taps["heat"]), None

    empty = jnp.zeros_like(latent, shape=(b, words, h, w))
    (_, total), _ = scan(advance, (sampler.start(latent), empty), steps)
    return total / (layers * steps.index.shape[0])
