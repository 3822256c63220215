"""The U-Net: (latent, timestep, text) -> noise or velocity, as Stable Diffusion 1.x and 2.x lay it out."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from uam_jax.models.attention import Attention, Backend, self_attention, text_attention
from uam_jax.models.configs import UNetConfig
from uam_jax.models.layers import (
    Dense,
    Downsample,
    GroupNorm,
    LayerNorm,
    ResnetBlock,
    Upsample,
    conv,
)
from uam_jax.types import AttentionRule


def sinusoidal(
    timestep: Num[Array, " b"], width: int, *, flip_sin_to_cos: bool, freq_shift: float
) -> Float[Array, "b width"]:
    """Sine and cosine features of the timestep, float32."""
    half = width // 2
    exponent = -math.log(10000) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = timestep.astype(jnp.float32)[:, None] * jnp.exp(exponent)
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([cosine, sine] if flip_sin_to_cos else [sine, cosine], axis=-1)


class TimeEmbedding(nn.Module):
    """Two linear layers on the sinusoidal features."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Float[Array, "b e"]) -> Float[Array, "b width"]:
        hidden = nn.silu(Dense(self.width, dtype=self.dtype, name="linear_1")(features))
        return Dense(self.width, dtype=self.dtype, name="linear_2")(hidden)


class GEGLU(nn.Module):
    """First half times the GELU (exact, by erf) of the second."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n width"]:
        value, gate = jnp.split(Dense(2 * self.width, dtype=self.dtype, name="proj")(x), 2, -1)
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        hidden = GEGLU(4 * x.shape[-1], self.dtype, name="net_0")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="net_2")(hidden)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; the two attentions follow the given rules."""

    heads: int
    block: int
    dtype: Any
    backend: Backend | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], cross: AttentionRule, own: AttentionRule
    ) -> Float[Array, "b n c"]:
        width = x.shape[-1]
        attn1, attn2 = (
            Attention(width, self.heads, self.dtype, backend=self.backend, name=name)
            for name in ("attn1", "attn2")
        )
        x = x + own(attn1, LayerNorm(name="norm1")(x), self.block)
        x = x + cross(attn2, LayerNorm(name="norm2")(x), self.block)
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(name="norm3")(x))


class Transformer(nn.Module):
    """A transformer block over the picture's pixels, with projections and a shortcut around it."""

    heads: int
    groups: int
    block: int
    dtype: Any
    backend: Backend | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], cross: AttentionRule, own: AttentionRule
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        hidden = GroupNorm(self.groups, 1e-6, name="norm")(x).reshape(b, h * w, c)
        # SD 1.x saves these two as 1x1 convolutions: the same computation, another weight shape.
        hidden = Dense(c, dtype=self.dtype, name="proj_in")(hidden)
        hidden = TransformerBlock(
            self.heads, self.block, self.dtype, self.backend, name="transformer_blocks_0"
        )(hidden, cross, own)
        hidden = Dense(c, dtype=self.dtype, name="proj_out")(hidden)
        return x + hidden.reshape(b, h, w, c)


class _Level(nn.Module):
    """ResNet blocks of one resolution, each followed by a transformer where the level attends."""

    features: int
    heads: int
    attends: bool
    first_block: int
    config: UNetConfig
    dtype: Any
    backend: Backend | None = None

    def resnet(self, index: int) -> ResnetBlock:
        return ResnetBlock(
            self.features,
            self.config.norm_groups,
            self.config.norm_eps,
            self.dtype,
            name=f"resnets_{index}",
        )

    def transformer(self, index: int) -> Transformer:
        return Transformer(
            self.heads,
            self.config.norm_groups,
            self.first_block + index,
            self.dtype,
            self.backend,
            name=f"attentions_{index}",
        )


