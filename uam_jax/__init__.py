"""Uniform Attention Maps in JAX: faithful re-editing of real images with Stable Diffusion.

    files ─ images ─▶ image [-1, 1] ─ vae ─▶ latent z0 ─ invert ─▶ trajectory ─ edit ─▶ latent ─ vae ─▶ image ─▶ files
    prompts ─ tokenizer ─ text encoder ─▶ condition ──────┘ (uniform | text maps)  └─ masks, control

`Editor` is this flow with a model bound to it; an `EditConfig` holds the settings of an edit.

Rooms, each of which imports only rooms of earlier lines:

    errors                                  exceptions that end a command
    types, files                            shapes and protocols; paths, URLs and small text files
    runtime                                 the machine: platforms, precision, compilation cache, memory
    io, models, method                      pictures and folders; Flax networks; the paper and its neighbours
    checkpoints                             files to networks and weights
    engine, scenes                          the method on devices; the procedural world
    editor                                  `Editor`, the flow on one page
    jobs                                    edits of files and of data sets
    evaluation                              quality, speed and forecasts of it, plots, the demo, the check
    cli                                     the command line
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uam_jax.checkpoints.load import convert
    from uam_jax.editor import Editor, Inversion
    from uam_jax.engine.delivery import EditResult
    from uam_jax.engine.parallel import Devices
    from uam_jax.errors import InputError
    from uam_jax.jobs.picture import edit_picture
    from uam_jax.method.config import EditConfig
    from uam_jax.method.edits import Edit

_HOMES = {
    "Devices": "engine.parallel",
    "Edit": "method.edits",
    "EditConfig": "method.config",
    "EditResult": "engine.delivery",
    "Editor": "editor",
    "InputError": "errors",
    "Inversion": "engine.inversion",
    "convert": "checkpoints.load",
    "edit_picture": "jobs.picture",
}

__all__ = [
    "Devices",
    "Edit",
    "EditConfig",
    "EditResult",
    "Editor",
    "InputError",
    "Inversion",
    "convert",
    "edit_picture",
]


def __getattr__(name: str) -> Any:
    # Importing JAX takes seconds, and `uam --help` has no use for it.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
