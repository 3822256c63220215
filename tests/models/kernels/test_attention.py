"""Attention in chunks: the definition's result, where the logits would fill the memory."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from random_networks import assert_close, normal

from uam_jax.models.kernels import attention
from uam_jax.runtime.platforms import Platform, tracing_for


def definition(q: Array, k: Array, v: Array) -> np.ndarray:
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("bnhd,bshd->bhns", q, k) / np.sqrt(q.shape[-1])
    maps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.einsum("bhns,bshd->bnhd", maps / maps.sum(axis=-1, keepdims=True), v)


@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (37, 53), (70, 5), (3, 41), (1, 1)])
def test_chunks_add_up_to_the_definition(queries: int, keys: int) -> None:
    q, k, v = normal(0, 2, queries, 3, 8), normal(1, 2, keys, 3, 8), normal(2, 2, keys, 3, 8)
    chunked = attention._attend_in_chunks(q, k, v, 16)
    assert_close(chunked, definition(q, k, v), 1e-5)


def test_logits_may_be_far_apart_and_rise_from_chunk_to_chunk() -> None:
    q, v = jnp.ones((1, 5, 1, 4)), normal(2, 1, 60, 1, 4)
    k = jnp.broadcast_to(jnp.linspace(-3000, 3000, 60)[None, :, None, None], (1, 60, 1, 4))
    for keys in (k, k[:, ::-1]):
        assert_close(attention._attend_in_chunks(q, keys, v, 16), definition(q, keys, v), 1e-5)


@pytest.mark.parametrize(
    ("dtype", "near"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2), (jnp.float16, 2e-3)]
)
def test_many_logits_are_chunked(monkeypatch: Any, dtype: Any, near: float) -> None:
    q, k, v = normal(0, 2, 37, 3, 8), normal(1, 1, 53, 3, 8), normal(2, 1, 53, 3, 8)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    calls, chunked = [], attention._attend_in_chunks

    def counting(q: Array, k: Array, v: Array, chunk: int) -> Array:
        calls.append(2 * 3 * chunk * chunk)
        return chunked(q, k, v, chunk)

    monkeypatch.setattr(attention, "_attend_in_chunks", counting)
    for most in (2 * 3 * 37 * 53, 2 * 3 * 37 * 53 - 1, 1000, 1):
        monkeypatch.setitem(attention._MOST_LOGITS, "cpu", most)
        attention._attend.clear_cache()  # it is traced once for each shape
        out = attention.attend(q, k, v)
        assert out.dtype == dtype
        assert_close(out, definition(q, *np.broadcast_arrays(k, v)), near)
    assert len(calls) == 3 and calls[1] <= 1000


HOPPER, AMPERE, TURING, VOLTA = (
    Platform("gpu", capability) for capability in ((9, 0), (8, 0), (7, 5), (7, 0))
)
AMD, OTHER, CPU = Platform("gpu"), Platform("tpu"), Platform("cpu")


@pytest.mark.parametrize(
    ("shape", "dtype", "platform", "backend"),
    [
        ((1, 64, 8, 40), jnp.bfloat16, HOPPER, "cudnn"),
        ((1, 64, 8, 128), jnp.float16, AMPERE, "cudnn"),
        ((1, 64, 8, 40), jnp.float16, TURING, "xla"),
        ((1, 64, 8, 40), jnp.float16, VOLTA, "xla"),
        ((1, 64, 8, 40), jnp.bfloat16, AMD, "xla"),
        ((1, 64, 8, 40), jnp.bfloat16, OTHER, "xla"),
        ((1, 64, 8, 40), jnp.float32, HOPPER, "xla"),
        ((1, 64, 8, 136), jnp.bfloat16, HOPPER, "xla"),
        ((1, 64, 8, 20), jnp.bfloat16, HOPPER, "xla"),
    ],
)
def test_fused_attention_only_where_it_works(
    shape: tuple, dtype: Any, platform: Platform, backend: str
) -> None:
    assert attention.attention_backend(shape, dtype, platform) == backend


@pytest.mark.parametrize(
    ("shape", "keys", "dtype", "platform", "backend"),
    [
        ((1, 4096, 8, 40), None, jnp.float32, CPU, "chunked"),
        ((1, 4096, 8, 40), 77, jnp.float32, CPU, "xla"),
        ((1, 1024, 8, 40), None, jnp.float32, OTHER, "xla"),
        ((3, 4096, 8, 40), None, jnp.float16, TURING, "chunked"),
        ((8, 65536, 8, 40), 77, jnp.float32, AMPERE, "chunked"),
        ((8, 65536, 8, 40), None, jnp.bfloat16, AMPERE, "cudnn"),
        ((8, 65536, 8, 40), None, jnp.float16, TURING, "chunked"),
        ((1, 65536, 1, 512), None, jnp.bfloat16, AMPERE, "chunked"),
        ((1, 256, 8, 160), None, jnp.bfloat16, OTHER, "xla"),
    ],
)
def test_chunked_where_logits_are_many_and_nothing_is_fused(
    shape: tuple, keys: int | None, dtype: Any, platform: Platform, backend: str
) -> None:
    assert attention.attention_backend(shape, dtype, platform, keys=keys) == backend


def test_logits_are_never_all_in_memory() -> None:
    x = jax.ShapeDtypeStruct((1, 4096, 8, 40), jnp.float32)
    memory = jax.jit(attention.attend).lower(x, x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * 4096**2 * 4 / 4


@pytest.mark.parametrize(("platform", "backend"), [(AMPERE, "cudnn"), (AMD, "xla"), (OTHER, "xla")])
def test_the_form_is_that_of_the_platform_traced_for(
    platform: Platform, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    monkeypatch.setattr(
        attention, "_attend", lambda q, k, v, backend, chunk: chosen.append(backend) or q
    )
    x = jax.ShapeDtypeStruct((1, 64, 8, 40), jnp.bfloat16)
    with tracing_for(platform):
        jax.eval_shape(attention.attend, x, x, x)
    assert chosen == [backend]


@pytest.mark.parametrize("shape", [(1, 64, 8, 40), (3, 4096, 8, 40), (1, 4096, 1, 512)])
def test_half_precision_without_a_fused_kernel_multiplies_in_half_precision(
    shape: tuple[int, ...],
) -> None:
    """Turing's and Volta's units multiply float16 eight times as fast as float32."""
    x = jax.ShapeDtypeStruct(shape, jnp.float16)
    with tracing_for(TURING):
        lowered = jax.jit(attention.attend).trace(x, x, x).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    products = re.findall(
        r"dot_general.* : \(tensor<(\S+)>, tensor<(\S+)>\) -> tensor<(\S+)>", text
    )
    assert len(products) == 2
    for left, right, result in products:
        assert left.endswith("f16") and right.endswith("f16") and result.endswith("f32")
    # The weights are cast to float16, and the result is; no operand is cast to float32.
    assert not re.search(r"stablehlo.convert .*f16>\) -> tensor<\S+f32>", text)
