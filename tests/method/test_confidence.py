"""Signals on edits whose answers are plain, and confidence from a calibration written by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax import InputError
from uam_jax.method.confidence import (
    MASKED,
    UNCHANGED,
    UNFAMILIAR,
    Calibration,
    edit_signals,
    error_map,
    picture_signals,
)
from uam_jax.method.edit import EditTrace

Z0 = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 4)), jnp.float32)
IMAGES = jnp.zeros((2, 16, 16, 3))


def trace(**changes: object) -> EditTrace:
    change = jnp.full((2, 8, 8), 0.1).at[:, 2:6, 2:6].set(1.0)
    plain = EditTrace(
        target=Z0, source=Z0, free=jnp.full((2, 8, 8), 0.25), change=change,
        stability=jnp.asarray([0.5, 1.0]), masks=None,
    )  # fmt: skip
    return plain._replace(**changes)


def test_signals_say_what_they_are_called() -> None:
    found = edit_signals(
        IMAGES, IMAGES.at[1, 0, 0].add(0.5), IMAGES + 0.2, Z0, 2 * jnp.ones_like(Z0), trace()
    )
    np.testing.assert_allclose(found["reconstruction"], 20, atol=1e-4)
    np.testing.assert_allclose(found["noise"], 4)
    np.testing.assert_allclose(found["share"], 0.25)
    np.testing.assert_allclose(found["stability"], [0.5, 1.0])
    np.testing.assert_allclose(found["moved"], [0, 0.5 / 16], rtol=1e-6)
    np.testing.assert_allclose(found["changed"], [0, 1])
    np.testing.assert_allclose(found["opacity"], 0.25)
    np.testing.assert_allclose(found["round_trip"], 60)
    assert (found["separability"] > 0.8).all() and (found["contrast"] > 1).all()
    np.testing.assert_allclose(error_map(IMAGES, IMAGES + 0.2), 0.1)


def test_signals_follow_what_they_measure() -> None:
    even = jnp.asarray(np.random.default_rng(1).uniform(0.9, 1.1, (2, 8, 8)), jnp.float32)
    found = edit_signals(IMAGES, IMAGES, IMAGES, Z0, Z0, trace(change=even, source=1.1 * Z0))
    np.testing.assert_allclose(found["round_trip"], 20, atol=1e-3)
    assert (found["contrast"] < 0.2).all()
    anchored = edit_signals(IMAGES, IMAGES, IMAGES, Z0, Z0, trace(source=None))
    np.testing.assert_allclose(anchored["round_trip"], 60)


SETTINGS = {
    "weights": {"separability": 2.0, "share": -1.0},
    "means": {"separability": 0.7, "share": 0.3},
    "scales": {"separability": 0.1, "share": 0.2},
    "bias": 0.5, "familiar": 30.0, "noise": 0.2, "below": 0.4, "fitted": "by hand",
}  # fmt: skip


def signals(**values: float) -> dict[str, np.ndarray]:
    plain = {"reconstruction": 32.0, "noise": 1.0, "separability": 0.7, "share": 0.3}
    plain |= {"changed": 1.0, "opacity": 1.0}
    return {name: np.asarray([value]) for name, value in (plain | values).items()}


def test_confidence_is_a_logistic_of_standardised_signals() -> None:
    calibration = Calibration.from_settings(SETTINGS)
    assert calibration.confidence(signals()) == pytest.approx(1 / (1 + np.exp(-0.5)))
    high = calibration.confidence(signals(separability=0.8, share=0.1))
    assert high == pytest.approx(1 / (1 + np.exp(-3.5)))
    assert calibration.review(signals(separability=0.8)) == [None]
    without = {name: value for name, value in signals(share=0.1).items() if name != "separability"}
    assert calibration.confidence(without) == calibration.confidence(signals(share=0.1))


@pytest.mark.parametrize(
    ("values", "familiarity"),
    [
        ({}, 1), ({"reconstruction": 27.0}, 0.5), ({"reconstruction": 20.0}, 0),
        ({"noise": np.exp(0.3)}, 0.5), ({"noise": np.exp(-0.5)}, 0), ({"noise": 0.0}, 0),
        ({"reconstruction": np.nan}, 0),
    ],
)  # fmt: skip
def test_what_the_model_does_not_know_is_never_sure(values: dict, familiarity: float) -> None:
    calibration = Calibration.from_settings(SETTINGS)
    assert calibration.familiarity(signals(**values)) == pytest.approx(familiarity)
    sure = calibration.confidence(signals(separability=1.0, **values))
    assert sure == pytest.approx(familiarity * calibration.confidence(signals(separability=1.0)))
    [why] = calibration.review(signals(separability=1.0, **values))
    assert (why is None) == (sure[0] >= 0.4)
    if familiarity == 0:
        assert UNFAMILIAR in why


def test_the_reason_is_the_signal_that_weighs_most() -> None:
    calibration = Calibration.from_settings(SETTINGS)
    assert "hardly apart" in calibration.review(signals(separability=0.5))[0]
    assert "most of the picture" in calibration.review(signals(share=0.9))[0]


def test_whole_numbers_are_numbers() -> None:
    whole = SETTINGS | {"familiar": 30, "means": {"separability": 1, "share": 0}}
    parts = SETTINGS | {"familiar": 30.0, "means": {"separability": 1.0, "share": 0.0}}
    calibration = Calibration.from_settings(whole)
    assert calibration == Calibration.from_settings(parts)
    assert isinstance(calibration.familiar, float)


def test_without_a_calibration_only_familiarity_counts() -> None:
    plain = Calibration.from_settings({})
    assert plain.confidence(signals()) == pytest.approx(1 / (1 + np.exp(-2)))
    assert plain.confidence(signals(reconstruction=10.0)) == 0
    assert UNFAMILIAR in plain.review(signals(reconstruction=10.0))[0]


@pytest.mark.parametrize("levels", [255, 65535])
def test_a_change_counts_from_half_a_level_of_the_file(levels: int) -> None:
    original = np.zeros((4, 4, 3), np.float32)
    for part, changed in ((0.49, 0), (0.51, 1), (-0.51, 1)):
        edited = original.copy()
        edited[1, 2, 0] = part / levels * 2
        assert picture_signals(original, edited, original[..., 0], levels)["changed"] == changed


@pytest.mark.parametrize(("opacity", "why"), [(0.0, MASKED), (1.0, UNCHANGED)])
def test_a_result_that_equals_its_original_is_not_trusted_and_told(
    opacity: float, why: str
) -> None:
    for settings in ({}, SETTINGS, SETTINGS | {"below": 0.0}):
        calibration = Calibration.from_settings(settings)
        for agreement in ({}, {"agreement": -0.1}, {"agreement": float("nan")}):
            same = signals(changed=0.0, opacity=opacity, separability=0.9, **agreement)
            assert calibration.confidence(same) == 0
            assert calibration.review(same) == [why]


def test_a_result_that_equals_its_original_is_trusted_where_that_shows_the_target() -> None:
    calibration = Calibration.from_settings(SETTINGS)
    same, changed = (signals(changed=each, separability=0.9, agreement=0.1) for each in (0.0, 1.0))
    assert calibration.confidence(same) == calibration.confidence(changed) > calibration.below
    assert calibration.review(same) == [None]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"wieghts": {}}, "wieghts"),
        ({"bias": "high"}, "bias = 'high': it must be a number"),
        ({"familiar": True}, "familiar = True: it must be a number"),
        ({"familiar": float("nan")}, "familiar = nan: it must be a number"),
        ({"noise": 0}, "noise = 0.0: it must be above 0"),
        ({"typical_noise": -1.0}, "typical_noise = -1.0: it must be above 0"),
        ({"fitted": 3}, "fitted = 3: it must be text"),
        ({"weights": 3}, "weights = 3: it must be a table"),
        ({"weights": {"share": "much"}}, "weights.share = 'much': it must be a number"),
        ({"scales": {"share": False}}, "scales.share = False: it must be a number"),
        ({"weights": {"share": 1.0}}, "weights.share needs means.share"),
        (
            {"weights": {"luck": 1.0}, "means": {"luck": 0.0}, "scales": {"luck": 1.0}},
            "weights.luck",
        ),
    ],
)
def test_a_bad_calibration_is_named(settings: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Calibration.from_settings(settings)
