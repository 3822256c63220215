"""Stable Diffusion's published shapes with random weights, to measure speed and memory without a checkpoint."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uam_jax import models
from uam_jax.checkpoints.load import EMBEDDED, Checkpoint, chosen_dtype
from uam_jax.checkpoints.tokenizer import Tokenizer
from uam_jax.errors import InputError
from uam_jax.method.schedule import Schedule
from uam_jax.models.configs import PUBLISHED
from uam_jax.types import Params

_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = {
    "sd15": {**_BETAS, "prediction_type": "epsilon"},
    "sd21": {**_BETAS, "prediction_type": "v_prediction"},
}
"""The published models' `scheduler_config.json` files, without what is diffusers' default."""


def random_checkpoint(
    shape: str, *, dtype: str = "float32", seed: int = 0, drawn: bool = True
) -> Checkpoint:
    """Makes a model of a published shape whose weights are noise, which is as fast as a trained one.

    The embedded model's tokenizer turns prompts into 77 tokens.

    Args:
      shape: "sd15" (512² pixels) or "sd21" (768²).
      dtype: precision of weights and computation, as in `load_checkpoint`.
      seed: seed of the noise.
      drawn: False leaves the weights out, and their shapes are in their place (see `engine.rehearsal`).

    Raises:
      InputError: there is no such shape or dtype.
    """
    if shape not in PUBLISHED:
        raise InputError(f"shape {shape!r} is not known; choose one of {', '.join(PUBLISHED)}")
    own, compute = PUBLISHED[shape], jnp.dtype(chosen_dtype(dtype))
    unet = models.UNet(models.UNetConfig.from_dict(own["unet"]), compute)
    vae = models.VAE(models.VAEConfig.from_dict(own["vae"]), compute)
    text_encoder = models.TextEncoder(models.TextConfig.from_dict(own["text_encoder"]), compute)
    networks = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    params = {name: models.expected_params(network) for name, network in networks.items()}
    if drawn:
        params = _noise(params, compute, seed)
    else:
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, compute), params)
    return Checkpoint(
        name=f"{shape} (random weights)",
        path=Path(shape),
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        params=params,
        tokenizer=Tokenizer.from_folder(EMBEDDED["scenes"] / "tokenizer"),
        schedule=Schedule.from_config(SCHEDULES[shape]),
        weights_hash=f"random-{shape}-{seed}",
        settings={},
    )


def _noise(shapes: Params, dtype: jnp.dtype, seed: int) -> Params:
    # All weights are copies of one block of noise: drawing a billion numbers takes a minute, copying them a second.
    block = np.random.default_rng(seed).standard_normal(2**22, np.float32).astype(dtype)
    return {part: _random_params(expected, block) for part, expected in shapes.items()}


def _random_params(expected: Params, block: np.ndarray) -> Params:
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
