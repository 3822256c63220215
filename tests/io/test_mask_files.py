"""Masks of many tools: the part that may change is 1, whatever value it has in the file."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from picture_files import integers, load, save
from PIL import Image

from uam_jax.errors import InputError
from uam_jax.io.encoding import encode_mask
from uam_jax.io.mask_files import read_mask


def test_a_mask_is_white_where_it_may_change(tmp_path: Path) -> None:
    array = np.array([[0, 128], [255, 64]], np.uint8)
    expected = array / 255
    for name, values in {
        "grey.png": array,
        "colour.png": np.dstack([array] * 3),
        "painted.png": np.dstack([np.full_like(array, 255)] * 3 + [array]),
        "deep.png": array.astype(np.uint16) * 257,
    }.items():
        mask = read_mask(save(tmp_path / name, values), (2, 2))
        np.testing.assert_allclose(mask, expected, atol=1e-6)
        assert mask[0, 0] == 0


REGION = np.zeros((32, 40), bool)
REGION[8:20, 10:30] = True
SHADES = np.clip(np.mgrid[:32, :40][1] / 30 - 0.2, 0, 1)
"""0, a slope, and 1, as at a feathered border."""


def mask_of(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> np.ndarray:
    """A picture, as a mask file of some kind is read."""
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **options)
    height, width = image.height, image.width
    return read_mask(f"m.{kind.lower()}", (height, width), buffer.getvalue())


def in_palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(np.array(colours, np.uint8).tobytes())
    return image


def in_colour(yes: tuple[int, ...], no: tuple[int, ...]) -> np.ndarray:
    return np.where(REGION[..., None], yes, no).astype(np.uint8)


# One other value.


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.uint8, 1), (np.uint8, 7), (np.uint8, 128), (np.uint8, 255),
        (np.uint16, 1), (np.uint16, 255), (np.uint16, 21), (np.uint16, 1000), (np.uint16, 65535),
    ],
)  # fmt: skip
def test_one_other_number_is_yes(kind: str, dtype: type, value: int) -> None:
    np.testing.assert_array_equal(mask_of((REGION * value).astype(dtype), kind), REGION)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.int32, 1),
        (np.int32, 255),
        (np.int32, -1),
        (np.int32, 100_000),
        (np.float32, 1),
        (np.float32, 0.5),
        (np.float32, 255),
    ],
)  # fmt: skip
def test_one_other_number_of_32_bits_is_yes(dtype: type, value: float) -> None:
    np.testing.assert_array_equal(mask_of((REGION * value).astype(dtype), "TIFF"), REGION)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_not_yes(value: float) -> None:
    with pytest.raises(InputError, match="black and white are undefined"):
        mask_of(np.where(REGION, 0, value).astype(np.float32), "TIFF")


def test_one_bit_is_yes_or_no() -> None:
    np.testing.assert_array_equal(mask_of(REGION), REGION)


@pytest.mark.parametrize("colour", [(255, 0, 0), (128, 0, 0), (0, 0, 1), (128, 64, 128), (1, 1, 1)])
def test_one_colour_on_black_is_yes(colour: tuple[int, int, int]) -> None:
    np.testing.assert_array_equal(mask_of(in_colour(colour, (0, 0, 0))), REGION)


@pytest.mark.parametrize(
    "colours",
    [
        [(0, 0, 0), (128, 0, 0)],  # of label tools
        [(0, 0, 255), (128, 0, 0)],  # the first entry is not black
        [(90, 90, 90), (255, 255, 255)],
        [(0, 0, 0), (0, 0, 0)],  # colours tell nothing
        [(9, 9, 9), (9, 9, 9)],
        [(0, 0, 0), (1, 1, 1)],
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_the_first_entry_of_a_palette_is_no(kind: str, colours: list[tuple[int, int, int]]) -> None:
    if kind == "GIF" and len({*colours}) == 1:
        return  # Pillow merges equal colours in a GIF
    np.testing.assert_array_equal(mask_of(in_palette(REGION, *colours), kind), REGION)


def test_black_is_no_wherever_it_is_in_a_palette() -> None:
    image = in_palette(~REGION, (255, 255, 255), (0, 0, 0))
    np.testing.assert_array_equal(mask_of(image), REGION)


# Several greys.


@pytest.mark.parametrize(
    ("top", "dtype"), [(255, np.uint8), (65535, np.uint16), (255, np.uint16), (1, np.float32)]
)
def test_several_greys_are_soft(top: int, dtype: type) -> None:
    values = SHADES * top if dtype is np.float32 else np.rint(SHADES * top)
    mask = mask_of(values.astype(dtype), "TIFF")
    np.testing.assert_allclose(mask, SHADES, atol=0.6 / 255)
    assert (mask[SHADES == 0] == 0).all() and (mask[SHADES == 1] == 1).all()


def test_soft_numbers_of_8_bits_in_wider_files() -> None:
    for dtype in (np.int32, np.float32):
        mask = mask_of(np.rint(SHADES * 255).astype(dtype), "TIFF")
        np.testing.assert_allclose(mask, SHADES, atol=0.6 / 255)


def test_a_palette_of_greys_is_soft() -> None:
    ramp = [(grey, grey, grey) for grey in range(256)]
    mask = mask_of(in_palette(np.rint(SHADES * 255), *ramp))
    np.testing.assert_allclose(mask, SHADES, atol=0.6 / 255)


def test_three_greys_are_soft() -> None:
    array = np.array([[0, 128, 255]], np.uint8)
    np.testing.assert_allclose(mask_of(array), array / 255, atol=1e-6)


def test_shades_of_one_full_colour_are_soft() -> None:
    array = np.rint(SHADES[..., None] * [255, 0, 64]).astype(np.uint8)
    np.testing.assert_allclose(mask_of(array), SHADES, atol=0.01)


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0), (0, 160, 0), (40, 90, 200)])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_masks_are_soft_at_their_edges(
    kind: str, colour: tuple[int, int, int], quality: int
) -> None:
    large = np.kron(in_colour(colour, (0, 0, 0)), np.ones((8, 8, 1), np.uint8))
    mask = mask_of(large, kind, quality=quality)
    expected = np.kron(REGION, np.ones((8, 8)))
    assert np.abs(mask - expected).mean() < 0.04
    assert mask[120, 160] > 0.9 and mask[10, 10] < 0.05


@pytest.mark.parametrize("quality", [85, 95])
@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0), (40, 90, 200)])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "HEIF"])
def test_what_compression_leaves_beside_black_and_white_is_neither(
    kind: str, colour: tuple[int, int, int], quality: int
) -> None:
    far = (np.hypot(*(np.mgrid[:120, :160] - [[[60]], [[80]]])) - 40).round()
    disc = np.where(far[..., None] < 0, colour, 0).astype(np.uint8)
    mask = mask_of(disc, kind, quality=quality)
    assert (mask[far > 2] == 0).all() and (mask[far < -2] == 1).all()


def test_a_grey_jpeg_is_soft() -> None:
    mask = mask_of((np.kron(REGION, np.ones((9, 9))) * 255).astype(np.uint8), "JPEG", quality=50)
    assert len(np.unique(mask)) > 2 and mask[120, 160] > 0.95 and mask[10, 10] < 0.05


# Several classes or colours.


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ([0, 1, 2], "1, 2"),
        ([0, 1, 2, 255], "1, 2, 255"),
        ([0, 15, 255], "15, 255"),
        ([0, 17, 44, 62], "17, 44, 62"),
        ([1, 2], "1, 2"),
        (range(20), "1, 2, 3, 4, 5 and 14 more"),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_several_classes_are_refused_with_their_names(
    numbers: list[int], named: str, dtype: type
) -> None:
    with pytest.raises(InputError, match=re.escape(f"several classes ({named})")) as caught:
        mask_of(np.array([numbers], dtype))
    assert str(caught.value).startswith("m.png: ")


def test_large_numbers_of_instances_are_refused() -> None:
    with pytest.raises(InputError, match=re.escape("several classes (24000, 26001)")):
        mask_of(np.array([[0, 24000, 26001]], np.uint16))


@pytest.mark.parametrize(
    ("colours", "named"),
    [
        ([(0, 0, 0), (255, 0, 0), (0, 255, 0)], "#00ff00, #ff0000"),
        (
            [(0, 0, 0), (128, 0, 0), (64, 0, 0)],
            "#400000, #800000",
        ),  # classes in a label tool's palette
        ([(255, 255, 255), (255, 0, 0)], "#ff0000, #ffffff"),
        ([(0, 0, 0), (255, 255, 255), (255, 0, 0)], "#ff0000, #ffffff"),
    ],
)
def test_several_colours_are_refused_with_their_names(
    colours: list[tuple[int, int, int]], named: str
) -> None:
    with pytest.raises(InputError, match=re.escape(f"several colours ({named})")):
        mask_of(np.array([colours], np.uint8))
    indices = np.arange(len(colours))[None]
    if colours[0] == (0, 0, 0):
        with pytest.raises(InputError, match=re.escape(f"several colours ({named})")):
            mask_of(in_palette(indices, *colours))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_photograph_is_no_mask(kind: str) -> None:
    with pytest.raises(InputError, match="several colours .* and [0-9]+ more") as caught:
        mask_of(np.kron(integers(4, 4, 3), np.ones((16, 16, 1), np.uint8)), kind)
    assert len(str(caught.value)) < 300


def test_two_colours_in_a_jpeg_are_refused() -> None:
    with pytest.raises(InputError, match="several colours"):
        mask_of(np.kron(in_colour((250, 0, 0), (0, 0, 250)), np.ones((8, 8, 1), np.uint8)), "JPEG")


def test_classes_in_a_jpeg_are_refused() -> None:
    with pytest.raises(InputError, match="nearly black: its brightest value is [1-9] of 255"):
        mask_of((np.kron(REGION, np.ones((9, 9))) * 3).astype(np.uint8), "JPEG", quality=95)


# Transparency.


def with_alpha(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([colours, np.rint(alpha * 255).astype(np.uint8)])


PHOTO = integers(32, 40, 3)
DRAWING = np.where(np.arange(40)[:, None] < 20, (200, 30, 30), (20, 90, 200)).astype(np.uint8)
DRAWING = np.broadcast_to(DRAWING, (32, 40, 3))


@pytest.mark.parametrize(
    "colours",
    [
        PHOTO,
        PHOTO[..., 0],  # in grey
        DRAWING,
        np.zeros((32, 40, 3), np.uint8),
        np.full((32, 40, 3), 90, np.uint8),
        np.full((32, 40, 3), (200, 30, 30), np.uint8),
    ],
    ids=["photo", "grey photo", "drawing", "black", "grey", "red"],
)
def test_a_hole_in_a_picture_may_change(colours: np.ndarray) -> None:
    np.testing.assert_array_equal(mask_of(with_alpha(colours, ~REGION)), REGION)


def test_a_hole_at_the_border_of_a_photograph_may_change() -> None:
    np.testing.assert_array_equal(
        mask_of(with_alpha(PHOTO, np.arange(40) > 12 + 0 * REGION)),
        np.arange(40) <= 12 + 0 * REGION,
    )


def test_a_hole_with_a_soft_border_is_soft() -> None:
    mask = mask_of(with_alpha(PHOTO, 1 - SHADES))
    np.testing.assert_allclose(mask, SHADES, atol=0.6 / 255)


@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0), (7, 7, 7)])
@pytest.mark.parametrize("under", [(0, 0, 0), (255, 255, 255)])
def test_paint_on_a_transparent_layer_may_change(
    colour: tuple[int, int, int], under: tuple[int, int, int]
) -> None:
    layer = with_alpha(in_colour(colour, under), REGION)
    np.testing.assert_array_equal(mask_of(layer), REGION)
    if colour != (7, 7, 7):
        lossy = mask_of(
            layer, "WEBP", quality=60
        )  # what is beside it, unseen, may bleed into its border
        np.testing.assert_array_equal(lossy > 0.5, REGION)


def test_paint_that_is_half_transparent_may_change() -> None:
    np.testing.assert_array_equal(
        mask_of(with_alpha(in_colour((255, 0, 0), (0, 0, 0)), REGION * 0.5)), REGION
    )


def test_white_is_yes_though_a_transparent_part_is_inside() -> None:
    white = np.full((32, 40, 3), 255, np.uint8)
    np.testing.assert_array_equal(mask_of(with_alpha(white, ~REGION)), ~REGION)


def test_black_and_white_on_a_transparent_layer() -> None:
    alpha = np.arange(40) > 14 + 0 * REGION
    layer = with_alpha(in_colour((255, 255, 255), (0, 0, 0)), alpha)
    np.testing.assert_array_equal(mask_of(layer), REGION & alpha)


def test_paint_with_a_soft_border_is_soft() -> None:
    mask = mask_of(with_alpha(np.full((32, 40, 3), 255, np.uint8), SHADES))
    np.testing.assert_allclose(mask, SHADES, atol=0.6 / 255)


def test_paint_of_several_colours_is_refused() -> None:
    with pytest.raises(InputError, match="several colours"):
        mask_of(with_alpha(DRAWING, REGION))


def test_what_may_be_mask_or_picture_is_refused() -> None:
    nearly = np.where(REGION, 255, 0).astype(np.uint8)
    nearly[8, 10:30] = np.arange(100, 120)
    with pytest.raises(InputError, match="save it without transparency"):
        mask_of(with_alpha(nearly, np.arange(40) > 2 + 0 * REGION))


def test_a_transparent_entry_of_a_palette_is_no() -> None:
    image = in_palette(REGION, (255, 0, 255), (255, 255, 255))
    np.testing.assert_array_equal(mask_of(image, transparency=0), REGION)


def test_nothing_but_transparency_is_refused() -> None:
    with pytest.raises(InputError, match="all black or transparent"):
        mask_of(with_alpha(PHOTO, 0 * REGION))


# Sizes, and what was written.


def test_a_mask_that_cannot_be_meant(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(InputError, match=r"6x4 pixels, its picture 5x4"):
        read_mask(path, (4, 5))
    with pytest.raises(InputError, match="all black or transparent"):
        read_mask(path, (4, 6))


def test_a_written_mask_is_read_back(tmp_path: Path) -> None:
    mask = (integers(4, 5) / np.float32(255)).astype(np.float32)
    (tmp_path / "m.png").write_bytes(encode_mask(mask))
    assert load(tmp_path / "m.png")[0] == "L"
    np.testing.assert_allclose(read_mask(tmp_path / "m.png", (4, 5)), mask, atol=1e-6)
