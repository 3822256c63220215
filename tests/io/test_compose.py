"""Outside the mask the original is kept bit by bit, in every kind of file."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter

from uam_jax.io.compose import composite, keep_unedited, soft_mask
from uam_jax.io.encoding import write_image
from uam_jax.io.images import read_image, resize


def square(side: int = 32, *, at: slice = slice(10, 20)) -> np.ndarray:
    free = np.zeros((side, side), np.float32)
    free[at, at] = 1
    return free


def test_the_mask_is_one_inside_zero_outside_and_smooth_between() -> None:
    mask = soft_mask(square(), (32, 32), smooth=0.0, grow=2.0, feather=4.0)
    row = mask[15]
    np.testing.assert_array_equal(row[8:22], 1)
    np.testing.assert_array_equal(row[:5], 0)
    np.testing.assert_array_equal(row[26:], 0)
    assert (np.diff(row[4:9]) > 0).all()


@settings(max_examples=30)
@given(
    threshold=st.floats(0.05, 0.9),
    smooth=st.floats(0, 4),
    grow=st.floats(0, 6),
    feather=st.floats(0, 6),
    size=st.tuples(st.integers(8, 80), st.integers(8, 80)),
)
def test_the_mask_stays_in_range_and_reaches_no_further_than_asked(
    threshold: float, smooth: float, grow: float, feather: float, size: tuple[int, int]
) -> None:
    mask = soft_mask(square(), size, threshold=threshold, smooth=smooth, grow=grow, feather=feather)
    assert mask.shape == size and mask.dtype == np.float32
    assert mask.min() >= 0 and mask.max() <= 1
    # The smoothing reaches 4 standard deviations; one more pixel for the interpolation, of the result if smaller.
    reach = 10 - (4 * smooth + grow + feather + 0.5 + max(1, 32 / size[0]))
    rows = int(max(reach, 0) / 32 * size[0])
    assert not mask[:rows].any()


def test_more_growth_and_lower_thresholds_never_shrink_the_mask() -> None:
    free = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    masks = [
        soft_mask(free, (64, 64), threshold=threshold, grow=grow)
        for threshold, grow in [(0.54, 0.0), (0.52, 0.0), (0.52, 2.0), (0.5, 3.0)]
    ]
    for smaller, larger in pairwise(masks):
        assert (larger >= smaller - 1e-6).all()
        assert larger.mean() > smaller.mean()


def test_specks_are_smoothed_away() -> None:
    free = square()
    free[2, 2] = 1
    assert soft_mask(free, (32, 32), smooth=0.0, grow=0.0, feather=0.0)[2, 2] == 1
    assert soft_mask(free, (32, 32), smooth=1.5, grow=0.0, feather=0.0)[2, 2] == 0


def test_nothing_free_is_nothing_changed() -> None:
    assert not soft_mask(np.zeros((8, 8), np.float32), (32, 48)).any()


def test_everything_free_is_everything_changed() -> None:
    assert (soft_mask(np.ones((8, 8), np.float32), (32, 48)) == 1).all()


@pytest.mark.parametrize("feather", [0.0, 3.0])
def test_the_users_mask_is_a_limit_with_its_seam_inside(feather: float) -> None:
    within = np.zeros((64, 64), np.float32)
    within[:, :32] = 1
    mask = soft_mask(np.ones((32, 32), np.float32), (64, 64), feather=feather, within=within)
    assert not mask[:, 32:].any()
    assert (mask[:, :20] == 1).all()
    assert (mask[:, 31] < 1).all() == (feather > 0)
    everything = soft_mask(square(), (64, 64), within=np.ones((64, 64), np.float32))
    np.testing.assert_array_equal(everything, soft_mask(square(), (64, 64)))


def test_a_grey_limit_counts_without_a_black_pixel() -> None:
    free = np.ones((8, 8), np.float32)
    within = np.linspace(0.05, 1, 16 * 16, dtype=np.float32).reshape(16, 16)
    np.testing.assert_allclose(soft_mask(free, (16, 16), within=within), within, atol=1e-6)


def as_latents_see(mask: np.ndarray, size: int, cell: int = 8) -> np.ndarray:
    """The freedom after an edit that changes all of a user's mask: means over a latent's pixels, interpolated."""
    small = resize(mask, (size, size), linear=True).reshape(size // cell, cell, size // cell, cell)
    return resize(small.mean((1, 3)), (size, size), linear=True)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
@pytest.mark.parametrize("side", [1, 5, 20, 47, 70, 140])
def test_a_small_region_of_the_user_is_changed_beside_a_large_one(
    side: int, threshold: float
) -> None:
    within = np.zeros((1600, 1600), np.float32)
    within[203 : 203 + side, 1009 : 1009 + side] = 1
    within[600:1400, 300:1100] = 1
    mask = soft_mask(as_latents_see(within, 256), (1600, 1600), threshold=threshold, within=within)
    small, large = mask[203 : 203 + side, 1009 : 1009 + side], mask[600:1400, 300:1100]
    assert small.max() > 0.7 and small.mean() > 0.4
    assert large.mean() > 0.9 and large[60:-60, 60:-60].min() == 1
    assert not mask[within == 0].any()


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (400, 300)])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_where_one_latent_pixel_was_free_something_is_changed(
    threshold: float, size: tuple[int, int]
) -> None:
    cell = np.zeros((64, 64), np.float32)
    cell[32:40, 32:40] = 1
    for free in (cell, 0.05 * cell):
        mask = soft_mask(free, size, threshold=threshold)
        assert mask.max() > 0.1
        assert 0.5 < mask.mean() / cell.mean() < 6


def test_a_faint_mask_of_the_user_frees_as_much_as_it_says() -> None:
    within = np.full((64, 64), 0.2, np.float32)
    within[:, 32:] = 0
    mask = soft_mask(within, (64, 64), within=within)
    np.testing.assert_allclose(mask[:, :24], 0.2, atol=1e-6)


def test_a_part_of_the_users_mask_where_nothing_was_free_stays() -> None:
    within, free = np.zeros((2, 64, 64), np.float32)
    within[10:30, 10:20] = within[10:30, 23:33] = 1
    free[10:30, 10:20] = 1
    mask = soft_mask(free, (64, 64), within=within)
    assert mask[10:30, 10:20].mean() > 0.5 and mask[:, 28:].max() == 0


def test_without_a_user_the_mask_is_that_of_the_smoothed_freedom() -> None:
    """The numbers that were tuned on scenes, in a second implementation."""
    coarse = np.random.default_rng(3).random((8, 8)).astype(np.float32)
    free = resize((coarse > 0.6).astype(np.float32), (64, 64), linear=True)
    region = gaussian_filter(free, 4.0) > 0.5
    distance = resize(distance_transform_edt(~region).astype(np.float32), (96, 96), linear=True)
    x = np.clip((4 - distance) / 4, 0, 1)
    np.testing.assert_array_equal(
        soft_mask(free, (96, 96), threshold=0.5), (x * x * (3 - 2 * x)).astype(np.float32)
    )


def test_the_composite_is_either_picture_or_between() -> None:
    original, edited = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    mask = np.repeat(np.linspace(0, 1, 8, dtype=np.float32)[None], 8, 0)
    result = composite(original, edited, mask)
    np.testing.assert_array_equal(result[:, 0], original[:, 0])
    np.testing.assert_allclose(result[:, 7], edited[:, 7], atol=1e-6)
    assert (result >= np.minimum(original, edited) - 1e-6).all()
    assert (result <= np.maximum(original, edited) + 1e-6).all()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((90, 120, 3), np.uint8),
        ((90, 120, 4), np.uint8),
        ((90, 120), np.uint8),
        ((90, 120, 2), np.uint8),
        ((90, 120), np.uint16),
    ],
)
def test_files_keep_every_bit_outside_the_mask(
    tmp_path: Path, shape: tuple[int, ...], dtype: type
) -> None:
    array = np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    Image.fromarray(array).save(tmp_path / "in.png")
    picture = read_image(tmp_path / "in.png")
    edited = np.full((32, 32, 3), 0.3, np.float32)
    pixels, mask = keep_unedited(picture.pixels, edited, square())
    write_image(tmp_path / "out.png", pixels, picture)
    with Image.open(tmp_path / "out.png") as image:
        written = np.asarray(image)
    assert written.dtype == dtype and written.shape == shape
    assert 0.05 < (mask > 0).mean() < 0.6
    np.testing.assert_array_equal(written[mask == 0], array[mask == 0])
    colours = written.reshape(90, 120, -1)[..., : 1 if shape[-1] in (2, 120) else 3]
    np.testing.assert_array_equal(
        colours[mask == 1], np.rint(np.float32(1.3) / 2 * np.iinfo(dtype).max).astype(dtype)
    )
    if shape[-1] in (2, 4):
        np.testing.assert_array_equal(written[..., -1], array[..., -1])
