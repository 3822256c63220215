"""Every kind of file is written with the integers that were read; every kind of broken file gives one clear message."""

import io
import os
import re
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_files import SRGB, integers, load, png, save
from PIL import ExifTags, Image, TiffImagePlugin

from uam_jax.errors import InputError
from uam_jax.io import images
from uam_jax.io.encoding import (
    default_suffix,
    write_image,
)
from uam_jax.io.images import picture_size, read_image, resize, working_size

# What is not edited comes back with the same integers.


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "bmp", "jp2", "tga", "ppm"])
def test_lossless_formats_return_the_same_colours(tmp_path: Path, suffix: str) -> None:
    array = integers(6, 7, 3)
    options = {"lossless": True} if suffix == "webp" else {}
    picture = read_image(save(tmp_path / f"in.{suffix}", array, **options))
    assert picture.size == (6, 7) and not picture.grey
    assert picture.pixels.dtype == np.float32
    assert picture.pixels.min() >= -1 and picture.pixels.max() <= 1
    write_image(tmp_path / f"out.{suffix}", picture.pixels, picture)
    written = load(tmp_path / f"out.{suffix}")
    assert written[0] == "RGB"
    np.testing.assert_array_equal(written[1], array)


@pytest.mark.parametrize("suffix", ["png", "tiff", "jp2"])
@pytest.mark.parametrize(
    ("mode", "shape", "dtype"),
    [
        ("L", (4, 5), np.uint8),
        ("LA", (4, 5, 2), np.uint8),
        ("RGBA", (4, 5, 4), np.uint8),
        ("I;16", (4, 5), np.uint16),
    ],
)
def test_depth_grey_and_alpha_are_kept(
    tmp_path: Path, suffix: str, mode: str, shape: tuple[int, ...], dtype: type
) -> None:
    array = integers(*shape, dtype=dtype)
    picture = read_image(save(tmp_path / f"in.{suffix}", array))
    assert picture.channel_max == np.iinfo(dtype).max
    assert (picture.alpha is not None) == mode.endswith("A")
    write_image(tmp_path / f"out.{suffix}", picture.pixels, picture)
    written = load(tmp_path / f"out.{suffix}")
    assert written[0] == mode
    np.testing.assert_array_equal(written[1], array)


def test_every_16_bit_value_survives(tmp_path: Path) -> None:
    array = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = read_image(save(tmp_path / "in.png", array))
    write_image(tmp_path / "out.png", picture.pixels, picture)
    np.testing.assert_array_equal(load(tmp_path / "out.png")[1], array)
    assert picture.pixels.min() == -1 and picture.pixels.max() == 1


def test_big_endian_16_bit(tmp_path: Path) -> None:
    array = integers(4, 5, dtype=np.uint16)
    path = tmp_path / "in.pgm"
    path.write_bytes(b"P5 5 4 65535\n" + array.astype(">u2").tobytes())
    picture = read_image(path)
    write_image(tmp_path / "out.png", picture.pixels, picture)
    np.testing.assert_array_equal(load(tmp_path / "out.png")[1], array)


