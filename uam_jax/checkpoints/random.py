"""Stable Diffusion's shapes with random weights: for measuring speed and memory where no checkpoint is at hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uam_jax import models
from uam_jax.checkpoints.load import DTYPES, EMBEDDED, Checkpoint
from uam_jax.checkpoints.tokenizer import Tokenizer
from uam_jax.errors import InputError
from uam_jax.method.schedule import Schedule
from uam_jax.types import Params

_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

SHAPES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sd15": {
        "unet": {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
        },
        "scheduler": {"prediction_type": "epsilon"},
    },
    "sd21": {
        "unet": {
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "sample_size": 96,
        },
        "text_encoder": {
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
        },
        "scheduler": {"prediction_type": "v_prediction"},
    },
}
"""What differs from diffusers' and transformers' defaults, as in the published `config.json` files."""


def random_checkpoint(shape: str, *, dtype: str = "float32", seed: int = 0) -> Checkpoint:
    """A model of a known shape whose weights are noise: as fast as a trained one, and of no other use.

    Prompts are cut into tokens by the embedded model's tokenizer, to 77 of them.

    Args:
      shape: "sd15" (512² pixels) or "sd21" (768²).
      dtype: of weights and computation, as in `load_checkpoint`.
      seed: of the noise.

    Raises:
      InputError: there is no such shape or dtype.
    """
    if shape not in SHAPES:
        raise InputError(f"shape {shape!r} is not known; choose one of {', '.join(SHAPES)}")
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    own, compute = SHAPES[shape], jnp.dtype(dtype)
    unet = models.UNet(models.UNetConfig.from_dict(own["unet"]), compute)
    vae = models.VAE(models.VAEConfig.from_dict(_VAE), compute)
    text_encoder = models.TextEncoder(models.TextConfig.from_dict(own["text_encoder"]), compute)
    networks = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    # One block of noise serves all: drawing a billion numbers takes a minute, copying them a second.
    block = np.random.default_rng(seed).standard_normal(2**22, np.float32).astype(compute)
    return Checkpoint(
        name=f"{shape} (random weights)",
        path=Path(shape),
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        params={name: _random_params(network, block) for name, network in networks.items()},
        tokenizer=Tokenizer.from_folder(EMBEDDED["scenes"] / "tokenizer"),
        schedule=Schedule.from_config({**_SCHEDULE, **own["scheduler"]}),
        weights_hash=f"random-{shape}-{seed}",
        settings={},
    )


def _random_params(network: Any, block: np.ndarray) -> Params:
    expected = models.expected_params(network)
    count = len(jax.tree.leaves(expected))
    offsets = iter(np.linspace(0, block.size, count, endpoint=False, dtype=int))

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        offset, kind = next(offsets), path[-1].key
        if kind in ("scale", "bias"):
            return jnp.full(leaf.shape, kind == "scale", block.dtype)
        noise = np.resize(np.roll(block, -offset), leaf.shape)
        inputs = leaf.shape[-1] if kind == "embedding" else np.prod(leaf.shape[:-1])
        return jnp.asarray(noise * np.asarray(float(inputs) ** -0.5, block.dtype))

    return jax.tree_util.tree_map_with_path(draw, expected)
