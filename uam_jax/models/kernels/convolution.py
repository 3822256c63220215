"""Small convolutions as matrix products, where those are faster."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from uam_jax.runtime import platforms


def convolve(lhs: Array, rhs: Array, strides: Any, padding: Any, **options: Any) -> Array:
    """`lax.conv_general_dilated`; on a CPU, for a small picture, as one matrix product.

    Each pixel is joined with its neighbours, first those of its row and then the rows, in the kernel's own
    order: nothing of the weights is copied. XLA's CPU convolution takes up to twice as long on 8x8 pixels,
    which the embedded model has at most, and many times as long on 2x2.
    """
    margin = len(rhs) // 2
    same = padding == [(margin, margin)] * 2 or (padding == "SAME" and tuple(strides) == (1, 1))
    small = lhs.shape[1] * lhs.shape[2] <= 64 and lhs.dtype == jnp.float32
    if not (same and small and platforms.current().name == "cpu"):
        return lax.conv_general_dilated(lhs, rhs, strides, padding, **options)
    (_, h, w, _), (down, right) = lhs.shape, strides
    # Where a picture is one pixel high or wide, all but the kernel's middle meets padding.
    middle = slice(margin, margin + 1)
    kernel = rhs[middle if h == 1 else slice(None), middle if w == 1 else slice(None)]
    high, wide, c, d = kernel.shape
    rim = ((0, 0), (high // 2, high // 2), (wide // 2, wide // 2), (0, 0))
    x = jnp.pad(lhs, rim)
    x = jnp.concatenate([x[:, :, j : j + w : right] for j in range(wide)], axis=-1)
    x = jnp.concatenate([x[:, i : i + h : down] for i in range(high)], axis=-1)
    return jnp.dot(x, kernel.reshape(high * wide * c, d), precision=options.get("precision"))
