"""The pieces that U-Net and VAE share: float32 norms, 3x3 convolutions, ResNet block, resampling."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from uam_jax.types import Params


class GroupNorm(nn.Module):
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
        """Mean and variance of each group; where `grouped` is but a part of a picture, `tiles` gives the whole's."""
        # Two passes: E[x²] - E[x]² would lose half the digits.
        mean = grouped.mean(axis=(1, 3), keepdims=True)
        return mean, jnp.square(grouped - mean).mean(axis=(1, 3), keepdims=True)


class LayerNorm(nn.Module):
    """Layer normalisation in float32, returned in the input's dtype."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        norm = nn.LayerNorm(epsilon=self.epsilon, dtype=jnp.float32, use_fast_variance=False)
        nn.share_scope(self, norm)
        return norm(x).astype(x.dtype)


def _convolve(lhs: Array, rhs: Array, strides: Any, padding: Any, **options: Any) -> Array:
    """`lax.conv_general_dilated`, as matrix products where the picture is tiny.

    XLA's CPU convolution is many times slower than a product on 4x4 pixels and fewer, which the
    embedded model's inner levels have.
    """
    tiny = lhs.shape[1] * lhs.shape[2] <= 16 and rhs.shape[:2] == (3, 3)
    if not tiny or tuple(strides) != (1, 1) or padding not in ("SAME", [(1, 1), (1, 1)]):
        return lax.conv_general_dilated(lhs, rhs, strides, padding, **options)
    b, h, w, c = lhs.shape
    precision = options.get("precision")
    neighbours = jnp.asarray(_neighbours(h, w), lhs.dtype)
    patches = jnp.einsum("mn,bnc->bmc", neighbours, lhs.reshape(b, h * w, c), precision=precision)
    flat = jnp.dot(patches.reshape(b * h * w, 9 * c), rhs.reshape(9 * c, -1), precision=precision)
    return flat.reshape(b, h, w, -1)


def _neighbours(h: int, w: int) -> np.ndarray:
    """Row 9·p + k of this 0/1 matrix picks the k-th pixel of the 3x3 around pixel p, or nothing."""
    row, column, i, j = np.indices((h, w, 3, 3))
    picked = np.zeros((h, w, 3, 3, h + 2, w + 2), np.float32)
    picked[row, column, i, j, row + i, column + j] = 1
    return picked[..., 1:-1, 1:-1].reshape(h * w * 9, h * w)


def conv3x3(
    features: int, *, dtype: Any, stride: int = 1, padding: Any = 1, name: str | None = None
) -> nn.Conv:
    """A 3x3 convolution over NHWC; `padding` pixels on every side unless given per side."""
    return nn.Conv(
        features,
        (3, 3),
        strides=stride,
        padding=padding,
        dtype=dtype,
        conv_general_dilated=_convolve,
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
        self, x: Float[Array, "b h w c"], time: Float[Array, "#b e"] | None = None
    ) -> Float[Array, "b h w d"]:
        h = nn.silu(GroupNorm(self.groups, self.epsilon, name="norm1")(x))
        h = conv3x3(self.features, dtype=self.dtype, name="conv1")(h)
        if time is not None:
            shift = nn.Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(time))
            h = h + shift[:, None, None, :]
        h = nn.silu(GroupNorm(self.groups, self.epsilon, name="norm2")(h))
        h = conv3x3(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halves the sides; `padding` is symmetric in the U-Net, bottom and right only in the VAE."""

    padding: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return conv3x3(x.shape[-1], dtype=self.dtype, stride=2, padding=self.padding, name="conv")(
            x
        )


class Upsample(nn.Module):
    """Doubles the sides (nearest neighbour), then convolves."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return conv3x3(x.shape[-1], dtype=self.dtype, name="conv")(x)


def expected_params(module: nn.Module) -> Params:
    """The names, shapes and dtypes that `module` needs, without computing anything.

    Returns:
      A nested dict of `jax.ShapeDtypeStruct`.
    """
    inputs = module.example_inputs()  # pyright: ignore[reportAttributeAccessIssue]
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]
