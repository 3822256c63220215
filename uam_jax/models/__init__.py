"""Stable Diffusion's three networks as flax modules: image <-> latent, text -> states, (latent, t) -> noise.

This package is the only code that imports flax. A module is applied to a plain nested dict of arrays,
`module.apply({"params": params}, ...)`, whose names follow the checkpoint.
"""

from uam_jax.models.attention import (
    attention_backend,
    mixed_attention,
    self_attention,
    text_attention,
    uniform_attention,
    uniform_vectors,
)
from uam_jax.models.clip_text import TextEncoder
from uam_jax.models.configs import TextConfig, UNetConfig, VAEConfig
from uam_jax.models.layers import expected_params
from uam_jax.models.unet import UNet
from uam_jax.models.vae import VAE
from uam_jax.models.vae_tiles import decode_in_tiles, encode_in_tiles

__all__ = [
    "VAE",
    "TextConfig",
    "TextEncoder",
    "UNet",
    "UNetConfig",
    "VAEConfig",
    "attention_backend",
    "decode_in_tiles",
    "encode_in_tiles",
    "expected_params",
    "mixed_attention",
    "self_attention",
    "text_attention",
    "uniform_attention",
    "uniform_vectors",
]
