"""Stable Diffusion's three networks as flax modules, and `StableDiffusion`, the `Denoiser` made of two of them.

This package is the only code that imports flax. A module is applied to a plain nested dict of arrays,
`module.apply({"params": params}, ...)`, whose names follow the checkpoint.
"""

from uam_jax.models.clip_text import TextEncoder
from uam_jax.models.configs import TextConfig, UNetConfig, VAEConfig
from uam_jax.models.denoiser import Denoiser, StableDiffusion
from uam_jax.models.layers import expected_params
from uam_jax.models.unet import UNet
from uam_jax.models.vae import VAE
from uam_jax.models.vae_tiles import decode_in_tiles, encode_in_tiles

__all__ = [
    "VAE",
    "Denoiser",
    "StableDiffusion",
    "TextConfig",
    "TextEncoder",
    "UNet",
    "UNetConfig",
    "VAEConfig",
    "decode_in_tiles",
    "encode_in_tiles",
    "expected_params",
]
