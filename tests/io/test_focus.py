"""A crop holds its mask and enlarges nothing, wherever the mask lies, and outside of it every bit stays."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from uam_jax.errors import InputError
from uam_jax.io.focus import Crop, check_focus
from uam_jax.io.images import working_size


def masked(size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(size, np.float32)
    mask[rows, columns] = 1
    return mask


def test_a_small_box_in_the_middle_has_half_of_its_sides_around_it() -> None:
    mask = masked((1000, 2000), slice(400, 500), slice(900, 1100))
    crop = Crop.of(mask, mask.shape, working=(64, 128))
    assert crop == Crop(350, 800, 200, 400)
    assert crop.size == (200, 400) and str(crop) == "350,800,200,400"


def test_a_narrow_box_gets_the_pictures_shape() -> None:
    mask = masked((1000, 2000), slice(300, 500), slice(1000, 1002))
    assert Crop.of(mask, mask.shape, working=(64, 128)) == Crop(200, 601, 400, 800)


@pytest.mark.parametrize(
    ("row", "column", "place"),
    [(0, 0, (0, 0)), (999, 1999, (800, 1600)), (0, 1000, (0, 800)), (500, 0, (400, 0))],
)
def test_near_the_border_the_crop_is_moved_into_the_picture(
    row: int, column: int, place: tuple[int, int]
) -> None:
    mask = masked((1000, 2000), slice(row, row + 1), slice(column, column + 1))
    assert Crop.of(mask, mask.shape, working=(200, 400)) == Crop(*place, 200, 400)


def test_a_soft_masks_faintest_pixel_counts() -> None:
    mask = masked((1000, 1000), slice(500, 510), slice(500, 510))
    mask[100, 100] = 1e-6
    crop = Crop.of(mask, mask.shape, working=(64, 64), focus="on")
    assert crop.cut(mask).sum() == mask.sum() and crop.size == (820, 820)


@pytest.mark.parametrize("focus", ["auto", "on", "off"])
def test_the_whole_picture_is_taken_without_a_mask_or_room(focus: str) -> None:
    size = (300, 400)
    whole = Crop(0, 0, *size)
    small = masked(size, slice(10, 20), slice(10, 20))
    assert Crop.of(None, size, working=(30, 40), focus=focus) == whole
    assert Crop.of(0 * small, size, working=(30, 40), focus=focus) == whole
    assert Crop.of(small, size, working=(300, 400), focus=focus) == whole
    assert Crop.of(small, size, working=(512, 704), focus=focus) == whole
    assert Crop.of(np.ones(size, np.float32), size, working=(30, 40), focus=focus) == whole
    assert (Crop.of(small, size, working=(30, 40), focus=focus) == whole) == (focus == "off")


def test_auto_begins_below_a_quarter_of_the_picture() -> None:
    size = (400, 400)
    below, quarter = (masked(size, slice(100, 100 + side), slice(100, 200)) for side in (99, 100))
    assert Crop.of(below, size, working=(64, 64)) == Crop(49, 50, 200, 200)
    assert Crop.of(quarter, size, working=(64, 64)) == Crop(0, 0, 400, 400)
    assert Crop.of(quarter, size, working=(64, 64), focus="on") == Crop(50, 50, 200, 200)


def test_a_focus_that_cannot_be_is_refused() -> None:
    for focus in ("auto", "off"):
        check_focus(focus, masked=False)
    check_focus("on", masked=True)
    with pytest.raises(InputError, match="item a has no mask"):
        check_focus("on", masked=False, whose="item a")
    with pytest.raises(InputError, match=r"focus is 'sharp'.*choose auto, on, off"):
        check_focus("sharp", masked=True)


sides = st.integers(1, 700)
shares = st.floats(0, 1)


@settings(max_examples=300, deadline=None)
@given(height=sides, width=sides, at=st.tuples(shares, shares), extent=st.tuples(shares, shares))
@example(height=700, width=1, at=(1.0, 0.0), extent=(0.0, 0.0))
def test_a_crop_holds_the_mask_in_the_pictures_shape_and_enlarges_nothing(
    height: int, width: int, at: tuple[float, float], extent: tuple[float, float]
) -> None:
    size = height, width
    try:
        working = working_size(size, 64, 8)
    except InputError:
        assume(False)
    box = [max(round(share * side), 1) for share, side in zip(extent, size, strict=True)]
    first = [round(a * (side - n)) for a, side, n in zip(at, size, box, strict=True)]
    mask = masked(size, *(slice(f, f + n) for f, n in zip(first, box, strict=True)))
    crop = Crop.of(mask, size, working=working, focus="on")
    assert crop.top >= 0 and crop.left >= 0
    assert crop.top + crop.height <= height and crop.left + crop.width <= width
    assert crop.cut(mask).sum() == mask.sum()
    if all(side >= least for side, least in zip(size, working, strict=True)):
        assert crop.height >= working[0] and crop.width >= working[1]
    else:
        assert crop == Crop(0, 0, height, width)
    assert abs(crop.height * width - crop.width * height) <= (height + width) / 2


def test_outside_the_crop_every_bit_stays_and_inside_is_the_part() -> None:
    rng = np.random.default_rng(0)
    whole = rng.uniform(-1, 1, (40, 60, 3)).astype(np.float32)
    kept, crop = whole.copy(), Crop(5, 7, 20, 30)
    part = rng.uniform(-1, 1, (20, 30, 3)).astype(np.float32)
    pasted = crop.paste(whole, part)
    np.testing.assert_array_equal(crop.cut(pasted), part)
    np.testing.assert_array_equal(whole, kept)
    outside = crop.paste(np.ones((40, 60), bool), np.zeros((20, 30), bool))
    np.testing.assert_array_equal(pasted[outside], whole[outside])
    assert outside.sum() == 40 * 60 - 20 * 30
