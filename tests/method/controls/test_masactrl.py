"""Mutual self-attention on an attention site small enough to redo in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.method.controls.masactrl import MasaCtrl, mutual_self_attention, source_of_rows
from uam_jax.method.plan import Row
from uam_jax.types import Rules

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


GUIDED = [Row("target", "null", "unguided"), Row("target", "target", "guided")]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([Row("source", "null"), Row("target", "target")], (0, 1, 0, 1)),
        ([Row("source", "null"), *GUIDED], (0, 1, 0, 1, 0, 1)),
        (
            [Row("source", "null", "unguided"), Row("source", "source"), *GUIDED],
            (0, 1, 2, 3, 0, 1, 2, 3),
        ),
        # Whatever the order of the rows.
        ([*reversed(GUIDED), Row("source", "source"), Row("source", "null", "unguided")],
         (4, 5, 6, 7, 4, 5, 6, 7)),
    ],
)  # fmt: skip
def test_halves_take_from_their_own_half(rows: list[Row], expected: tuple[int, ...]) -> None:
    assert source_of_rows(rows, 2) == expected


@pytest.mark.parametrize(
    ("start", "end", "expected"), [(4, 1000, range(4, 50)), (4, 20, range(4, 20)), (60, 70, ())]
)
def test_the_window_ends_with_the_steps(start: int, end: int, expected: range) -> None:
    control = MasaCtrl(step_start=start, step_end=end)
    assert [list(window) for window in control.windows(50).values()] == [list(expected)]


def test_rules_hold_in_the_window_only(x: jax.Array) -> None:
    control, rows = MasaCtrl(block_start=0, block_end=1), [Row("source", "null"), *GUIDED]
    (name,) = control.windows(50)
    assert control.rules(rows, 1, frozenset(), {}) == Rules()
    rule = control.rules(rows, 1, frozenset({name}), {}).own
    for block, source in ((0, x[0]), (1, x[2])):
        site = Site(block)
        found = rule(site, x[:3], x[:3])
        np.testing.assert_allclose(found[2], by_hand(site, x[2], source), atol=1e-5)
