"""Deterministic DDIM: the clean estimate, given the noise of the next level.

Source: Song et al. 2021 (arXiv 2010.02502), equation 12 with η = 0. For a rectified flow it is Euler's step.
"""

from dataclasses import dataclass
from typing import ClassVar

from uam_jax.types import Latent, Prediction, Step


@dataclass(frozen=True)
class DDIM:
    """The sampler whose state is the latent alone."""

    general: ClassVar[bool] = True
    pair: ClassVar[bool] = False
    own_times: ClassVar[bool] = False

    def start(self, latent: Latent, *below: Latent) -> Latent:
        return latent

    def query(self, state: Latent) -> Latent:
        return state

    def advance(
        self, state: Latent, prediction: Prediction, step: Step, noise: Latent | None = None
    ) -> Latent:
        """The latent z' = signal'·x0 + sigma'·ε, plus `noise`."""
        del state  # the prediction holds all of it
        reached = step.signal_next * prediction.clean + step.sigma_next * prediction.noise
        return reached if noise is None else reached + noise

    def latent(self, state: Latent) -> Latent:
        return state

    def moved(self, state: Latent, latent: Latent) -> Latent:
        del state
        return latent
