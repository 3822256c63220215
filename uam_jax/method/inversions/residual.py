"""Residual-corrected inversion: the network is asked where the inversion asked it.

DDIM's way up from z*' to z* takes the noise predicted at (z*', t). The way down from z takes that at (z, t), another
input. Here it is asked at (z + z*' - z*, t): on the source's line, where z is z*, this is the very input of the way
up, so the same predictor returns exactly; off it, the difference between the branches is kept.

Source: ours; compare Ju et al., PnP inversion, ICLR 2024 (arXiv 2310.01506), which adds the error after the step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from uam_jax.method.inversions.ddim import DDIMInversion
from uam_jax.method.inversions.way_up import estimated_residual, whole_way
from uam_jax.method.samplers import Sampler
from uam_jax.method.schedule import turned
from uam_jax.types import Latent, Predictor, Step


@dataclass(frozen=True)
class ResidualInversion(DDIMInversion):
    """DDIM's way up, which every branch's network calls lean on on the way down; no further evaluations."""

    samplers: ClassVar[tuple[str, ...]] = ("ddim",)

    def run(
        self,
        predict: Predictor,
        z0: Latent,
        steps: Step,
        *,
        sampler: Sampler,
        keep: Sequence[int],
    ) -> dict[str, Array]:
        """DDIM's steps upwards; "latents", "shift" (steps, b, h, w, c) and "residual" (steps, b).

        The shift of a step is the latent below it less the one above; for the residual see `estimated_residual`.
        """
        way, noise = whole_way(predict, z0, steps, sampler=sampler)
        return {
            "latents": way[jnp.asarray(keep)],
            "shift": way[:-1] - way[1:],
            "residual": estimated_residual(way, noise, steps),
        }

    def per_step(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"shift": data["shift"][::-1]}

    def query(
        self, latents: dict[str, Latent], data: Mapping[str, Array], step: Step
    ) -> tuple[dict[str, Latent], Step]:
        """Every branch's latent shifted to the level below, which the network takes for the step's time."""
        shifted = {name: latent + data["shift"] for name, latent in latents.items()}
        return shifted, turned(step)
