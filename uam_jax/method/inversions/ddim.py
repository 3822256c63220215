"""DDIM inversion.

Source: Song et al., DDIM, ICLR 2021 (arXiv 2010.02502), §4.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Array

from uam_jax.method.inversions.method import InversionMethod
from uam_jax.method.sample import invert
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
        """The sampler's steps upwards; "latents"."""
        latents, _ = invert(predict, z0, steps, sampler=sampler, keep=keep)
        return {"latents": latents}