@pytest.mark.parametrize("after", [False, True])
def test_the_size_of_a_png_is_found_without_its_pixels(tmp_path: Path, after: bool) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(integers(300, 200, 3)).save(tmp_path / "in.png", exif=exif)
    content = (tmp_path / "in.png").read_bytes()
    start = content.index(b"eXIf") - 4
    chunk = content[start : start + 12 + int.from_bytes(content[start : start + 4], "big")]
    if after:  # where exiftool puts it
        rest = content.replace(chunk, b"")
        content = rest[: rest.index(b"IEND") - 4] + chunk + rest[rest.index(b"IEND") - 4 :]
    read: list[int] = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            read.append(len(found))
            return found

    assert picture_size("in.png", Counted(content)) == (200, 300)
    assert read_image("in.png", content).size == (200, 300)
    assert sum(read) < 2000 < len(content)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_profile_and_descriptions_are_kept(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "someone"
    exif[ExifTags.Base.Orientation] = 3
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:01:01 00:00:00"
    path = save(tmp_path / f"in.{suffix}", integers(8, 8, 3), exif=exif, icc_profile=SRGB)
    picture = read_image(path)
    write_image(tmp_path / f"out.{suffix}", picture.pixels, picture)
    with Image.open(tmp_path / f"out.{suffix}") as image:
        assert image.info["icc_profile"] == SRGB
        assert image.getexif()[ExifTags.Base.Artist] == "someone"
        block = image.getexif().get_ifd(ExifTags.IFD.Exif)
        assert block[ExifTags.Base.DateTimeOriginal] == "2020:01:01 00:00:00"


def test_a_profile_alone_is_kept_in_tiff(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "someone"
    picture = read_image(save(tmp_path / "in.png", integers(4, 4, 3), exif=exif, icc_profile=SRGB))
    write_image(tmp_path / "out.tif", picture.pixels, picture)
    assert read_image(tmp_path / "out.tif").icc_profile == SRGB


def test_malformed_exif_is_no_obstacle(tmp_path: Path) -> None:
    path = save(
        tmp_path / "in.jpg", integers(8, 8, 3), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\x0f"
    )
    assert read_image(path).exif is None


def test_jpeg_is_written_finely(tmp_path: Path) -> None:
    smooth = np.dstack(np.mgrid[0:32, 0:32, 0:1]).repeat(2, -1)[..., :3].astype(np.uint8) * 8
    picture = read_image(save(tmp_path / "in.png", smooth))
    write_image(tmp_path / "out.jpg", picture.pixels, picture)
    error = read_image(tmp_path / "out.jpg").pixels - picture.pixels
    assert np.abs(error).mean() * 127.5 < 1


# Broken, missing and mislabelled files.


def hostile(folder: Path) -> dict[str, tuple[Path, str]]:
    whole = save(folder / "whole.png", integers(64, 64, 3)).read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    (folder / "flipped.png").write_bytes(flipped)
    (folder / "text.png").write_text("not a picture at all")
    (folder / "empty.png").write_bytes(b"")
    (folder / "none.png").write_bytes(png(0, 4, 2, 8, b"\0" * 4))
    (folder / "bomb.png").write_bytes(png(60000, 60000, 2, 8, b"\0"))
    (folder / "fuse.png").write_bytes(png(10000, 10000, 2, 8, b"\0"))  # Pillow only warns here
    (folder / "folder.png").mkdir()
    return {
        "half": (folder / "half.png", "damaged or truncated"),
        "flipped": (folder / "flipped.png", "damaged or truncated"),
        "text": (folder / "text.png", "convert it to PNG or JPEG"),
        "empty": (folder / "empty.png", "convert it to PNG or JPEG"),
        "none": (folder / "none.png", "convert it to PNG or JPEG"),
        "bomb": (folder / "bomb.png", "scale it down"),
        "fuse": (folder / "fuse.png", "scale it down"),
        "folder": (folder / "folder.png", "name the picture files in it"),
        "missing": (folder / "missing.png", "no such file"),
        "long": (folder / ("x" * 300), "no such file"),
    }


@pytest.mark.parametrize(
    "case",
    ["half", "flipped", "text", "empty", "none", "bomb", "fuse", "folder", "missing", "long"],
)
def test_a_bad_file_is_named_with_its_remedy(tmp_path: Path, case: str) -> None:
    path, remedy = hostile(tmp_path)[case]
    with pytest.raises(InputError, match=remedy) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything"
)
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "in.png", integers(4, 4, 3))
    path.chmod(0)
    with pytest.raises(InputError, match="permissions"):
        read_image(path)


@given(st.data())
def test_no_damage_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(["png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm"]))
    buffer = io.BytesIO()
    Image.fromarray(integers(12, 12, 3)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / f"x.{kind}"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with warnings.catch_warnings(action="ignore"):
        try:
            picture = read_image(path)
        except InputError:
            return
    assert np.isfinite(picture.pixels).all()


def test_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="holds 2 frames; only the first"):
        picture = read_image(tmp_path / "in.gif")
    np.testing.assert_array_equal(picture.pixels[0, 0], [1, -1, -1])


@pytest.mark.parametrize("kind", ["ICO", "ICNS"])
def test_the_head_tells_the_size_of_the_largest_icon(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), "red").save(buffer, kind)  # in several sizes
    read = read_image("x", buffer.getvalue())
    assert picture_size("x", io.BytesIO(buffer.getvalue())) == read.size
    assert min(read.size) > 80


def test_the_layers_of_a_psd_are_no_frames(recwarn: pytest.WarningsRecorder) -> None:
    channels = b"".join(struct.pack(">hI", number, 3) for number in range(3))
    layer = struct.pack(">4iH", 0, 0, 1, 1, 3) + channels + b"8BIMnorm\xff\0\0\0"
    layer += struct.pack(">I", 12) + bytes(12)
    layers = struct.pack(">h", 2) + layer * 2 + bytes(3) * 6
    section = struct.pack(">I", len(layers)) + layers + bytes(4)
    head = b"8BPS" + struct.pack(">H6xHIIHHQ", 1, 3, 1, 1, 8, 3, 0)
    content = head + struct.pack(">I", len(section)) + section + b"\0\0" + b"\xc0" * 3
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 2
    np.testing.assert_allclose(read_image("x", content).pixels, 0xC0 / 127.5 - 1, atol=1e-6)
    assert not recwarn.list


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("suffix", ["heic", "jpg"])
def test_heic_is_read_and_without_the_extra_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"in.{suffix}"
    Image.new("RGB", (64, 48), "red").save(path, "HEIF")
    read = read_image(path)
    assert read.size == (48, 64) and read.file_format == "HEIF"
    np.testing.assert_allclose(read.pixels[20, 30], [1, -1, -1], atol=0.05)
    with pytest.warns(UserWarning, match="becomes a .png"):
        assert default_suffix("in.heic", read) == ".png"
    monkeypatch.delitem(Image.OPEN, "HEIF")
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.setattr(images, "pillow_heif", None)
    with pytest.raises(InputError, match=re.escape("pip install 'uam_jax[heif]'")):
        read_image(path)


