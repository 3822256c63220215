"""softmax(QKᵀ/√d)V by the implementation that suits its shape, dtype and platform."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from uam_jax.models.kernels.flash import flash_attention
from uam_jax.runtime import platforms
from uam_jax.runtime.platforms import Platform

Backend = Literal["cudnn", "flash", "xla", "chunked"]

_MOST_LOGITS = {"cpu": 2**23}
"""Logits held in memory at once: 32 MiB in float32. With many more, a CPU is several times slower."""
_MOST_ON_ACCELERATORS = 2**27
"""512 MiB in float32: enough that every chunk's product fills the card, and little of the memory of a T4."""
_MOST_ON_TPU = 2**24
"""64 MiB in float32, which a TPU's compiler keeps in the chip's vector memory (128 MiB) from one product to the next.

With more it writes them to the main memory, and the kernel is several times as fast.
"""


def attention_maps(
    q: Float[Array, "b n heads d"], k: Float[Array, "#b s heads d"]
) -> Float[Array, "b heads n s"]:
    """softmax(QKᵀ/√d) in float32; one row of keys may serve all."""
    k = jnp.broadcast_to(k, (q.shape[0], *k.shape[1:]))
    q, k = _operands(q, k)
    logits = jnp.einsum("bnhd,bshd->bhns", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(q.shape[-1] ** -0.5 * logits, axis=-1)


def attend(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "#b s heads d"],
    v: Float[Array, "#b s heads d"],
    *,
    backend: Backend | None = None,
) -> Float[Array, "b n heads d"]:
    """softmax(QKᵀ/√d)V with float32 logits and softmax; one row of keys and values may serve all.

    Without a `backend`, `attention_backend` chooses it.
    """
    k, v = (jnp.broadcast_to(x, (q.shape[0], *x.shape[1:])) for x in (k, v))
    platform = platforms.current()
    if backend is None:
        backend = attention_backend(q.shape, q.dtype, platform, keys=k.shape[1])
    chunk = max(1, math.isqrt(_most_logits(platform) // (q.shape[0] * q.shape[2])))
    out = _attend(*_operands(q, k, v), backend, chunk if backend == "chunked" else None)
    return out.astype(q.dtype)


def _operands(*arrays: Array) -> tuple[Array, ...]:
    """The operands of products with float32 sums, which XLA's CPU does not have for float16."""
    if platforms.current().name == "cpu" and arrays[0].dtype == jnp.float16:
        return tuple(x.astype(jnp.float32) for x in arrays)
    return arrays


def _most_logits(platform: Platform) -> int:
    return _MOST_LOGITS.get(platform.name, _MOST_ON_ACCELERATORS)


# Jitted, so that layers of one shape are traced once.
@functools.partial(jax.jit, static_argnames=("backend", "chunk"))
def _attend(q: Array, k: Array, v: Array, backend: Backend, chunk: int | None) -> Array:
    """`attend` of operands; a result in float32 except from the fused kernels."""
    if backend == "flash":
        return flash_attention(q, k, v)
    if backend == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if chunk:
        return _attend_in_chunks(q, k, v, chunk)
    weights = attention_maps(q, k).astype(v.dtype)
    return jnp.einsum("bhns,bshd->bnhd", weights, v, preferred_element_type=jnp.float32)


def attention_backend(
    shape: Sequence[int], dtype: Any, platform: Platform, *, keys: int | None = None
) -> Backend:
    """The implementation that computes `attend`: `"cudnn"` or `"flash"` (fused), `"xla"` or `"chunked"`.

    cuDNN's fused kernel takes half precision and head widths up to 128 that are multiples of 8, on NVIDIA's
    GPUs from compute capability 8.0 (Ampere) on. XLA holds all logits at once; where they are many, a TPU has the
    kernel of `flash_attention`, and elsewhere they are computed in chunks.

    Source: cuDNN's support matrix of scaled dot product attention.

    Args:
      shape: of the queries, (b, n, heads, d).
      dtype: of the queries.
      platform: that computes it.
      keys: how many there are; as many as queries if not given.
    """
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.float16), jnp.dtype(jnp.bfloat16))
    batch, queries, heads, width = shape
    fused = platform.capability is not None and platform.capability >= (8, 0)
    if fused and half and width <= 128 and width % 8 == 0:
        return "cudnn"
    logits = batch * heads * queries * (queries if keys is None else keys)
    if platform.name == "tpu":
        return "flash" if logits > _MOST_ON_TPU else "xla"
    return "chunked" if logits > _most_logits(platform) else "xla"


def _attend_in_chunks(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b s heads d"],
    v: Float[Array, "b s heads d"],
    chunk: int,
) -> Float[Array, "b n heads d"]:
    """softmax(QKᵀ/√d)V in float32 from at most `chunk` queries and `chunk` keys at a time.

    Source: the softmax of a stream, Milakov and Gimelshein 2018 (arXiv 1805.02867), algorithm 3.
    """
    b, n, heads, d = q.shape
    real = jnp.ones((1, k.shape[1]), bool)
    stream = tuple(_split(x, chunk) for x in (k, v, real))

    def attend(q: Array) -> Array:
        def add(state: tuple[Array, ...], given: tuple[Array, ...]) -> tuple[Any, None]:
            (highest, total, out), (k, v, real) = state, given
            logits = jnp.einsum("bnhd,bshd->bhns", q, k, preferred_element_type=jnp.float32)
            logits = jnp.where(real, d**-0.5 * logits, -jnp.inf)
            higher = jnp.maximum(highest, logits.max(axis=-1))
            weights, kept = jnp.exp(logits - higher[..., None]), jnp.exp(highest - higher)
            part = jnp.einsum(
                "bhns,bshd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
            )
            total = kept * total + weights.sum(axis=-1)
            return (higher, total, kept[..., None] * out + part), None

        # Made from the queries: under shard_map the state must vary over devices as they do.
        out = jnp.zeros_like(jnp.moveaxis(q, 1, 2), jnp.float32)
        none = (out[..., 0] - jnp.inf, out[..., 0], out)
        (_, total, out), _ = lax.scan(add, none, stream)
        return out / total[..., None]

    out = jnp.moveaxis(lax.map(attend, _split(q, chunk)), (0, 3), (1, 2))
    return out.reshape(b, -1, heads, d)[:, :n]


def _split(x: Shaped[Array, "b n *rest"], chunk: int) -> Shaped[Array, "chunks b size *rest"]:
    """Equal parts of axis 1 of at most `chunk`, the last one filled up with zeros."""
    count = -(-x.shape[1] // chunk)
    size = -(-x.shape[1] // count)
    missing = count * size - x.shape[1]
    filled = jnp.pad(x, [(0, missing) if axis == 1 else (0, 0) for axis in range(x.ndim)])
    return jnp.moveaxis(filled.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)
