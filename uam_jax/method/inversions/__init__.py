"""Inversions, one file each: how clean latents become the noise that an edit starts from."""

from collections.abc import Mapping

from uam_jax.method.inversions.belm import BELMInversion
from uam_jax.method.inversions.ddim import DDIMInversion
from uam_jax.method.inversions.direct import DirectInversion
from uam_jax.method.inversions.edit_friendly import EditFriendlyInversion
from uam_jax.method.inversions.fixed_point import FixedPointInversion
from uam_jax.method.inversions.method import InversionMethod, SourceBranch
from uam_jax.method.inversions.negative_prompt import NegativePromptInversion
from uam_jax.method.inversions.null_text import NullTextInversion
from uam_jax.method.inversions.proximal import ProximalInversion
from uam_jax.method.inversions.residual import ResidualInversion

INVERSIONS: Mapping[str, type[InversionMethod]] = {
    "ddim": DDIMInversion,
    "fixed_point": FixedPointInversion,
    "direct": DirectInversion,
    "edit-friendly": EditFriendlyInversion,
    "belm": BELMInversion,
    "proximal": ProximalInversion,
    "null-text": NullTextInversion,
    "negative-prompt": NegativePromptInversion,
    "residual": ResidualInversion,
}
"""The inversions that `inversion.kind` offers by name."""

__all__ = [
    "INVERSIONS",
    "BELMInversion",
    "DDIMInversion",
    "DirectInversion",
    "EditFriendlyInversion",
    "FixedPointInversion",
    "InversionMethod",
    "NegativePromptInversion",
    "NullTextInversion",
    "ProximalInversion",
    "ResidualInversion",
    "SourceBranch",
]
