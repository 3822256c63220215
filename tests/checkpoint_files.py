"""Writes tiny checkpoints in diffusers' layout, and rewrites them into other layouts of the hub."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from uam_jax import models
from uam_jax.checkpoints.load import Checkpoint
from uam_jax.checkpoints.weights import save_safetensors
from uam_jax.scenes.bpe import train_tokenizer

CAPTIONS = ["a red cube", "a blue ball", "a green cone on a table"] * 2
WIDTH = 8
UNET = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 2,
    "block_out_channels": [WIDTH, WIDTH],
    "cross_attention_dim": WIDTH,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [WIDTH, WIDTH],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "sample_size": 8,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 530,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.40.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": True,
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}

MODULES = {
    "unet": models.UNet(models.UNetConfig.from_dict(UNET)),
    "vae": models.VAE(models.VAEConfig.from_dict(VAE)),
    "text_encoder": models.TextEncoder(models.TextConfig.from_dict(TEXT)),
}


def write_checkpoint(folder: Path, scale: float = 1.0) -> dict:
    """Writes a whole checkpoint of random float32 weights and returns its params.

    A network of these weights explodes; with a `scale` of 1/16 it is tame.
    """
    for component, config in {"unet": UNET, "vae": VAE, "text_encoder": TEXT}.items():
        write_json(folder / component / "config.json", config)
    write_json(folder / "model_index.json", INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    train_tokenizer(CAPTIONS, folder / "tokenizer", vocab_size=TEXT["vocab_size"])
    params = jax.tree.map(lambda leaf: leaf * np.float32(scale), random_params())
    for component, tree in params.items():
        save_safetensors(tree, folder / component, component)
    return params


def random_params() -> dict:
    # Multiples of 1/8 below 8: the same numbers in every floating-point type.
    rng = np.random.default_rng(0)
    expected = {name: models.expected_params(module) for name, module in MODULES.items()}
    return jax.tree.map(
        lambda leaf: (rng.integers(-63, 64, leaf.shape) / 8).astype(np.float32), expected
    )


def write_json(file: Path, value: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def edit_json(file: Path, **changes: object) -> None:
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | changes)


Tensors = dict[str, np.ndarray]


def edit_tensors(file: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(file))
    file.unlink()
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, file)


def renamed(replace: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {replace(name): tensor for name, tensor in tensors.items()}


def reshaped(part: str, shape: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Callable:
    """Gives weights (not biases) with `part` in their name another shape."""
    return lambda tensors: {
        name: t.reshape(shape(t.shape)) if part in name and name.endswith("weight") else t
        for name, t in tensors.items()
    }


def into_hub_cache(folder: Path, cache: Path, repo: str) -> Path:
    """Lays a checkpoint out as the hub's client caches it: links into a store of blobs."""
    home = cache / f"models--{repo.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = home / "snapshots" / commit
    for file in (file for file in folder.rglob("*") if file.is_file()):
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    return snapshot


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert a.model_hash == b.model_hash
    assert (a.unet, a.vae, a.text_encoder) == (b.unet, b.vae, b.text_encoder)
    assert a.schedule == b.schedule
    assert a.settings == b.settings
    texts = ["a red cube", ""]
    np.testing.assert_array_equal(a.tokenizer.encode(texts), b.tokenizer.encode(texts))
