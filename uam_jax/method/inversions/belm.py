"""BELM: inversion that is exact, by a sampler whose relation of three latents is the same in both directions.

The way down starts from the last two latents of the way up: both branches from the source's. So its first step is
given, and the network's evaluation there serves masks alone.

Source: Wang et al., BELM, NeurIPS 2024 (arXiv 2410.07273).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from uam_jax.method.inversions.method import InversionMethod
from uam_jax.method.inversions.way_up import size, whole_way
from uam_jax.method.samplers import Sampler
from uam_jax.types import Latent, Predictor, Step


@dataclass(frozen=True)
class BELMInversion(InversionMethod):
    """O-BELM's steps upwards, see `samplers.belm`; no further evaluations."""

    samplers: ClassVar[tuple[str, ...]] = ("belm",)

    def run(
        self,
        predict: Predictor,
        z0: Latent,
        steps: Step,
        *,
        sampler: Sampler,
        keep: Sequence[int],
    ) -> dict[str, Array]:
        """The sampler's steps upwards; "latents" and "bend" (steps, b).

        The bend of a step is the distance between the latent reached and the one that DDIM's step would reach, as root
        mean square over that of the latent below.
        """
        way, noise = whole_way(predict, z0, steps, sampler=sampler)
        step = jax.tree.map(lambda part: part[:, None, None, None, None], steps)
        clean = (way[:-1] - step.sigma * noise) / step.signal
        plain = step.signal_next * clean + step.sigma_next * noise
        bend = size(way[1:] - plain) / jnp.maximum(size(way[:-1]), 1e-6)
        return {"latents": way[jnp.asarray(keep)], "bend": bend}

    def figures(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """`bend`: the largest of all steps, see `run`. The round trip is exact; a way that bends far leads far off."""
        return {"bend": data["bend"].max(axis=0)}
