"""The delivered picture, and values that describe exactly this picture."""

import numpy as np
import pytest

from uam_jax import EditConfig
from uam_jax.engine.delivery import Delivery, ModelPicture, deliver
from uam_jax.io.compose import keep_unedited
from uam_jax.io.focus import Crop
from uam_jax.io.images import resize
from uam_jax.method.confidence import MASKED, UNCHANGED, Calibration

SIGNALS = {"reconstruction": 40.0, "noise": 1.0, "share": 0.9, "moved": 0.9, "changed": 1.0}
FIGURES = {"source_residual": np.float32(0.25)}
# Moved by one standard deviation, an edit has a logit of 1.
CALIBRATION = Calibration.from_settings(
    {
        "weights": {"moved": 1.0, "share": 1.0},
        "means": {"moved": 0.0, "share": 0.0},
        "scales": {"moved": 1.0, "share": 1.0},
        "bias": 0.0,
    }
)
ORIGINAL = np.rint(np.random.default_rng(0).uniform(0, 255, (96, 128, 3))).astype(np.float32)
ORIGINAL = ORIGINAL / np.float32(127.5) - 1
EDITED = np.full((48, 64, 3), 0.5, np.float32)
FREE = np.zeros((48, 64), np.float32)
FREE[8:40, 8:32] = 1


def made(
    edited: np.ndarray = EDITED,
    free: np.ndarray = FREE,
    preserve: str = "pixels",
    **options: object,
) -> Delivery:
    config = EditConfig().updated({"preserve": preserve, "mask": {"threshold": 0.5}})
    return deliver(
        ORIGINAL, ModelPicture(edited, free, SIGNALS, config, CALIBRATION, FIGURES), **options
    )


@pytest.mark.parametrize("masked", [False, True])
def test_pixels_mask_and_what_is_said_are_of_the_delivered_picture(masked: bool) -> None:
    within = np.zeros((96, 128), np.float32)
    within[20:70, 10:60] = 1
    limit = {"within": within} if masked else {}
    found = made(**limit)
    pixels, mask = keep_unedited(ORIGINAL, EDITED, FREE, threshold=0.5, **limit)
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_array_equal(found.mask, mask)
    assert found.mask_share == pytest.approx(mask.mean()) and 0.05 < mask.mean() < 0.5
    moved = np.sqrt(np.square(pixels - ORIGINAL).mean())
    assert found.signals == pytest.approx(
        SIGNALS | {"share": mask.mean(), "moved": moved, "opacity": 1.0}
    )
    assert found.confidence == pytest.approx(1 / (1 + np.exp(-moved - mask.mean())))
    assert found.figures == {"source_residual": 0.25}
    assert found.review is None


def test_in_latent_mode_the_picture_is_the_models() -> None:
    found = made(preserve="latent")
    np.testing.assert_array_equal(found.pixels, resize(EDITED, (96, 128)))
    np.testing.assert_allclose(found.mask, resize(FREE, (96, 128), linear=True))


@pytest.mark.parametrize("preserve", ["pixels", "latent"])
def test_a_result_that_equals_its_original_is_told(preserve: str) -> None:
    same = resize(ORIGINAL, (96, 128)) + np.float32(0.4 / 127.5)  # less than half a level
    found = made(same, np.ones((96, 128), np.float32), preserve)
    assert (found.confidence, found.review) == (0, UNCHANGED)
    # A file of 16 bits holds that difference.
    deep = made(same, np.ones((96, 128), np.float32), preserve, channel_max=65535)
    assert deep.confidence > 0.5 and deep.review is None


def test_a_change_of_colour_alone_is_none_in_a_grey_file() -> None:
    grey = np.repeat(ORIGINAL[..., :1], 3, axis=-1) * np.float32(0.5)
    tinted = grey + np.float32([0.299, -0.299 * 0.299 / 0.587, 0]) * np.float32(0.9)
    config = EditConfig().updated({"preserve": "latent"})
    whole = np.ones((96, 128), np.float32)
    edited = ModelPicture(tinted, whole, SIGNALS, config, CALIBRATION)
    found = deliver(grey, edited, grey=True)
    assert found.review == UNCHANGED and np.ptp(found.pixels, axis=-1).max() == 0
    assert deliver(grey, edited).review is None


