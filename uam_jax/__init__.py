"""Uniform Attention Maps in JAX: faithful re-editing of real images with Stable Diffusion.

    files ─ images ─▶ image [-1, 1] ─ vae ─▶ latent z0 ─ ddim.invert ─▶ trajectory ─ edit ─▶ latent ─ vae ─▶ image
    prompts ─ tokenizer ─ clip_text ─▶ conditioning ──────┘ (uniform | text)    └─ masks, control

`Editor` is this flow with a model bound to it; an `EditConfig` says what an edit is to do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uam_jax.checkpoints import convert
    from uam_jax.config import EditConfig
    from uam_jax.delivery import EditResult
    from uam_jax.errors import InputError
    from uam_jax.parallel import Devices
    from uam_jax.pipeline import Editor, Inversion

_HOMES = {
    "Devices": "parallel",
    "EditConfig": "config",
    "EditResult": "delivery",
    "Editor": "pipeline",
    "InputError": "errors",
    "Inversion": "pipeline",
    "convert": "checkpoints",
}

__all__ = ["Devices", "EditConfig", "EditResult", "Editor", "InputError", "Inversion", "convert"]


def __getattr__(name: str) -> Any:
    # Importing JAX takes seconds, and `uam --help` has no use for it.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
