"""Formats by the names of their files: those that are read, those that browsers show, those that need an extra."""

import pytest
from PIL import Image

from uam_jax.io import formats
from uam_jax.io.formats import is_heif, lacks_heif, readable_suffixes, shown_by_browsers


def test_every_suffix_of_a_decoder_is_readable() -> None:
    suffixes = readable_suffixes()
    assert {".jfif", ".jpe", ".jpf", ".dib", ".pgm", ".psd", ".qoi", ".heic", ".hif"} <= {*suffixes}
    assert not {".h5", ".pdf", ".mpg", ".eps", ".txt", ""} & {*suffixes}
    assert all(suffix == suffix.lower() for suffix in suffixes)


def test_heic_is_counted_by_name_where_the_extra_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not lacks_heif("a/IMG_1.HEIC")
    monkeypatch.setattr(formats, "pillow_heif", None)
    assert lacks_heif("a/IMG_1.HEIC") and lacks_heif("x.heif") and not lacks_heif("x.jpg")


def test_the_suffixes_of_heic_are_those_of_its_decoder() -> None:
    known = Image.registered_extensions()
    assert {suffix for suffix, name in known.items() if name == "HEIF"} == {*formats.HEIF_SUFFIXES}


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\0\0\0\x18ftypheic", True),
        (b"\0\0\0\x18ftypmif1", True),
        (b"\0\0\0\x18ftypavif", False),
        (b"\x89PNG\r\n\x1a\n\0\0\0\r", False),
        (b"", False),
    ],
)
def test_heic_is_known_by_its_first_bytes(head: bytes, expected: bool) -> None:
    assert is_heif(head) == expected


@pytest.mark.parametrize("name", ["a.png", "b.JPG", "c.jfif", "d.webp", "e.avif", "f.gif", "g.bmp"])
def test_pictures_that_browsers_show(name: str) -> None:
    assert shown_by_browsers(name)


@pytest.mark.parametrize("name", ["a.tif", "b.TIFF", "c.jp2", "d.tga", "e.ppm", "f.heic", "g"])
def test_pictures_that_browsers_do_not_show(name: str) -> None:
    assert not shown_by_browsers(name)
