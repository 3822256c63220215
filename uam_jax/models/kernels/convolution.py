"""Small convolutions as matrix products, where those are faster."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from uam_jax.runtime import platforms


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "high wide c d"],
    strides: tuple[int, int],
    padding: Any,
) -> Float[Array, "b h2 w2 d"]:
    """A convolution over NHWC; on a CPU, for a small picture, as one matrix product.

    Each pixel is joined with its neighbours, first those of its row and then the rows, in the kernel's own
    order: nothing of the weights is copied. XLA's CPU convolution takes up to twice as long on 8x8 pixels,
    which the embedded model has at most, and many times as long on 2x2.
    """
    margin = len(kernel) // 2
    same = padding in (margin, [(margin, margin)] * 2) or (padding == "SAME" and strides == (1, 1))
    platform = platforms.current().name
    if platform != "cpu" or not same or x.shape[1] * x.shape[2] > 64 or x.dtype != jnp.float32:
        if isinstance(padding, int):
            padding = [(padding, padding)] * 2
        layout = "HWIO"
        if platform == "gpu" and x.dtype != jnp.float32:
            # cuDNN's order, in which a loop lays its kernels out once: see `runtime.loops.scan`.
            kernel, layout = jnp.transpose(kernel, (3, 0, 1, 2)), "OHWI"
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", layout, "NHWC")
        )
    (_, h, w, _), (down, right) = x.shape, strides
    # Where a picture is one pixel high or wide, all but the kernel's middle meets padding.
    middle = slice(margin, margin + 1)
    kernel = kernel[middle if h == 1 else slice(None), middle if w == 1 else slice(None)]
    high, wide, c, d = kernel.shape
    rim = ((0, 0), (high // 2, high // 2), (wide // 2, wide // 2), (0, 0))
    x = jnp.pad(x, rim)
    x = jnp.concatenate([x[:, :, j : j + w : right] for j in range(wide)], axis=-1)
    x = jnp.concatenate([x[:, i : i + h : down] for i in range(high)], axis=-1)
    return jnp.dot(x, kernel.reshape(high * wide * c, d))