@pytest.mark.parametrize(
    "tags",
    [
        {50706: b"\1\4\0\0"},  # DNG
        {254: 1, 330: 8},  # a preview, before the directories of others
    ],
)
def test_a_raw_file_is_not_taken_for_its_preview(tags: dict[int, object]) -> None:
    buffer = io.BytesIO()
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    Image.new("RGB", (16, 12)).save(buffer, "TIFF", tiffinfo=directory)
    with pytest.raises(InputError, match=r"photo\.dng: a camera's raw file.*develop it"):
        read_image("photo.dng", buffer.getvalue())
    with pytest.raises(InputError, match="raw file"):
        picture_size("photo.dng", io.BytesIO(buffer.getvalue()))


# Sizes.


@pytest.mark.parametrize(
    ("size", "side", "multiple", "expected"),
    [
        ((512, 512), 512, 64, (512, 512)),
        ((3000, 3000), 512, 64, (512, 512)),
        ((10, 10), 64, 64, (64, 64)),
        ((3000, 4000), 512, 64, (448, 576)),
        ((4000, 3000), 512, 64, (576, 448)),
        ((1080, 1920), 512, 64, (384, 704)),
        ((200, 300), 64, 64, (64, 64)),
        ((500, 500), 500, 64, (512, 512)),
    ],
)
def test_known_working_sizes(
    size: tuple[int, int], side: int, multiple: int, expected: tuple[int, int]
) -> None:
    assert working_size(size, side, multiple) == expected


@given(st.integers(1, 65500), st.integers(1, 65500), st.integers(1, 12), st.sampled_from([8, 64]))
def test_working_sizes_are_ones_that_a_model_takes(
    height: int, width: int, sides: int, multiple: int
) -> None:
    side = sides * multiple
    stretch = np.sqrt(width / height)
    ideal = np.array([side / stretch, side * stretch])
    try:
        result = working_size((height, width), side, multiple)
    except InputError:
        assert ideal.min() < multiple / 1.5 + multiple / (2 * ideal.max() / multiple)
        return
    assert all(side >= multiple and side % multiple == 0 for side in result)
    assert np.prod(result) <= 1.5 * side**2
    assert (np.abs(np.array(result) - ideal) < multiple).all()
    if ideal.min() > 2 * multiple:
        assert (np.abs(np.array(result) - ideal) <= multiple / 2 + 1e-6).all()


@pytest.mark.parametrize("size", [(1, 1200), (1200, 1), (1, 65500), (65500, 1)])
def test_too_narrow_a_picture_is_refused_with_the_remedy(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="x.png: .*too narrow.*crop it, or give a larger"):
        working_size(size, 512, 64, "x.png")


def test_a_panorama_is_worked_on() -> None:
    assert working_size((100, 1500), 512, 64) == (128, 1984)
    assert working_size((1, 3), 64, 64) == (64, 64)  # no room for its shape


def test_a_size_below_the_least(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiples of 64"):
        working_size((100, 100), 32, 64)


def test_resizing_is_exact_where_it_can_be() -> None:
    values = np.linspace(-1, 1, 60, dtype=np.float32).reshape(4, 5, 3)
    assert resize(values, (4, 5)) is values
    constant = np.full((7, 9, 3), 0.12345, np.float32)
    np.testing.assert_allclose(resize(constant, (64, 48)), 0.12345, rtol=1e-6)
    ramp = np.repeat(np.linspace(-1, 1, 64, dtype=np.float32)[None, :, None], 64, 0).repeat(3, -1)
    there_and_back = resize(resize(ramp, (512, 512)), (64, 64))
    # 8-bit steps on the way would leave errors of 1/255.
    assert np.abs(there_and_back - ramp)[:, 8:-8].max() < 1e-4


def test_shrinking_is_antialiased_and_stays_in_range() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 2.0 - 1
    shrunk = resize(board.astype(np.float32), (8, 8))
    assert shrunk.shape == (8, 8) and np.abs(shrunk).max() < 0.1
    edge = np.where(np.arange(16) < 8, -1.0, 1.0)[None].repeat(16, 0).astype(np.float32)
    assert np.abs(resize(edge, (128, 128))).max() <= 1
