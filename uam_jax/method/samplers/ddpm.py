"""DDPM's step down without its noise, which an inversion provides and adds.

Source: Ho et al. 2020 (arXiv 2006.11239) in the form of Song et al., DDIM (arXiv 2010.02502), equation 12 with η = 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.method.samplers.ddim import DDIM
from uam_jax.types import Latent, Prediction, Step


@dataclass(frozen=True)
class DDPM(DDIM):
    """The sampler that leaves part of the next level's noise to fresh noise; it does not invert."""

    general: ClassVar[bool] = False

    def advance(
        self, state: Latent, prediction: Prediction, step: Step, noise: Latent | None = None
    ) -> Latent:
        """The mean signal'·x0 + √(sigma'² - s²)·ε, with s² of `variance`, plus `noise`."""
        del state  # the prediction holds all of it
        kept = jnp.sqrt(jnp.maximum(step.sigma_next**2 - self.variance(step), 0.0))
        reached = step.signal_next * prediction.clean + kept * prediction.noise
        return reached if noise is None else reached + noise

    def variance(self, step: Step) -> Float[Array, "*n"]:
        """The variance of the fresh noise of a step down: (sigma'/sigma)²·(1 - (signal/signal')²)."""
        new = 1 - (step.signal / step.signal_next) ** 2
        return (step.sigma_next / step.sigma) ** 2 * jnp.maximum(new, 0.0)
