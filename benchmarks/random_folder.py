"""A published shape with random weights as a folder in diffusers' layout, which PyTorch can load too."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

from uam_jax.checkpoints.load import EMBEDDED, Checkpoint
from uam_jax.checkpoints.random import SCHEDULES, random_checkpoint
from uam_jax.checkpoints.weights import save_safetensors
from uam_jax.models.configs import PUBLISHED
from uam_jax.types import Params

_CLASSES = {
    "unet": {"_class_name": "UNet2DConditionModel"},
    "vae": {"_class_name": "AutoencoderKL"},
    "text_encoder": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
}


def write_random_folder(folder: Path, shape: str, dtype: str) -> Checkpoint:
    """Makes the checkpoint of `random_checkpoint` and writes it; equal arguments give equal weights.

    Args:
      folder: a new one.
      shape: a key of `models.configs.PUBLISHED`.
      dtype: of the stored weights, and of the checkpoint.
    """
    checkpoint = random_checkpoint(shape, dtype=dtype)
    for component, named in _CLASSES.items():
        config, params = PUBLISHED[shape][component], checkpoint.params[component]
        if component == "unet" and not config.get("use_linear_projection"):
            params = _with_convolutions(params)
        save_safetensors(params, folder / component, component)
        _write_json(folder / component / "config.json", {**config, **named})
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULES[shape])
    shutil.copytree(EMBEDDED["scenes"] / "tokenizer", folder / "tokenizer")
    return checkpoint


def _with_convolutions(params: Params) -> Params:
    """The transformers' first and last products as convolutions of 1x1, as Stable Diffusion 1.x has them."""

    def reshaped(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        products = any(key.key in ("proj_in", "proj_out") for key in path) and leaf.ndim == 2
        return jnp.expand_dims(leaf, (0, 1)) if products else leaf

    return jax.tree_util.tree_map_with_path(reshaped, params)


def _write_json(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")