def test_a_mask_that_leaves_nothing_is_told() -> None:
    found = made(free=0 * FREE)
    np.testing.assert_array_equal(found.pixels, ORIGINAL)
    assert (found.confidence, found.review, found.mask_share) == (0, MASKED, 0)
    within = np.zeros((96, 128), np.float32)
    within[80:, 100:] = 1  # where nothing was free
    assert made(within=within).review == MASKED


def test_a_few_pixels_of_a_large_photograph_are_changed() -> None:
    """As a user's mask of an eye reaches the model: a fraction of one pixel of its latent."""
    photo = np.zeros((1200, 1600, 3), np.float32)
    within = np.zeros((1200, 1600), np.float32)
    within[300:312, 700:712] = 1
    free = resize(within, (48, 64), linear=True)
    config = EditConfig().updated({"mask": {"threshold": 0.5}})
    found = deliver(photo, ModelPicture(EDITED, free, SIGNALS, config, CALIBRATION), within=within)
    assert (found.pixels[300:312, 700:712] != 0).mean() > 0.9
    assert not found.pixels[within == 0].any()
    assert found.mask_share == pytest.approx(found.mask.mean()) and found.review is None


CROP = Crop(20, 30, 48, 64)


def in_the_crop() -> np.ndarray:
    within = np.zeros((96, 128), np.float32)
    within[30:60, 40:80] = 1
    return within


@pytest.mark.parametrize("preserve", ["pixels", "latent"])
def test_a_crop_is_delivered_as_a_picture_of_its_own_and_pasted_into_the_whole(
    preserve: str,
) -> None:
    within = in_the_crop()
    found = made(within=within, crop=CROP, preserve=preserve)
    # Nothing else is free to be the latent's alone: there the user's mask decides.
    free = FREE if preserve == "pixels" else np.ones_like(FREE)
    part, allowed = CROP.cut(ORIGINAL), CROP.cut(within)
    pixels, mask = keep_unedited(part, EDITED, free, within=allowed, threshold=0.5)
    np.testing.assert_array_equal(CROP.cut(found.pixels), pixels)
    np.testing.assert_array_equal(CROP.cut(found.mask), mask)
    np.testing.assert_array_equal(found.pixels[within == 0], ORIGINAL[within == 0])
    assert not found.mask[within == 0].any() and found.crop == CROP
    assert (found.pixels != ORIGINAL).any(axis=-1).sum() > 200
    # Confidence is of the picture that the model saw, the share of the one that is delivered.
    assert found.signals["share"] == pytest.approx(mask.mean())
    assert found.mask_share == pytest.approx(mask.sum() / (96 * 128))


def test_the_crop_of_all_of_a_picture_is_no_crop() -> None:
    for preserve in ("pixels", "latent"):
        plain = made(preserve=preserve, within=in_the_crop())
        found = made(preserve=preserve, within=in_the_crop(), crop=Crop.whole(ORIGINAL.shape))
        np.testing.assert_array_equal(found.pixels, plain.pixels)
        np.testing.assert_array_equal(found.mask, plain.mask)
        assert found.crop is None and found.signals == plain.signals


def test_a_grey_pictures_crop_stays_grey_and_the_rest_as_it_was() -> None:
    grey = np.repeat(ORIGINAL[..., :1], 3, axis=-1)
    tinted = EDITED * np.float32([1, 0.2, -0.5])
    edited = ModelPicture(tinted, FREE, SIGNALS, EditConfig(), CALIBRATION)
    found = deliver(grey, edited, within=in_the_crop(), crop=CROP, grey=True)
    assert np.ptp(found.pixels, axis=-1).max() == 0
    outside = in_the_crop() == 0
    levels = [np.rint((picture[outside] + 1) * 127.5) for picture in (found.pixels, grey)]
    np.testing.assert_array_equal(*levels)
    assert (np.abs(found.pixels - grey) > 0.1).any()
