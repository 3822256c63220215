"""Fixed-point inversion: DDIM's step solved for the latent that it leads to.

Source: Pan et al., AIDI, ICCV 2023 (arXiv 2309.04907), §3.
"""

from dataclasses import dataclass
from typing import Annotated

from uam_jax.method.inversions.method import InversionMethod
from uam_jax.method.section import Between


@dataclass(frozen=True)
class FixedPoint(InversionMethod):
    """Each step takes the noise that is predicted at the latent that it leads to, found by iteration."""

    iterations: Annotated[
        int, Between(0, 20), "evaluations of a step after its first; 0 is DDIM"
    ] = 1
    anderson: Annotated[bool, "Anderson acceleration over the last three iterates"] = False
