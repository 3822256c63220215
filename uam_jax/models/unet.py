"""The U-Net: (latent, timestep, text) -> noise or velocity, as Stable Diffusion 1.x and 2.x lay it out."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

from uam_jax.models.attention import Attention
from uam_jax.models.configs import UNetConfig
from uam_jax.models.kernels.attention import Backend
from uam_jax.models.layers import (
    Conv,
    Dense,
    Downsample,
    GroupNorm,
    LayerNorm,
    ResnetBlock,
    Upsample,
)
from uam_jax.models.rules import RuleCalls
from uam_jax.types import PLAIN, Part, Rules, Site, Taps


def sites_of(config: UNetConfig) -> tuple[Site, ...]:
    """Where a U-Net of this shape calls rules, in execution order.

    With SD's shape the transformer blocks are: down 0-5, mid 6, up 7-15.
    """
    levels, layers = range(len(config.channels)), config.layers_per_block
    resnets: list[tuple[Part, int, bool]] = [
        *[("down", level, config.attends[level]) for level in levels for _ in range(layers)],
        *[("middle", levels[-1], attends) for attends in (True, False)],
        *[
            ("up", level, config.attends[level])
            for level in levels[::-1]
            for _ in range(layers + 1)
        ],
    ]
    sites, block = list[Site](), 0
    for number, (part, level, attends) in enumerate(resnets):
        channels = config.channels[level]
        sites.append(Site(number, level, "residual", channels, part))
        if attends:
            sites.append(Site(block, level, "own", channels, part))
            sites.append(Site(block, level, "cross", channels, part))
            block += 1
    return tuple(sites)


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
        if gate.dtype == jnp.float32:
            return value * nn.gelu(gate, approximate=False)
        # JAX's GELU is by erfc, exact far below zero and several times the work of erf; half precision cannot tell.
        wide = gate.astype(jnp.float32)
        gelu = 0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))
        return (value.astype(jnp.float32) * gelu).astype(value.dtype)


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
    dtype: Any
    backend: Backend | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], rules: RuleCalls) -> Float[Array, "b n c"]:
        for name, norm in (("attn1", "norm1"), ("attn2", "norm2")):
            site = Attention(
                *rules.next_site(), self.heads, self.dtype, backend=self.backend, name=name
            )
            x = x + rules.attention(site, LayerNorm(name=norm)(x))
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(name="norm3")(x))


class Transformer(nn.Module):
    """A transformer block over the picture's pixels, with projections and a shortcut around it."""

    heads: int
    groups: int
    dtype: Any
    backend: Backend | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], rules: RuleCalls) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        hidden = GroupNorm(self.groups, 1e-6, name="norm")(x).reshape(b, h * w, c)
        # SD 1.x saves these two as 1x1 convolutions: the same computation, another weight shape.
        hidden = Dense(c, dtype=self.dtype, name="proj_in")(hidden)
        block = TransformerBlock(self.heads, self.dtype, self.backend, name="transformer_blocks_0")
        hidden = Dense(c, dtype=self.dtype, name="proj_out")(block(hidden, rules))
        return x + hidden.reshape(b, h, w, c)


class _Level(nn.Module):
    """ResNet blocks of one resolution, each followed by a transformer where the level attends."""

    level: int
    config: UNetConfig
    dtype: Any
    backend: Backend | None = None

    @property
    def attends(self) -> bool:
        return self.config.attends[self.level]

    def resnet(self, index: int, x: Array, time: Array, rules: RuleCalls) -> Array:
        block = ResnetBlock(
            self.config.channels[self.level],
            self.config.norm_groups,
            self.config.norm_eps,
            self.dtype,
            name=f"resnets_{index}",
        )
        return block(x, time, rules.residual)

    def transformer(self, index: int, x: Array, rules: RuleCalls) -> Array:
        block = Transformer(
            self.config.heads[self.level],
            self.config.norm_groups,
            self.dtype,
            self.backend,
            name=f"attentions_{index}",
        )
        return block(x, rules)


