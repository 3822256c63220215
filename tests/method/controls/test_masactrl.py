"""Mutual self-attention on an attention site small enough to redo in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.method.controls.masactrl import mutual_self_attention, source_of_rows

ROWS, TOKENS, HEADS, WIDTH = 5, 6, 2, 3


class Site:
    """One self-attention layer; remembers how many rows its keys and values were asked for."""

    level, kind, channels = 0, "own", HEADS * WIDTH

    def __init__(self, number: int = 10) -> None:
        self.number = number
        keys = jax.random.split(jax.random.key(0), 4)
        self.weights = [jax.random.normal(key, (HEADS * WIDTH, HEADS * WIDTH)) for key in keys]
        self.projected: list[int] = []

    def _heads(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        return (x @ weight).reshape(*x.shape[:2], HEADS, WIDTH)

    def query(self, x: jax.Array) -> jax.Array:
        return self._heads(x, self.weights[0])

    def key(self, context: jax.Array) -> jax.Array:
        self.projected.append(context.shape[0])
        return self._heads(context, self.weights[1])

    def value(self, context: jax.Array) -> jax.Array:
        self.projected.append(context.shape[0])
        return self._heads(context, self.weights[2])

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        logits = jnp.einsum("bnhd,bmhd->bhnm", q, k)
        return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v)

    def project(self, out: jax.Array) -> jax.Array:
        return out.reshape(*out.shape[:2], -1) @ self.weights[3]


def by_hand(site: Site, x: np.ndarray, source: np.ndarray) -> np.ndarray:
    """One row: queries of `x`, keys and values of `source`."""
    wq, wk, wv, wo = (np.asarray(weight, np.float64) for weight in site.weights)
    out = np.zeros((TOKENS, HEADS * WIDTH))
    for head in range(HEADS):
        part = slice(head * WIDTH, (head + 1) * WIDTH)
        logits = (x @ wq)[:, part] @ (source @ wk)[:, part].T
        weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        out[:, part] = weights @ (source @ wv)[:, part]
    return out @ wo


@pytest.fixture
def x() -> jax.Array:
    return 0.3 * jax.random.normal(jax.random.key(1), (ROWS, TOKENS, HEADS * WIDTH))


@pytest.mark.parametrize("source_of", [(0, 0, 0, 0, 0), (0, 1, 0, 1, 0), (4, 3, 2, 1, 0)])
def test_every_row_attends_to_its_source(x: jax.Array, source_of: tuple[int, ...]) -> None:
    site = Site()
    found = mutual_self_attention(source_of, block_start=10, block_end=16)(site, x, x)
    for row, source in enumerate(source_of):
        np.testing.assert_allclose(found[row], by_hand(site, x[row], x[source]), atol=1e-5)
    assert site.projected == [len(set(source_of))] * 2


@pytest.mark.parametrize(("block", "acts"), [(9, False), (10, True), (12, True), (13, False)])
def test_acts_in_its_blocks_only(x: jax.Array, block: int, acts: bool) -> None:
    site = Site(block)
    found = mutual_self_attention((0,) * ROWS, block_start=10, block_end=13)(site, x, x)
    source = x[0] if acts else x[4]
    np.testing.assert_allclose(found[4], by_hand(site, x[4], source), atol=1e-5)


@pytest.mark.parametrize(
    ("source_rows", "target_rows", "expected"),
    [
        (1, 1, (0, 1, 0, 1)),
        (1, 2, (0, 1, 0, 1, 0, 1)),
        (2, 2, (0, 1, 2, 3, 0, 1, 2, 3)),
    ],
)
def test_halves_take_from_their_own_half(
    source_rows: int, target_rows: int, expected: tuple[int, ...]
) -> None:
    assert source_of_rows(2, source_rows=source_rows, target_rows=target_rows) == expected
