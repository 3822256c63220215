"""Mask rules on examples small enough to check by eye."""

import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.method.masks import (
    auto_mask,
    blend,
    dilate,
    edit_mask,
    otsu,
    quantiles,
    smooth,
    threshold,
)


def grid(*rows: str) -> jnp.ndarray:
    """(1, h, w, 1) from rows of digits."""
    return jnp.asarray([[int(digit) for digit in row] for row in rows], jnp.float32)[
        None, ..., None
    ]


def test_dilate_takes_the_square_around_a_pixel() -> None:
    dot = grid("00000", "00000", "00100", "00000", "00000")
    np.testing.assert_array_equal(dilate(dot, 0), dot)
    np.testing.assert_array_equal(dilate(dot, 1), grid("00000", "01110", "01110", "01110", "00000"))
    np.testing.assert_array_equal(dilate(dot, 2), jnp.ones_like(dot))


def test_dilate_stops_at_the_border_and_keeps_channels_and_examples_apart() -> None:
    corner, edge = grid("1000", "0000", "0000"), grid("0000", "0000", "0010")
    wide_corner, wide_edge = grid("1100", "1100", "0000"), grid("0000", "0111", "0111")
    nothing = jnp.zeros_like(corner)
    mask = jnp.concatenate(
        [jnp.concatenate([corner, nothing], -1), jnp.concatenate([nothing, edge], -1)]
    )
    expected = jnp.concatenate(
        [jnp.concatenate([wide_corner, nothing], -1), jnp.concatenate([nothing, wide_edge], -1)]
    )
    np.testing.assert_array_equal(dilate(mask, 1), expected)


def test_threshold_interpolates_over_pixels_and_channels_of_each_example() -> None:
    first = jnp.asarray([0.0, -1.0, 2.0, -3.0]).reshape(1, 1, 2, 2)
    difference = jnp.concatenate([first, 10 * first])
    level = threshold(difference, jnp.float32(0.5))
    assert level.shape == (2, 1, 1, 1)
    np.testing.assert_allclose(level.ravel(), [1.5, 15.0])
    np.testing.assert_allclose(threshold(difference, jnp.float32(0.9)).ravel(), [2.7, 27.0])


def test_threshold_is_numpys_quantile() -> None:
    difference = np.random.default_rng(0).normal(size=(3, 16, 16, 4))
    for q in (0.0, 0.37, 0.5, 1.0):
        expected = np.quantile(np.abs(difference).reshape(3, -1), q, axis=1)
        found = threshold(jnp.asarray(difference, jnp.float32), jnp.float32(q)).ravel()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


# |Δ| = 0…9 in two rows, sign mixed: the median is 4.5.
DIFFERENCE = grid("01234", "56789") * jnp.asarray([1.0, -1.0, 1.0, -1.0, 1.0])[:, None]


@pytest.mark.parametrize(
    ("rule", "quantile", "radius", "expected"),
    [
        # |Δ| > 9: nothing; |Δ| > 2·2.25: the second row.
        ("released", 0.5, 0, ("00000", "00000")),
        ("released", 0.25, 0, ("00000", "11111")),
        # |Δ| > 7.2, that is 8 and 9; dilated, their neighbours.
        ("released", 0.4, 0, ("00000", "00011")),
        ("released", 0.4, 1, ("00111", "00111")),
        # |Δ| <= 4.5 is preserved: the first row; dilated, both.
        ("algorithm1", 0.5, 0, ("00000", "11111")),
        ("algorithm1", 0.5, 1, ("00000", "00000")),
        # |Δ| <= 0.9 is the first pixel alone; dilated, the square at its corner.
        ("algorithm1", 0.1, 0, ("01111", "11111")),
        ("algorithm1", 0.1, 1, ("00111", "00111")),
    ],
)
def test_rules(rule: str, quantile: float, radius: int, expected: tuple[str, ...]) -> None:
    found = edit_mask(DIFFERENCE, jnp.float32(quantile), rule=rule, radius=radius)
    np.testing.assert_array_equal(found, grid(*expected))


@pytest.mark.parametrize(("rule", "q"), [("released", 0.6), ("algorithm1", 0.1)])
def test_rules_treat_every_example_alone(rule: str, q: float) -> None:
    quantile = jnp.float32(q)
    difference = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 8, 4)), jnp.float32)
    difference *= jnp.asarray([1.0, 10.0, 0.1])[:, None, None, None]
    together = edit_mask(difference, quantile, rule=rule, radius=1)
    assert 0.2 < together.mean() < 0.8
    for index in range(3):
        alone = edit_mask(difference[index : index + 1], quantile, rule=rule, radius=1)
        np.testing.assert_array_equal(together[index : index + 1], alone)


