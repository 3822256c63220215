"""Channels of every depth, mode and kind of transparency, as the numbers in their files."""

import io
import struct
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from picture_files import SRGB, chunk, integers, png, save, with_chunk
from PIL import Image

from uam_jax.errors import InputError
from uam_jax.io.encoding import encode_image, write_image
from uam_jax.io.images import Picture, read_image


def test_16_bit_colour_is_read_with_8_bits_and_says_so(tmp_path: Path) -> None:
    array = integers(4, 5, 3, dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    (tmp_path / "deep.png").write_bytes(png(5, 4, 2, 16, rows))
    with pytest.warns(
        UserWarning, match=r"deep\.png: colour of more than 8 bits is read, and written, with 8"
    ):
        picture = read_image(tmp_path / "deep.png")
    assert picture.channel_max == 255
    np.testing.assert_allclose(picture.pixels, (array >> 8) / 127.5 - 1, atol=1e-6)


def test_deep_colour_of_other_formats_says_so_too() -> None:
    deep = pillow_heif.from_bytes("RGB;16", (16, 16), bytes(16 * 16 * 6))
    buffer = io.BytesIO()
    deep.save(buffer)
    for content in (b"P6\n3 2\n1023\n" + bytes(36), buffer.getvalue()):
        with pytest.warns(UserWarning, match="more than 8 bits"):
            assert read_image("x", content).channel_max == 255
    read_image("x", b"P6\n3 2\n255\n" + bytes(18))  # without a warning


def test_floats_in_the_unit_range_are_read_and_others_refused(tmp_path: Path) -> None:
    array = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    picture = read_image(save(tmp_path / "unit.tiff", array))
    np.testing.assert_allclose(picture.pixels[..., 0], 2 * array - 1, atol=2e-5)
    with pytest.raises(InputError, match="beyond 0 to 1"):
        read_image(save(tmp_path / "wide.tiff", array * 2))


def tiff(array: np.ndarray, photometric: int, *, bits: int, kind: int = 1) -> bytes:
    """A grey little-endian TIFF of any layout, including layouts that Pillow does not write."""
    data = array.tobytes()
    tags = {
        256: array.shape[1], 257: array.shape[0], 258: bits, 259: 1, 262: photometric, 273: 8,
        277: 1, 278: array.shape[0], 279: len(data), 339: kind,
    }  # fmt: skip
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data += bytes(len(data) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + fields + bytes(4)


def greys(content: bytes) -> tuple[int, np.ndarray]:
    """The levels of a grey picture, and its values in them."""
    read = read_image("x.tif", content)
    assert read.grey
    return read.channel_max, np.rint((read.pixels[..., 0] + 1) * (read.channel_max / 2)).astype(int)


def test_grey_that_counts_from_white_is_turned_round() -> None:
    array = np.array([[0, 1000, 65535]], np.uint16)
    levels, values = greys(tiff(array, 0, bits=16))
    assert levels == 65535
    np.testing.assert_array_equal(values, 65535 - array)
    for compression in (None, "tiff_deflate"):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "TIFF", tiffinfo={262: 0}, compression=compression)
        np.testing.assert_array_equal(greys(buffer.getvalue())[1], 65535 - array)
    shares = np.array([[0, 0.25, 1]], np.float32)
    np.testing.assert_allclose(greys(tiff(shares, 0, bits=32, kind=3))[1], [[65535, 49151, 0]])


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("u4", 1), ("i4", 2), ("i2", 2), ("f4", 3)],
    ids=["uint32", "int32", "int16", "float"],
)
def test_numbers_of_8_bits_in_a_wider_file_are_8_bits(dtype: str, kind: int) -> None:
    array = np.array([[0, 1, 128, 255]], dtype)
    levels, values = greys(tiff(array, 1, bits=8 * array.itemsize, kind=kind))
    assert levels == 255
    np.testing.assert_array_equal(values, array)


@pytest.mark.parametrize(("dtype", "kind"), [("u4", 1), ("i4", 2), ("f4", 3)])
def test_numbers_of_16_bits_in_a_wider_file_are_16_bits(dtype: str, kind: int) -> None:
    array = np.array([[0, 256, 65535]], dtype)
    levels, values = greys(tiff(array, 1, bits=32, kind=kind))
    assert levels == 65535
    np.testing.assert_array_equal(values, array)


def test_a_dark_picture_of_16_bits_stays_dark() -> None:
    array = np.array([[0, 100, 255]], np.uint16)
    pgm = b"P5 3 1 65535\n" + array.astype(">u2").tobytes()
    plain = b"P2 3 1 65535\n0 100 255\n"
    for content in (tiff(array, 1, bits=16), pgm, plain):
        levels, values = greys(content)
        assert levels == 65535
        np.testing.assert_array_equal(values, array)


