"""Inversions, one file each: how clean latents become the noise that an edit starts from."""

from collections.abc import Mapping

from uam_jax.method.inversions.ddim import DDIMInversion
from uam_jax.method.inversions.fixed_point import FixedPointInversion
from uam_jax.method.inversions.method import InversionMethod
from uam_jax.method.inversions.negative_prompt import NegativePromptInversion
from uam_jax.method.inversions.residual import ResidualInversion

INVERSIONS: Mapping[str, type[InversionMethod]] = {
    "ddim": DDIMInversion,
    "fixed_point": FixedPointInversion,
    "negative-prompt": NegativePromptInversion,
    "residual": ResidualInversion,
}
"""The inversions that `inversion.kind` offers by name."""

__all__ = [
    "INVERSIONS",
    "DDIMInversion",
    "FixedPointInversion",
    "InversionMethod",
    "NegativePromptInversion",
    "ResidualInversion",
]
