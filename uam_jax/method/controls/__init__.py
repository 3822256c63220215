"""Attention controls, one file each: how an edit takes its structure from the source."""

from collections.abc import Mapping

from uam_jax.method.controls.control import Control, NoControl
from uam_jax.method.controls.masactrl import MasaCtrl

CONTROLS: Mapping[str, type[Control]] = {
    "none": NoControl,
    "masactrl": MasaCtrl,
}
"""The controls that `control.kind` offers by name."""

__all__ = ["CONTROLS", "Control", "MasaCtrl", "NoControl"]
