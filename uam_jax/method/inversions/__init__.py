"""Inversions, one file each: how clean latents become the noise that an edit starts from."""

from collections.abc import Mapping

from uam_jax.method.inversions.ddim import DDIM
from uam_jax.method.inversions.fixed_point import FixedPoint
from uam_jax.method.inversions.method import InversionMethod

INVERSIONS: Mapping[str, type[InversionMethod]] = {
    "ddim": DDIM,
    "fixed_point": FixedPoint,
}
"""The inversions that `inversion.kind` offers by name."""

__all__ = ["DDIM", "INVERSIONS", "FixedPoint", "InversionMethod"]
