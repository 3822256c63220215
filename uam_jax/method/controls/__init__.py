"""Attention controls, one file each: how an edit takes its structure from the source."""

from collections.abc import Mapping

from uam_jax.method.controls.control import Control, Moment, NoControl
from uam_jax.method.controls.masactrl import MasaCtrl
from uam_jax.method.controls.plug_and_play import PlugAndPlay
from uam_jax.method.controls.prompt_to_prompt import PromptToPrompt

CONTROLS: Mapping[str, type[Control]] = {
    "none": NoControl,
    "masactrl": MasaCtrl,
    "prompt-to-prompt": PromptToPrompt,
    "plug-and-play": PlugAndPlay,
}
"""The controls that `control.kind` offers by name."""

__all__ = [
    "CONTROLS",
    "Control",
    "MasaCtrl",
    "Moment",
    "NoControl",
    "PlugAndPlay",
    "PromptToPrompt",
]
