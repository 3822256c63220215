"""The base class of inversions."""

from dataclasses import dataclass
from typing import ClassVar

from uam_jax.method.section import Section


@dataclass(frozen=True)
class InversionMethod(Section):
    """How clean latents become noise.

    A subclass is a frozen dataclass of settings with default values, see `section`. In a table they stand
    beside those that every inversion has, see `config.InversionConfig`.
    """

    prefix: ClassVar[str] = "inversion."