class DownLevel(_Level):
    """Contracting level; returns its output and the skips that the matching up level takes."""

    downsamples: bool = True

    @nn.compact
    def __call__(self, x: Array, time: Array, rules: RuleCalls) -> tuple[Array, list[Array]]:
        skips = []
        for i in range(self.config.layers_per_block):
            x = self.resnet(i, x, time, rules)
            if self.attends:
                x = self.transformer(i, x, rules)
            skips.append(x)
        if self.downsamples:
            x = Downsample(1, self.dtype, name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class MidLevel(_Level):
    """ResNet block, transformer, ResNet block."""

    @nn.compact
    def __call__(self, x: Array, time: Array, rules: RuleCalls) -> Array:
        x = self.transformer(0, self.resnet(0, x, time, rules), rules)
        return self.resnet(1, x, time, rules)


class UpLevel(_Level):
    """Expanding level; takes its skips from the end of the list."""

    upsamples: bool = True

    @nn.compact
    def __call__(self, x: Array, skips: list[Array], time: Array, rules: RuleCalls) -> Array:
        for i in range(self.config.layers_per_block + 1):
            x = self.resnet(i, jnp.concatenate([x, skips.pop()], axis=-1), time, rules)
            if self.attends:
                x = self.transformer(i, x, rules)
        return Upsample(self.dtype, name="upsamplers_0")(x) if self.upsamples else x


class UNet(nn.Module):
    """The network that predicts noise or velocity.

    Attributes:
      config: its shape.
      dtype: of the computation.
      backend: of attention; None: the best for each level (`kernels.attention.attention_backend`).
    """

    config: UNetConfig
    dtype: Any = jnp.float32
    backend: Backend | None = None

    @nn.compact
    def __call__(
        self,
        latent: Float[Array, "b h w c"],
        timestep: Num[Array, "#b"],
        context: Float[Array, "#b s e"],
        rules: Rules = PLAIN,
    ) -> tuple[Float[Array, "b h w c2"], Taps]:
        """Predicts in float32, computing in `dtype`.

        Args:
          latent: sides are multiples of 2^(levels - 1).
          timestep: one for all or one per example.
          context: the text's states, of every example or one for all.
          rules: of the attention layers and the ResNet blocks.

        Returns:
          The prediction, and the sums of what the rules tapped.
        """
        config, last = self.config, len(self.config.channels) - 1
        calls = RuleCalls(rules, context.astype(self.dtype), sites_of(config))
        features = sinusoidal(
            timestep,
            config.channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        time = TimeEmbedding(4 * config.channels[0], self.dtype, name="time_embedding")(
            features.astype(self.dtype)
        )
        x = Conv(config.channels[0], dtype=self.dtype, name="conv_in")(latent)
        skips, shape = [x], (config, self.dtype, self.backend)
        for i in range(last + 1):
            level = DownLevel(i, *shape, downsamples=i < last, name=f"down_blocks_{i}")
            x, new = level(x, time, calls)
            skips += new
        x = MidLevel(last, *shape, name="mid_block")(x, time, calls)
        for i in range(last + 1):
            level = UpLevel(last - i, *shape, upsamples=i < last, name=f"up_blocks_{i}")
            x = level(x, skips, time, calls)
        x = GroupNorm(config.norm_groups, config.norm_eps, nn.silu, name="conv_norm_out")(x)
        x = Conv(config.out_channels, dtype=self.dtype, name="conv_out")(x)
        return x.astype(jnp.float32), calls.taps

    def example_inputs(self) -> tuple[Any, ...]:
        """Arguments of the smallest call, for `expected_params`."""
        side = 2 ** (len(self.config.channels) - 1)
        states = jnp.zeros((1, 1, self.config.context_width))
        latent = jnp.zeros((1, side, side, self.config.in_channels))
        return latent, jnp.zeros((1,), jnp.int32), states
