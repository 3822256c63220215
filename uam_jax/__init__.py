"""Uniform Attention Maps in JAX: faithful re-editing of real images with Stable Diffusion.

    files ─ images ─▶ image [-1, 1] ─ vae ─▶ latent z0 ─ ddim.invert ─▶ trajectory ─ edit ─▶ latent ─ vae ─▶ image
    prompts ─ tokenizer ─ clip_text ─▶ conditioning ──────┘ (uniform | text)    └─ masks, control

`Editor` is this flow with a model bound to it; an `EditConfig` says what an edit is to do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uam_jax.checkpoints.load import convert
    from uam_jax.editor import Editor, Inversion
    from uam_jax.engine.delivery import EditResult
    from uam_jax.engine.parallel import Devices
    from uam_jax.errors import InputError
    from uam_jax.method.config import EditConfig

_HOMES = {
    "Devices": "engine.parallel",
    "EditConfig": "method.config",
    "EditResult": "engine.delivery",
    "Editor": "editor",
    "InputError": "errors",
    "Inversion": "engine.inversion",
    "convert": "checkpoints.load",
}

__all__ = ["Devices", "EditConfig", "EditResult", "Editor", "InputError", "Inversion", "convert"]


def __getattr__(name: str) -> Any:
    # Importing JAX takes seconds, and `uam --help` has no use for it.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
