"""The autoencoder: picture in [-1, 1] <-> latent (unscaled), as Stable Diffusion's AutoencoderKL."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.models.attention import Attention
from uam_jax.models.configs import VAEConfig
from uam_jax.models.layers import Conv, Downsample, GroupNorm, ResnetBlock, Upsample
from uam_jax.types import Site, plain_attention

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
        return x + plain_attention(self, pixels, pixels).reshape(b, h, w, c)


class _Level(nn.Module):
    """ResNet blocks of one resolution, then a resampling if there is a next level."""

    features: int
    layers: int
    groups: int
    dtype: Any
    resample: str | None

    def setup(self):
        block = (self.features, self.groups, _EPSILON, self.dtype)
        self.resnets = [ResnetBlock(*block) for _ in range(self.layers)]
        if self.resample == "down":
            self.downsamplers = [Downsample(((0, 1), (0, 1)), self.dtype)]
        elif self.resample == "up":
            self.upsamplers = [Upsample(self.dtype)]

    def __call__(self, x: Array) -> Array:
        return self.resampled(self.blocks(x))

    def blocks(self, x: Array) -> Array:
        for resnet in self.resnets:
            x = resnet(x)
        return x

    def resampled(self, x: Array) -> Array:
        if self.resample == "down":
            return self.downsamplers[0](x)
        return self.upsamplers[0](x) if self.resample == "up" else x


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
            *Site(0, 0, "own", self.features, "middle"),
            heads=1,
            dtype=self.dtype,
            qkv_bias=True,
            groups=self.groups,
            name="attentions_0",
        )
        return resnet(1)(attention(resnet(0)(x)))


class Encoder(nn.Module):
    """Picture -> mean and log variance, stacked on the channel axis.

    A stage is all of one resolution, down to the next; the last one is the latent's.
    """

    config: VAEConfig
    dtype: Any

    def setup(self):
        config, last = self.config, len(self.config.channels) - 1
        norm = (config.norm_groups, self.dtype)
        self.conv_in = Conv(config.channels[0], dtype=self.dtype)
        self.down_blocks = [
            _Level(features, config.layers_per_block, *norm, "down" if i < last else None)
            for i, features in enumerate(config.channels)
        ]
        self.mid_block = _Middle(config.channels[-1], *norm)
        self.conv_norm_out = GroupNorm(config.norm_groups, _EPSILON, nn.silu)
        self.conv_out = Conv(2 * config.latent_channels, dtype=self.dtype)

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c2"]:
        x = image
        for stage in range(len(self.config.channels)):
            x = self.stage(x, stage)
        return x

    def stage(self, x: Float[Array, "b h w _"], stage: int) -> Float[Array, "b h2 w2 _"]:
        if stage == 0:
            x = self.conv_in(x)
        x = self.down_blocks[stage](x)
        if stage == len(self.config.channels) - 1:
            x = self.conv_out(self.conv_norm_out(self.mid_block(x)))
        return x


class Decoder(nn.Module):
    """Latent -> picture.

    A stage is all of one resolution, from the one before; the first one is the latent's.
    """

    config: VAEConfig
    dtype: Any

    def setup(self):
        config, last = self.config, len(self.config.channels) - 1
        norm = (config.norm_groups, self.dtype)
        self.conv_in = Conv(config.channels[-1], dtype=self.dtype)
        self.mid_block = _Middle(config.channels[-1], *norm)
        self.up_blocks = [
            _Level(features, config.layers_per_block + 1, *norm, "up" if i < last else None)
            for i, features in enumerate(reversed(config.channels))
        ]
        self.conv_norm_out = GroupNorm(config.norm_groups, _EPSILON, nn.silu)
        self.conv_out = Conv(config.out_channels, dtype=self.dtype)

    def __call__(self, latent: Float[Array, "b h2 w2 c"]) -> Float[Array, "b h w 3"]:
        x = latent
        for stage in range(len(self.config.channels)):
            x = self.stage(x, stage)
        return x

    def stage(self, x: Float[Array, "b h w _"], stage: int) -> Float[Array, "b h2 w2 _"]:
        first = stage == 0
        x = self.mid_block(self.conv_in(x)) if first else self.up_blocks[stage - 1].resampled(x)
        x = self.up_blocks[stage].blocks(x)
        if stage == len(self.config.channels) - 1:
            x = self.conv_out(self.conv_norm_out(x))
        return x


class VAE(nn.Module):
    """Encoder and decoder with their 1x1 convolutions around the latent."""

    config: VAEConfig
    dtype: Any = jnp.float32

    def setup(self):
        channels = self.config.latent_channels
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.quant_conv = Conv(2 * channels, 1, dtype=self.dtype)
        self.post_quant_conv = Conv(channels, 1, dtype=self.dtype)

    def encode(
        self, image: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b h2 w2 c"], Float[Array, "b h2 w2 c"]]:
        """The posterior's mean and log variance, float32, unscaled.

        Args:
          image: in [-1, 1]; sides are multiples of `config.factor`.
        """
        return self.posterior(self.encoder(image))

    def decode(self, latent: Float[Array, "b h2 w2 c"]) -> Float[Array, "b h w 3"]:
        """The picture of an unscaled latent, float32, nominally in [-1, 1] (not clipped)."""
        return self.decoder(self.post_quant_conv(latent)).astype(jnp.float32)

    # The same in parts, for `vae_tiles`

    def encode_stage(self, x: Float[Array, "b h w _"], stage: int) -> Float[Array, "b h2 w2 _"]:
        return self.encoder.stage(x, stage)

    def posterior(
        self, encoded: Float[Array, "b h2 w2 c2"]
    ) -> tuple[Float[Array, "b h2 w2 c"], Float[Array, "b h2 w2 c"]]:
        """Mean and log variance from the encoder's output."""
        mean, log_variance = jnp.split(self.quant_conv(encoded).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode_stage(self, x: Float[Array, "b h w _"], stage: int) -> Float[Array, "b h2 w2 _"]:
        return self.decoder.stage(self.post_quant_conv(x) if stage == 0 else x, stage)

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Encodes to the mean and decodes."""
        return self.decode(self.encode(image)[0])

    def example_inputs(self) -> tuple[Any, ...]:
        """Arguments of the smallest call, for `expected_params`."""
        side = self.config.factor
        return (jnp.zeros((1, side, side, self.config.in_channels)),)