def test_quantiles_grow_evenly_to_the_last_step() -> None:
    np.testing.assert_allclose(quantiles(0.5, 6), [0, 0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-7)
    assert quantiles(0.5, 1).shape == (1,)


def test_blend_keeps_exactly_where_the_mask_is_one() -> None:
    kept, changed = jnp.full((1, 1, 3, 2), 0.1), jnp.full((1, 1, 3, 2), 0.7)
    preserve = jnp.asarray([1.0, 0.0, 0.5]).reshape(1, 1, 3, 1)
    found = blend(preserve, kept, changed)
    np.testing.assert_array_equal(found[0, 0, 0], kept[0, 0, 0])
    np.testing.assert_array_equal(found[0, 0, 1], changed[0, 0, 1])
    np.testing.assert_allclose(found[0, 0, 2], 0.4, rtol=1e-6)


def test_otsu_is_the_best_of_all_cuts() -> None:
    rng = np.random.default_rng(2)
    values = np.stack([rng.normal(size=40), np.r_[rng.normal(size=30), 9 + rng.normal(size=10)]])
    cuts, shares = otsu(jnp.asarray(values, jnp.float32))
    for row, cut, share in zip(values, cuts, shares, strict=True):
        ordered = np.sort(row)
        within = [
            (low.var() * len(low) + high.var() * len(high)) / len(row)
            for k in range(1, len(row))
            for low, high in [(ordered[:k], ordered[k:])]
        ]
        best = int(np.argmin(within)) + 1
        np.testing.assert_allclose(cut, (ordered[best - 1] + ordered[best]) / 2, rtol=1e-5)
        np.testing.assert_allclose(share, 1 - min(within) / row.var(), atol=1e-5)
    assert shares[1] > 0.9 > shares[0]


def test_otsu_finds_nothing_above_the_cut_where_all_is_equal() -> None:
    cut, share = otsu(jnp.full((2, 9), 3.0))
    np.testing.assert_array_equal(cut, 3.0)
    np.testing.assert_array_equal(share, 0.0)


def test_smoothing_weighs_one_two_one_and_repeats_the_border() -> None:
    found = smooth(grid("0000", "0400", "0000"))
    np.testing.assert_allclose(found[0, ..., 0] * 4, [[1, 2, 1, 0], [2, 4, 2, 0], [1, 2, 1, 0]])
    np.testing.assert_allclose(smooth(grid("333", "333")), 3.0)
    assert float(smooth(grid("900", "000", "000"))[0, 0, 0, 0]) == pytest.approx(9 * (3 / 4) ** 2)


def test_the_automatic_mask_finds_what_changed_and_treats_every_example_alone() -> None:
    change = np.abs(np.random.default_rng(3).normal(0.1, 0.01, (2, 12, 12, 1))).astype(np.float32)
    change[0, 3:8, 2:9] += 0.2
    change[1, 6:, 6:] += 1.0
    found = np.asarray(auto_mask(jnp.asarray(change), 0))[..., 0]
    assert found[0, 4:7, 3:8].all() and not found[0, 9:].any() and not found[0, :, 10:].any()
    assert found[1, 7:, 7:].all() and not found[1, :5].any()
    for index in range(2):
        alone = auto_mask(jnp.asarray(change[index : index + 1]), 0)[0, ..., 0]
        np.testing.assert_array_equal(alone, found[index])
    wider = np.asarray(auto_mask(jnp.asarray(change), 1))[..., 0]
    assert wider[0, 2].any() and (wider >= found).all()


def test_the_automatic_mask_finds_a_large_change_beside_a_larger_one() -> None:
    change = np.full((1, 16, 16, 1), 0.1, np.float32)
    change[0, :6, :6], change[0, 10:, 10:] = 5.0, 0.9
    found = np.asarray(auto_mask(jnp.asarray(change), 0))[0, ..., 0]
    assert found[:6, :6].all() and found[10:, 10:].all()
    assert found.sum() <= 2 * 7 * 7
    cut, _ = otsu(jnp.asarray(change.reshape(1, -1)))
    assert cut > 0.9, "the cut between two classes alone would miss it"


def test_the_automatic_mask_is_empty_where_nothing_changed() -> None:
    np.testing.assert_array_equal(auto_mask(jnp.zeros((1, 4, 4, 1)), 1), 0.0)