def test_12_bits_are_scaled_to_16() -> None:
    packed = np.array([[0x00, 0x0F, 0xFF]], np.uint8)  # 0 and 4095
    content = tiff(packed, 1, bits=12)
    content = content.replace(
        struct.pack("<HHII", 256, 4, 1, 3), struct.pack("<HHII", 256, 4, 1, 2)
    )
    levels, values = greys(content)
    assert levels == 65535
    np.testing.assert_array_equal(values, [[0, 65535]])


def test_unsigned_numbers_beyond_the_range_are_refused() -> None:
    with pytest.raises(InputError, match="reach beyond 0 to 65535"):
        read_image("x.tif", tiff(np.array([[0, 4_000_000_000]], np.uint32), 1, bits=32))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_any_depth(depth: int) -> None:
    row = {1: b"\x40", 2: b"\x10", 4: b"\x01", 8: b"\0\1", 16: b"\0\0\0\1"}[depth]  # 0 and 1
    content = with_chunk(png(2, 1, 0, depth, b"\0" + row), chunk(b"tRNS", b"\0\1"))
    read = read_image("x.png", content)
    assert read.alpha is not None and read.channel_max == (65535 if depth == 16 else 255)
    np.testing.assert_array_equal(read.alpha, [[255, 0]])
    again = read_image("x.png", encode_image("x.png", read.pixels, read))
    assert again.channel_max == read.channel_max and again.alpha is not None
    np.testing.assert_array_equal(again.alpha, read.alpha)
    assert again.pixels[0, 0, 0] == read.pixels[0, 0, 0]


def test_a_transparent_colour_of_16_bits_is_found_by_all_of_them() -> None:
    colours = [(0x0102, 0x0304, 0x0506), (0x0102, 0x0304, 0x0507), (0x0202, 0x0304, 0x0506)]
    rows = b"\0" + b"".join(struct.pack(">3H", *colour) for colour in colours)
    content = with_chunk(png(3, 1, 2, 16, rows), chunk(b"tRNS", struct.pack(">3H", *colours[0])))
    with pytest.warns(UserWarning, match="more than 8 bits"):
        read = read_image("x.png", content)
    assert read.alpha is not None
    np.testing.assert_array_equal(read.alpha, [[0, 255, 255]])
    np.testing.assert_allclose((read.pixels[0, 1] + 1) * 127.5, [1, 3, 5], atol=1e-3)


def test_deep_grey_with_transparency_where_only_8_bits_fit() -> None:
    read = Picture(np.zeros((4, 5, 3), np.float32), 65535, True, np.eye(4, 5, dtype=np.uint8) * 255)
    with pytest.warns(UserWarning, match="8 bits of the original's 16 beside transparency"):
        again = read_image("x.tif", encode_image("x.tif", read.pixels, read))
    assert again.channel_max == 255 and again.alpha is not None
    np.testing.assert_array_equal(again.alpha, read.alpha)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_becomes_colour(tmp_path: Path, transparent: bool) -> None:
    image = Image.fromarray(integers(4, 5) % 3).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 255])
    image.save(tmp_path / "in.png", **({"transparency": 1} if transparent else {}))
    with Image.open(tmp_path / "in.png") as palette:
        expected = np.asarray(palette.convert("RGBA"))
    picture = read_image(tmp_path / "in.png")
    assert (picture.alpha is not None) == transparent
    write_image(tmp_path / "out.png", picture.pixels, picture)
    with Image.open(tmp_path / "out.png") as written:
        assert written.mode == ("RGBA" if transparent else "RGB")
        np.testing.assert_array_equal(np.asarray(written.convert("RGBA")), expected)


def test_one_bit_becomes_grey(tmp_path: Path) -> None:
    array = integers(4, 5) > 127
    picture = read_image(save(tmp_path / "in.png", array))
    assert picture.grey
    np.testing.assert_array_equal(picture.pixels[..., 0], np.where(array, 1.0, -1.0))


@pytest.mark.parametrize("profile", [None, SRGB])
def test_cmyk_becomes_rgb_without_its_profile(tmp_path: Path, profile: bytes | None) -> None:
    # The RGB profile doesn't fit a CMYK picture; it must not make it unreadable.
    cmyk = Image.new("CMYK", (5, 4), (0, 255, 255, 0))
    cmyk.save(tmp_path / "in.jpg", icc_profile=profile)
    with pytest.warns(UserWarning, match="converted to RGB"):
        picture = read_image(tmp_path / "in.jpg")
    assert picture.icc_profile is None
    np.testing.assert_allclose(picture.pixels[0, 0], [1, -1, -1], atol=0.02)
