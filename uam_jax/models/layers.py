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


def at_least(*arrays: Array | None, dtype: Any) -> list[Array | None]:
    """`promote_dtype` of a layer that computes in its input's number format where that is more precise than its own."""
    [inputs, *_] = arrays
    assert inputs is not None
    return promote_dtype(*arrays, dtype=jnp.promote_types(dtype, inputs.dtype))


class ToHeads(Dense):
    """A linear layer to the channels of several heads."""

    heads: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n heads d"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        cast: Any = self.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x, kernel, bias = cast
        # In one product: cut into heads afterwards, a TPU would move all of the result.
        out = jnp.einsum("bnc,chd->bnhd", x, kernel.reshape(len(kernel), self.heads, -1))
        return out if bias is None else out + bias.reshape(self.heads, -1)


class FromHeads(Dense):
    """A linear layer from the channels of several heads."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n heads d"]) -> Float[Array, "b n c"]:
        shape = (x.shape[-2] * x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (self.features,))
        cast: Any = self.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x, kernel, bias = cast
        return jnp.einsum("bnhd,hdc->bnc", x, kernel.reshape(*x.shape[-2:], -1)) + bias


class Conv(Weighted):
    """A convolution over NHWC with a square kernel; `padding` pixels on each side, or "SAME"."""

    features: int
    size: int = 3
    stride: int = 1
    padding: Any = "SAME"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        shift: Float[Array, "#b #h #w d"] | Float[Array, " d"] | None = None,
    ) -> Float[Array, "b h2 w2 d"]:
        """Convolves; a `shift` of the features is added to their bias."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        # The sum of two vectors first: as a sum of pictures the shift would be written out for every pixel.
        bias = bias if shift is None else bias + shift
        return convolve(x, kernel, (self.stride, self.stride), self.padding) + bias


class Embed(Weighted, nn.Embed):
    """A table of vectors, looked up by index."""


class GroupNorm(Weighted):
    """Group normalisation in float32, returned in the input's dtype.

    The statistics of a group are kept for each of its channels: the picture itself is never laid out by groups, which
    would move all of it.

    Attributes:
      groups: of channels.
      epsilon: added to the variance.
      activation: of the result, before it is rounded.
    """

    groups: int
    epsilon: float
    activation: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n c"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(jnp.float32)
        pixels = x.reshape(x.shape[0], -1, x.shape[-1])
        mean, variance = self.moments(pixels)
        out = (pixels - mean) * (lax.rsqrt(variance + self.epsilon) * scale) + bias
        out = self.activation(out) if self.activation else out
        return out.astype(x.dtype).reshape(x.shape)

    def moments(
        self, pixels: Float[Array, "b n c"]
    ) -> tuple[Float[Array, "b 1 c"], Float[Array, "b 1 c"]]:
        """Mean and variance of each channel's group; `vae_tiles` replaces them for a part of a picture."""
        wide = pixels.astype(jnp.float32)

        def average(x: Array) -> Array:
            return self.over_groups(x.mean(axis=1, keepdims=True))

        mean = average(wide)
        if pixels.dtype == jnp.float32:
            # Two passes: E[x²] - E[x]² would lose half the digits.
            return mean, average(jnp.square(wide - mean))
        # One pass over the memory: what is lost is less than what half precision has rounded.
        return mean, jnp.maximum(average(jnp.square(wide)) - jnp.square(mean), 0)

    def over_groups(self, channels: Float[Array, "b 1 c"]) -> Float[Array, "b 1 c"]:
        """Averages over the channels of each group."""
        b, _, c = channels.shape
        grouped = channels.reshape(b, self.groups, -1).mean(axis=-1, keepdims=True)
        return jnp.broadcast_to(grouped, (b, self.groups, c // self.groups)).reshape(b, 1, c)


class LayerNorm(Weighted, nn.LayerNorm):
    """Layer normalisation in float32, returned in the input's dtype."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    # Two passes in every number format: XLA makes one kernel of them, which keeps a row; of one pass it makes two.
    use_fast_variance: bool = False

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        return super().__call__(x).astype(x.dtype)


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
        h, shift = GroupNorm(self.groups, self.epsilon, nn.silu, name="norm1")(x), None
        if time is not None:
            shift = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(time))
            # One time for all examples; with a time for each, JAX broadcasts the sum of bias and shift.
            shift = shift[0] if len(shift) == 1 else shift[:, None, None]
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h, shift)
        h = GroupNorm(self.groups, self.epsilon, nn.silu, name="norm2")(h)
        h = Conv(self.features, dtype=self.dtype, name="conv2")(h)
        if change is not None:
            h = change(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halves the sides; `padding` is symmetric in the U-Net, bottom and right only in the VAE."""

    padding: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return Conv(x.shape[-1], 3, 2, self.padding, self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles the sides (nearest neighbour), then convolves."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return Conv(x.shape[-1], dtype=self.dtype, name="conv")(x)


def expected_params(module: nn.Module) -> Params:
    """The names, shapes and dtypes that `module` needs, without computing anything.

    Returns:
      A nested dict of `jax.ShapeDtypeStruct`.
    """
    inputs = module.example_inputs()  # pyright: ignore[reportAttributeAccessIssue]
    _, variables = jax.eval_shape(lambda: module.apply({}, *inputs, mutable=["params"]))
    return variables["params"]
