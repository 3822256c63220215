"""Residual-corrected inversion: the network is asked where the inversion asked it.

DDIM's way up from z*' to z* takes the noise predicted at (z*', t). The way down from z takes that at (z, t), another
input. Here it is asked at (z + z*' - z*, t): on the source's line, where z is z*, this is the very input of the way
up, so the same predictor returns exactly; off it, the difference between the branches is kept.

Source: ours; compare Ju et al., PnP inversion, ICLR 2024 (arXiv 2310.01506), which adds the error after the step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array

from uam_jax.method.inversions.ddim import DDIMInversion
from uam_jax.method.sample import Trajectory
from uam_jax.method.schedule import turned
from uam_jax.types import Latent, Step


@dataclass(frozen=True)
class ResidualInversion(DDIMInversion):
    """DDIM's way up, which every branch's network calls lean on on the way down; no further evaluations."""

    samplers: ClassVar[tuple[str, ...]] = ("ddim",)

    def beside(self, way: Trajectory) -> dict[str, Array]:
        """The latent below each step less the one above: "shift" (steps, b, h, w, c)."""
        return {"shift": way[:-1] - way[1:]}

    def per_step(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"shift": data["shift"][::-1]}

    def query(
        self, latents: dict[str, Latent], data: Mapping[str, Array], step: Step
    ) -> tuple[dict[str, Latent], Step]:
        """Every branch's latent shifted to the level below, which the network takes for the step's time."""
        shifted = {name: latent + data["shift"] for name, latent in latents.items()}
        return shifted, turned(step)
