"""A written file holds everything that its format can, and warnings name the losses."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from picture_files import SRGB, integers, load, save
from PIL import Image

from uam_jax.errors import InputError
from uam_jax.io.encoding import (
    default_suffix,
    encode_image,
    encode_preview,
    file_channel_max,
    output_format,
    write_image,
)
from uam_jax.io.formats import WRITTEN
from uam_jax.io.images import Picture, quietly, read_image


def picture(**fields: object) -> Picture:
    return Picture(np.zeros((4, 5, 3), np.float32), **fields)


def test_values_are_clipped_and_rounded_to_the_nearest() -> None:
    values = np.array([-7.0, -1.0, 0.001, 0.999, 1.0, 7.0], np.float32)
    data = encode_image("x.png", np.repeat(values[None, :, None], 3, -1))
    written = load(data)[1][0, :, 0]
    np.testing.assert_array_equal(written, [0, 0, 128, 255, 255, 255])


def test_the_suffix_decides_and_without_one_the_input() -> None:
    assert output_format("a.JPG", picture()) == "JPEG"
    assert output_format("a", picture(file_format="WEBP")) == "WEBP"
    assert output_format("a.jpg", picture(file_format="MPO")) == "JPEG"


def test_a_copy_keeps_the_suffix_unless_it_cannot() -> None:
    assert default_suffix("a.JPEG", picture(file_format="JPEG")) == ".JPEG"
    assert default_suffix("photo", picture(file_format="JPEG")) == ".jpg"
    assert default_suffix("photo.old", picture(file_format="WEBP")) == ".webp"
    with pytest.warns(UserWarning, match="GIF cannot hold"):
        assert default_suffix("a.gif", picture(file_format="GIF")) == ".png"
    seen = picture(file_format="WEBP", alpha=np.zeros((4, 5), np.uint8))
    with pytest.warns(UserWarning, match="JPEG cannot hold"):  # by its name, which is wrong
        assert default_suffix("a.jpg", seen) == ".png"


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("a.xyz", {}, r"a\.xyz: cannot write \.xyz files; choose from \.png"),
        ("a.gif", {}, r"cannot write \.gif files"),
        ("a.pdf", {}, r"cannot write \.pdf files"),
        ("a", {"file_format": "PSD"}, "cannot write PSD files"),
        ("a.jpg", {"alpha": np.zeros((4, 5), np.uint8)}, "holds no transparency"),
    ],
)
def test_a_format_that_cannot_hold_the_picture(
    tmp_path: Path, name: str, fields: dict[str, object], message: str
) -> None:
    like = picture(**fields)
    with pytest.raises(InputError, match=message):
        write_image(tmp_path / name, like.pixels, like)
    assert not list(tmp_path.iterdir())


def test_a_side_beyond_the_format() -> None:
    with pytest.raises(InputError, match="at most 16383 pixels a side"):
        output_format("a.webp", Picture(np.zeros((1, 16384, 3), np.float32)))


@pytest.mark.parametrize("name", ["AVIF", "WEBP", "JPEG"])
def test_the_longest_side_is_read_back(name: str) -> None:
    kind = WRITTEN[name]
    long = np.zeros((1, kind.max_side, 3), np.float32)
    content = encode_image("x" + kind.suffix, long)
    assert read_image("x", content).size == (1, kind.max_side)


def test_an_opaque_alpha_is_no_obstacle() -> None:
    opaque = picture(alpha=np.full((4, 5), 255, np.uint8))
    assert load(encode_image("a.jpg", opaque.pixels, opaque))[0] == "RGB"


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("a.jpg", {"channel_max": 65535, "grey": True}, "8 bits of the original's 16"),
        ("a.bmp", {"icc_profile": SRGB}, "not hold its colour profile"),
        ("a.webp", {"icc_profile": SRGB, "grey": True}, "not hold its colour profile"),
    ],
)
def test_a_loss_gives_a_warning(name: str, fields: dict[str, object], message: str) -> None:
    like = picture(**fields)
    with pytest.warns(UserWarning, match=message):
        assert encode_image(name, like.pixels, like)


@pytest.mark.parametrize(("name", "levels"), [("a.png", 65535), ("a.tif", 65535), ("a.jpg", 255)])
def test_the_largest_value_of_a_file_is_known_before_it_is_made(name: str, levels: int) -> None:
    deep = picture(grey=True, channel_max=65535)
    assert file_channel_max(name, deep) == levels and file_channel_max(name, picture()) == 255
    with quietly():
        assert load(encode_image(name, deep.pixels, deep))[1].dtype.itemsize == (
            2 if levels > 255 else 1
        )


def test_a_preview_has_the_profile_of_the_picture_beside_it() -> None:
    wide = picture(icc_profile=SRGB)
    with Image.open(io.BytesIO(encode_preview(wide.pixels, wide))) as image:
        assert image.info["icc_profile"] == SRGB
    with Image.open(io.BytesIO(encode_preview(wide.pixels, picture(grey=True)))) as image:
        assert image.mode == "L"  # a profile for grey would not fit colours
    assert load(encode_preview(wide.pixels))[0] == "RGB"


def test_existing_files_are_safe(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", integers(4, 5, 3))
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists"):
        write_image(path, picture().pixels)
    assert path.read_bytes() == before
    write_image(path, picture().pixels, overwrite=True)
    assert path.read_bytes() != before


def test_a_size_mismatch_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match=re.escape("6x6 pixels for a picture of 5x4")):
        encode_image("a.png", np.zeros((6, 6, 3), np.float32), picture())
