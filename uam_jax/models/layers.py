"""The pieces that U-Net and VAE share: float32 norms, convolutions, ResNet block, resampling."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float

from uam_jax.models.kernels.convolution import convolve
from uam_jax.models.kernels.weighted import Weighted
from uam_jax.types import Params


class Dense(Weighted, nn.Dense):
    """A linear layer over the last axis."""


def _at_least(*arrays: Array | None, dtype: Any) -> list[Array | None]:
    [inputs, *_] = arrays
    assert inputs is not None
    return promote_dtype(*arrays, dtype=jnp.promote_types(dtype, inputs.dtype))


class PreciseDense(Dense):
    """A linear layer that computes in its input's number format where that is more precise than its own."""

    promote_dtype: Any = _at_least


class Conv(Weighted, nn.Conv):
    """A convolution; `conv` makes the usual one."""


class Embed(Weighted, nn.Embed):
    """A table of vectors, looked up by index."""


class GroupNorm(Weighted):
    """Group normalisation in float32, returned in the input's dtype."""

    groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        grouped = x.astype(jnp.float32).reshape(
            x.shape[0], -1, self.groups, channels // self.groups
        )
        mean, variance = self.moments(grouped)
        normed = ((grouped - mean) * lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)

    def moments(
        self, grouped: Float[Array, "b n groups d"]
    ) -> tuple[Float[Array, "b 1 groups 1"], Float[Array, "b 1 groups 1"]]:
        """Mean and variance of each group; `vae_tiles` replaces them where `grouped` is only a part of a picture."""
        # Two passes: E[x²] - E[x]² would lose half the digits.
        mean = grouped.mean(axis=(1, 3), keepdims=True)
        return mean, jnp.square(grouped - mean).mean(axis=(1, 3), keepdims=True)


class LayerNorm(Weighted, nn.LayerNorm):
    """Layer normalisation in float32, returned in the input's dtype."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    use_fast_variance: bool = False

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        return super().__call__(x).astype(x.dtype)


def conv(
    features: int,
    *,
    dtype: Any,
    size: int = 3,
    stride: int = 1,
    padding: Any = "SAME",
    name: str | None = None,
) -> Conv:
    """A convolution over NHWC with a square kernel; `padding` pixels as `nn.Conv` takes them."""
    return Conv(
        features,
        (size, size),
        strides=stride,
        padding=padding,
        dtype=dtype,
        conv_general_dilated=convolve,
        name=name,
    )


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, (+ time), norm, SiLU, conv, + shortcut."""

    features: int
    groups: int
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "#b e"] | None = None,
        change: Callable[[Array], Array] | None = None,
    ) -> Float[Array, "b h w d"]:
        """Applies the block.

        Args:
          x: hidden state.
          time: embedding of the time, for the U-Net's blocks.
          change: replaces the hidden state before the shortcut is added.
        """
        h = nn.silu(GroupNorm(self.groups, self.epsilon, name="norm1")(x))
        h = conv(self.features, dtype=self.dtype, name="conv1")(h)
        if time is not None:
            shift = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(time))
            h = h + shift[:, None, None, :]
        h = nn.silu(GroupNorm(self.groups, self.epsilon, name="norm2")(h))
        h = conv(self.features, dtype=self.dtype, name="conv2")(h)
        if change is not None:
            h = change(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, size=1, dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halves the sides; `padding` is symmetric in the U-Net, bottom and right only in the VAE."""

    padding: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return conv(x.shape[-1], dtype=self.dtype, stride=2, padding=self.padding, name="conv")(x)


class Upsample(nn.Module):
    """Doubles the sides (nearest neighbour), then convolves."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return conv(x.shape[-1], dtype=self.dtype, name="conv")(x)


def expected_params(module: nn.Module) -> Params:
    """The names, shapes and dtypes that `module` needs, without computing anything.

    Returns:
      A nested dict of `jax.ShapeDtypeStruct`.
    """
    inputs = module.example_inputs()  # pyright: ignore[reportAttributeAccessIssue]
    _, variables = jax.eval_shape(lambda: module.apply({}, *inputs, mutable=["params"]))
    return variables["params"]