class DownLevel(_Level):
    """Contracting level; returns its output and the skips that the matching up level takes."""

    downsamples: bool = True

    @nn.compact
    def __call__(
        self, x: Array, time: Array, cross: AttentionRule, own: AttentionRule
    ) -> tuple[Array, list[Array]]:
        skips = []
        for i in range(self.config.layers_per_block):
            x = self.resnet(i)(x, time)
            if self.attends:
                x = self.transformer(i)(x, cross, own)
            skips.append(x)
        if self.downsamples:
            x = Downsample(1, self.dtype, name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class MidLevel(_Level):
    """ResNet block, transformer, ResNet block."""

    @nn.compact
    def __call__(self, x: Array, time: Array, cross: AttentionRule, own: AttentionRule) -> Array:
        x = self.transformer(0)(self.resnet(0)(x, time), cross, own)
        return self.resnet(1)(x, time)


class UpLevel(_Level):
    """Expanding level; takes its skips from the end of the list."""

    upsamples: bool = True

    @nn.compact
    def __call__(
        self, x: Array, skips: list[Array], time: Array, cross: AttentionRule, own: AttentionRule
    ) -> Array:
        for i in range(self.config.layers_per_block + 1):
            x = self.resnet(i)(jnp.concatenate([x, skips.pop()], axis=-1), time)
            if self.attends:
                x = self.transformer(i)(x, cross, own)
        return Upsample(self.dtype, name="upsamplers_0")(x) if self.upsamples else x


class UNet(nn.Module):
    """The noise (or velocity) network.

    Transformer blocks are numbered in execution order; with SD's shape: down 0-5, mid 6, up 7-15.

    Attributes:
      config: its shape.
      dtype: of the computation.
      backend: what computes attention; None: the best for each level (`attention_backend`).
    """

    config: UNetConfig
    dtype: Any = jnp.float32
    backend: Backend | None = None

    @nn.compact
    def __call__(
        self,
        latent: Float[Array, "b h w c"],
        timestep: Num[Array, "#b"],
        cross: AttentionRule,
        own: AttentionRule = self_attention,
    ) -> Float[Array, "b h w c2"]:
        """Predicts in float32, computing in `dtype`.

        Args:
          latent: sides are multiples of 2^(levels - 1).
          timestep: one for all or one per example.
          cross: rule of the cross-attention layers, text bound.
          own: rule of the self-attention layers.
        """
        config, last = self.config, len(self.config.channels) - 1
        features = sinusoidal(
            timestep,
            config.channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        time = TimeEmbedding(4 * config.channels[0], self.dtype, name="time_embedding")(
            features.astype(self.dtype)
        )
        x = conv(config.channels[0], dtype=self.dtype, name="conv_in")(latent)
        skips, blocks = [x], 0

        def shape_of(level: int, name: str) -> dict[str, Any]:
            return {
                "features": config.channels[level],
                "heads": config.heads[level],
                "attends": config.attends[level],
                "first_block": blocks,
                "config": config,
                "dtype": self.dtype,
                "backend": self.backend,
                "name": name,
            }

        for i in range(last + 1):
            level = DownLevel(**shape_of(i, f"down_blocks_{i}"), downsamples=i < last)
            x, new = level(x, time, cross, own)
            skips += new
            blocks += config.layers_per_block * config.attends[i]
        x = MidLevel(**shape_of(last, "mid_block"))(x, time, cross, own)
        blocks += 1
        for i in range(last + 1):
            j = last - i
            level = UpLevel(**shape_of(j, f"up_blocks_{i}"), upsamples=i < last)
            x = level(x, skips, time, cross, own)
            blocks += (config.layers_per_block + 1) * config.attends[j]
        x = nn.silu(GroupNorm(config.norm_groups, config.norm_eps, name="conv_norm_out")(x))
        x = conv(config.out_channels, dtype=self.dtype, name="conv_out")(x)
        return x.astype(jnp.float32)

    def example_inputs(self) -> tuple[Any, ...]:
        """Arguments of the smallest call, for `expected_params`."""
        side = 2 ** (len(self.config.channels) - 1)
        states = jnp.zeros((1, 1, self.config.context_width))
        latent = jnp.zeros((1, side, side, self.config.in_channels))
        return latent, jnp.zeros((1,), jnp.int32), text_attention(states)
