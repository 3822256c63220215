"""DDIM inversion.

Source: Song et al., DDIM, ICLR 2021 (arXiv 2010.02502), §4.3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from uam_jax.method.inversions.method import InversionMethod
from uam_jax.method.inversions.way_up import estimated_residual, whole_way
from uam_jax.method.sample import Trajectory
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
        """The steps upwards; "latents", `estimated_residual` as "residual" (steps, b), and what `beside` adds."""
        way, noise = whole_way(predict, z0, steps, sampler=sampler)
        residual = estimated_residual(way, noise, steps)
        return {"latents": way[jnp.asarray(keep)], "residual": residual, **self.beside(way)}

    def beside(self, way: Trajectory) -> dict[str, Array]:
        """Further arrays of the latents of all levels, z0 first."""
        return {}

    def figures(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """`estimated_residual`: the largest of all steps, see there; one step has none."""
        residual = data["residual"]
        return {"estimated_residual": residual.max(axis=0)} if len(residual) > 1 else {}
