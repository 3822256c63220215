"""Mutual self-attention on an attention site small enough to redo in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.method.controls import Moment
from uam_jax.method.controls.masactrl import MasaCtrl, mutual_self_attention
from uam_jax.method.controls.sharing import source_of_rows
from uam_jax.method.plan import Row
from uam_jax.types import Rules, Step

STEP = Step(jnp.int32(0), jnp.int32(1), *map(jnp.float32, (0.3, 0.7, 0.5, 0.5)))
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
    assert control.rules(rows, 1, {}, Moment(STEP, 50)) == Rules()
    rule = control.rules(rows, 1, {}, Moment(STEP, 50, frozenset({name}))).own
    for block, source in ((0, x[0]), (1, x[2])):
        site = Site(block)
        found = rule(site, x[:3], x[:3])
        np.testing.assert_allclose(found[2], by_hand(site, x[2], source), atol=1e-5)


def by_hand_of(site: Site, x: np.ndarray, keys: list[np.ndarray]) -> np.ndarray:
    """One query: what it gets from the pixels given."""
    wq, wk, wv, wo = (np.asarray(weight, np.float64) for weight in site.weights)
    out = np.zeros(HEADS * WIDTH)
    for head in range(HEADS):
        part = slice(head * WIDTH, (head + 1) * WIDTH)
        logits = (np.stack(keys) @ wk)[:, part] @ (x @ wq)[part] / WIDTH**0.5
        weights = np.exp(logits) / np.exp(logits).sum()
        out[part] = weights @ (np.stack(keys) @ wv)[:, part]
    return out @ wo


class ScaledSite(Site):
    """As the network's layers, with logits divided by the root of the width that they are given."""

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return super().attend(q / q.shape[-1] ** 0.5, k, v)


@pytest.mark.parametrize("union", [False, True])
def test_each_side_of_the_foreground_sees_its_own(x: jax.Array, union: bool) -> None:
    """Two examples of 2 x 3 pixels: of the first all is foreground in the source."""
    site, rows = ScaledSite(), (0, 1, 0, 1)
    foreground = np.ones((2, 2, 2, 3), np.float32)
    foreground[0, 1, 0] = 0  # target's first line
    foreground[1, 0, :, 1:] = 0  # the source's first column
    foreground[1, 1, 1, 1:] = 0
    rule = mutual_self_attention(
        rows, block_start=0, block_end=99, union=union, foreground=jnp.asarray(foreground)
    )
    found = np.asarray(rule(site, x[:4], x[:4]))
    flat, x = foreground.reshape(2, 2, TOKENS), np.asarray(x, np.float64)
    for example in (0, 1):
        plain = by_hand_of(site, x[example, 0], [*x[example]])
        np.testing.assert_allclose(found[example, 0], plain, atol=1e-4)
        for pixel in range(TOKENS):
            side = flat[example, 1, pixel]
            keys = [x[example, key] for key in np.flatnonzero(flat[example, 0] == side)]
            if union:
                own = np.flatnonzero(flat[example, 1] == side)
                keys += [x[2 + example, key] for key in own]
            # Where no pixel lies on its side, it sees all.
            expected = by_hand_of(site, x[2 + example, pixel], keys or [*x[example]])
            np.testing.assert_allclose(found[2 + example, pixel], expected, atol=1e-4)


def test_the_foreground_follows_the_layers_level() -> None:
    """A coarse map holds for all pixels below it, and of a fine one the majority counts."""

    def inside(foreground: jax.Array, level: int, layers: int) -> list:
        options = {"block_start": 0, "block_end": 99, "foreground": foreground, "level": level}
        pixels = 4 if layers == 0 else 1
        return mutual_self_attention((0, 0), **options)._inside(layers, pixels).tolist()

    assert inside(jnp.array([[[[1.0]], [[0.0]]]]), 1, 0) == [[[1, 1, 1, 1]], [[0, 0, 0, 0]]]
    fine = jnp.array([[[[1.0, 1], [0, 0]], [[1, 0], [0, 0]]]])
    assert inside(fine, 0, 1) == [[[1]], [[0]]]


WORDS = MasaCtrl(foreground="words", word_side=0.5)


def test_a_words_map_is_foreground_above_a_share_of_its_range() -> None:
    maps = jnp.array([[[[[2.0, 2.2], [2.3, 4.0]], [[1.0, 1.0], [1.0, 1.0]]]]])
    found = WORDS._of_words(maps)
    np.testing.assert_array_equal(found[0], [[[0, 1], [1, 1]], [[0, 0], [0, 0]]])
    assert [list(part) for part in WORDS.windows(6).values()] == [[4, 5], [0, 1, 2, 3, 4, 5]]
