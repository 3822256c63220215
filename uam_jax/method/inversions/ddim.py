"""DDIM inversion.

Source: Song et al., DDIM, ICLR 2021 (arXiv 2010.02502), §4.3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from uam_jax.method.inversions.method import InversionMethod
from uam_jax.method.inversions.way_up import estimated_residual, whole_way
from uam_jax.method.samplers import Sampler
from uam_jax.types import Latent, Predictor, Step


@dataclass(frozen=True)
class DDIMInversion(InversionMethod):
    """Each step takes the noise that is predicted at the latent that it leaves."""

    def run(
        self,
        predict: Predictor,
        z0: Latent,
        steps: Step,
        *,
        sampler: Sampler,
        keep: Sequence[int],
    ) -> dict[str, Array]:
        """The sampler's steps upwards; "latents", and "residual" (steps, b), see `estimated_residual`."""
        way, noise = whole_way(predict, z0, steps, sampler=sampler)
        return {
            "latents": way[jnp.asarray(keep)],
            "residual": estimated_residual(way, noise, steps),
        }

    def figures(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """`estimated_residual`: the largest of all steps, see there; one step has none."""
        residual = data["residual"]
        return {"estimated_residual": residual.max(axis=0)} if len(residual) > 1 else {}
