"""Tiny networks with random weights and inputs, for tests of what a network computes."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from checkpoint_files import MODULES, UNET
from jax import Array

from uam_jax import models
from uam_jax.types import Params

# Two levels of different width that attend: for what is only traced, since compiling it takes long.
DEEP = models.UNet(
    models.UNetConfig.from_dict(
        UNET
        | {
            "block_out_channels": [8, 16],
            "down_block_types": ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        }
    )
)
TINY, DEEPER = (
    models.StableDiffusion(unet, MODULES["text_encoder"]) for unet in (MODULES["unet"], DEEP)
)


def normal(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@cache
def params_of(module: Any) -> Params:
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> Array:
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), jnp.float32)

    return jax.tree.map(draw, models.expected_params(module))


LATENT, STATES = normal(1, 3, 8, 4, 4), normal(2, 3, 5, UNET["cross_attention_dim"])


def assert_close(actual: Any, expected: Any, relative: float) -> None:
    error = np.abs(np.asarray(actual) - np.asarray(expected)).max() / np.abs(expected).max()
    assert error <= relative
