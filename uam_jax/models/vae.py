"""The autoencoder: picture in [-1, 1] <-> latent (unscaled), as Stable Diffusion's AutoencoderKL."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.models.attention import Attention, self_attention
from uam_jax.models.configs import VAEConfig
from uam_jax.models.layers import Downsample, GroupNorm, ResnetBlock, Upsample, conv3x3

_EPSILON = 1e-6


class _PixelAttention(Attention):
    """Single-head self-attention over all pixels, with its own norm and shortcut."""

    groups: int = 32

    def setup(self):
        super().setup()
        self.group_norm = GroupNorm(self.groups, _EPSILON)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        pixels = self.group_norm(x).reshape(b, h * w, c)
        return x + self_attention(self, pixels, 0).reshape(b, h, w, c)


class _Level(nn.Module):
    """ResNet blocks of one resolution, then a resampling if there is a next level."""

    features: int
    layers: int
    groups: int
    dtype: Any
    resample: str | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = ResnetBlock(self.features, self.groups, _EPSILON, self.dtype, name=f"resnets_{i}")(
                x
            )
        if self.resample == "down":
            x = Downsample(((0, 1), (0, 1)), self.dtype, name="downsamplers_0")(x)
        elif self.resample == "up":
            x = Upsample(self.dtype, name="upsamplers_0")(x)
        return x


class _Middle(nn.Module):
    features: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def resnet(i: int) -> ResnetBlock:
            return ResnetBlock(
                self.features, self.groups, _EPSILON, self.dtype, name=f"resnets_{i}"
            )

        attention = _PixelAttention(
            self.features, 1, self.dtype, qkv_bias=True, groups=self.groups, name="attentions_0"
        )
        return resnet(1)(attention(resnet(0)(x)))


class Encoder(nn.Module):
    """Picture -> mean and log variance, stacked on the channel axis."""

    config: VAEConfig
    dtype: Any

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c2"]:
        config, last = self.config, len(self.config.channels) - 1
        x = conv3x3(config.channels[0], dtype=self.dtype, name="conv_in")(image)
        for i, features in enumerate(config.channels):
            resample = "down" if i < last else None
            x = _Level(
                features,
                config.layers_per_block,
                config.norm_groups,
                self.dtype,
                resample,
                name=f"down_blocks_{i}",
            )(x)
        x = _Middle(config.channels[-1], config.norm_groups, self.dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(config.norm_groups, _EPSILON, name="conv_norm_out")(x))
        return conv3x3(2 * config.latent_channels, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latent -> picture."""

    config: VAEConfig
    dtype: Any

    @nn.compact
    def __call__(self, latent: Float[Array, "b h2 w2 c"]) -> Float[Array, "b h w 3"]:
        config, last = self.config, len(self.config.channels) - 1
        x = conv3x3(config.channels[-1], dtype=self.dtype, name="conv_in")(latent)
        x = _Middle(config.channels[-1], config.norm_groups, self.dtype, name="mid_block")(x)
        for i, features in enumerate(reversed(config.channels)):
            resample = "up" if i < last else None
            x = _Level(
                features,
                config.layers_per_block + 1,
                config.norm_groups,
                self.dtype,
                resample,
                name=f"up_blocks_{i}",
            )(x)
        x = nn.silu(GroupNorm(config.norm_groups, _EPSILON, name="conv_norm_out")(x))
        return conv3x3(config.out_channels, dtype=self.dtype, name="conv_out")(x)


class VAE(nn.Module):
    """Encoder and decoder with their 1x1 convolutions around the latent."""

    config: VAEConfig
    dtype: Any = jnp.float32

    def setup(self):
        channels = self.config.latent_channels
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.quant_conv = nn.Conv(2 * channels, (1, 1), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(channels, (1, 1), dtype=self.dtype)

    def encode(
        self, image: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b h2 w2 c"], Float[Array, "b h2 w2 c"]]:
        """The posterior's mean and log variance, float32, unscaled.

        Args:
          image: in [-1, 1]; sides are multiples of `config.factor`.
        """
        moments = self.quant_conv(self.encoder(image)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latent: Float[Array, "b h2 w2 c"]) -> Float[Array, "b h w 3"]:
        """The picture of an unscaled latent, float32, nominally in [-1, 1] (not clipped)."""
        return self.decoder(self.post_quant_conv(latent)).astype(jnp.float32)

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Encodes to the mean and decodes."""
        return self.decode(self.encode(image)[0])

    def example_inputs(self) -> tuple[Any, ...]:
        """Arguments of the smallest call, for `expected_params`."""
        side = self.config.factor
        return (jnp.zeros((1, side, side, self.config.in_channels)),)
