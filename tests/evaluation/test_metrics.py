"""Metrics against their definitions and scikit-image."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from uam_jax.evaluation import metrics

RNG = np.random.default_rng(0)
A = RNG.uniform(-1, 1, (2, 24, 20, 3))
B = np.clip(A + RNG.normal(0, 0.2, A.shape), -1, 1)
WHERE = RNG.uniform(size=A.shape[:-1]) < 0.3


def test_psnr_is_of_values_from_0_to_1() -> None:
    a, b = np.zeros((1, 4, 4, 3)), np.full((1, 4, 4, 3), 0.2)
    assert metrics.mse(a, b) == pytest.approx(0.01)
    assert metrics.psnr(a, b) == pytest.approx(20)
    assert metrics.psnr(a, a) == pytest.approx(100)
    np.testing.assert_allclose(metrics.decibels(np.array([1e-3])), 30)


def test_a_region_counts_its_own_pixels_only() -> None:
    expected = [np.square((x - y)[w] / 2).mean() for x, y, w in zip(A, B, WHERE, strict=True)]
    np.testing.assert_allclose(metrics.mse(A, B, WHERE), expected)
    assert np.isnan(metrics.psnr(A, B, np.zeros_like(WHERE))).all()


def test_masked_pictures_are_black_outside() -> None:
    """As in PIE-Bench: both pictures times (1 - mask), averaged over all pixels."""
    x, y = ((1 + p) / 2 * WHERE[..., None] for p in (A, B))
    expected = np.square(x - y).mean((1, 2, 3))
    found = metrics.mse(metrics.masked(A, WHERE), metrics.masked(B, WHERE))
    np.testing.assert_allclose(found, expected)


def test_ssim_is_scikit_images_away_from_the_border() -> None:
    where = np.zeros(A.shape[:-1], bool)
    where[:, 5:-5, 5:-5] = True
    for row in range(2):
        _, full = structural_similarity(
            (A[row] + 1) / 2, (B[row] + 1) / 2, channel_axis=-1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, data_range=1.0, full=True,
        )  # fmt: skip
        one = slice(row, row + 1)
        found = metrics.ssim(A[one], B[one], where[one])
        np.testing.assert_allclose(found, full[5:-5, 5:-5].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics.ssim(A, A), 1)


def test_overlap() -> None:
    a, b = np.zeros((2, 3, 4, 4), bool)
    a[0, :2], b[0, 1:3], a[1, 0] = True, True, True
    np.testing.assert_allclose(metrics.overlap(a, b), [1 / 3, 0, np.nan])


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    scores, positive = RNG.integers(0, 6, 50).astype(float), RNG.uniform(size=50) < 0.4
    pairs = [
        (high > low) + 0.5 * (high == low) for high in scores[positive] for low in scores[~positive]
    ]
    assert metrics.auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(metrics.auroc(scores, np.ones(50, bool)))


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    covered = []
    for seed in range(200):
        values = np.random.default_rng(seed).normal(size=40)
        mean, low, high = metrics.bootstrap(values, draws=300, seed=seed)
        assert low < mean < high
        assert mean == pytest.approx(values.mean())
        covered.append(low < 0 < high)
    assert 0.88 < np.mean(covered) < 0.98


def test_bootstrap_skips_missing_values() -> None:
    assert metrics.bootstrap(np.array([1.0, np.nan, 1.0])) == (1, 1, 1)
    assert np.isnan(metrics.bootstrap(np.array([np.nan]))).all()
