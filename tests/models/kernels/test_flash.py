"""JAX's attention kernel for TPUs, interpreted on a CPU: the definition's result for any number of queries and keys."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.experimental.pallas import tpu
from random_networks import assert_close, normal

from uam_jax.models.kernels.attention import attend, attention_backend
from uam_jax.models.kernels.flash import flash_attention
from uam_jax.runtime.platforms import Platform, tracing_for

TPU = Platform("tpu")


def given(queries: int, keys: int, width: int, heads: int = 1) -> tuple[Array, Array, Array]:
    shapes = (queries, keys, keys)
    return tuple(normal(i, 1, count, heads, width) for i, count in enumerate(shapes))


def interpreted(function: Callable[..., Any], *arrays: Array) -> Any:
    with tpu.force_tpu_interpret_mode():
        return jax.tree.map(np.asarray, jax.jit(function)(*arrays))


SHAPES = [
    (1024, 2048, 40),  # whole blocks
    (4032, 4032, 40),  # 72 x 56 pixels, a photograph of 4:3
    (600, 77, 80),  # a text's tokens
    (130, 1100, 160),  # heads wider than a register's lanes, and not whole ones
    (1, 3, 8),
]


@pytest.mark.parametrize(("queries", "keys", "width"), SHAPES)
def test_any_length_gives_what_all_logits_give(queries: int, keys: int, width: int) -> None:
    q, k, v = given(queries, keys, width)
    plain = attend(q, k, v, backend="xla")
    assert_close(interpreted(flash_attention, q, k, v), plain, 1e-5)


@pytest.mark.parametrize(("queries", "keys", "width"), [(1024, 2048, 40), (130, 1100, 160)])
def test_in_bfloat16_it_is_as_near_to_float32_as_all_logits(
    queries: int, keys: int, width: int
) -> None:
    arrays = given(queries, keys, width)
    exact = np.asarray(attend(*arrays, backend="xla"))
    half = [x.astype(jnp.bfloat16) for x in arrays]

    def error(found: Any) -> float:
        return float(np.abs(np.asarray(found, np.float32) - exact).max())

    ours, plain = interpreted(flash_attention, *half), attend(*half, backend="xla")
    assert ours.dtype == jnp.bfloat16
    assert 0 < error(ours) <= 1.5 * error(plain)


def test_gradients_are_those_of_all_logits() -> None:
    arrays = given(300, 333, 40, heads=2)

    def gradients(attention: Callable[..., Array]) -> Callable[..., Any]:
        return jax.grad(lambda *given: jnp.sin(attention(*given)).sum(), (0, 1, 2))

    expected = gradients(lambda *given: attend(*given, backend="xla"))(*arrays)
    for ours, plain in zip(interpreted(gradients(flash_attention), *arrays), expected, strict=True):
        assert_close(ours, plain, 1e-5)


@pytest.mark.parametrize(
    ("shape", "keys", "backend"),
    [
        ((3, 4096, 8, 40), 4096, "flash"),
        ((3, 4032, 8, 40), 4032, "flash"),
        ((3, 4096, 8, 40), 77, "xla"),
        ((24, 4096, 8, 40), 77, "flash"),
        ((24, 256, 8, 160), 256, "xla"),
        ((1, 4096, 1, 512), 4096, "xla"),
        ((8, 4096, 1, 512), 4096, "flash"),
    ],
)
def test_the_kernel_is_for_logits_that_the_chip_cannot_hold(
    shape: tuple[int, ...], keys: int, backend: str
) -> None:
    assert attention_backend(shape, jnp.bfloat16, TPU, keys=keys) == backend


def test_a_program_for_tpus_holds_the_kernel_and_no_logits() -> None:
    x = jax.ShapeDtypeStruct((3, 4096, 8, 40), jnp.bfloat16)
    with tracing_for(TPU):
        text = jax.jit(attend).trace(x, x, x).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 1
    assert not re.search(r"4096x4096", text)
