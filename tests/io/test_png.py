"""PNG files with much metadata, which must neither make the picture unreadable nor need much memory."""

import io
import os
import zlib

import numpy as np
import pytest
from picture_files import SRGB, chunk, integers, with_chunk
from PIL import Image

from uam_jax.errors import InputError
from uam_jax.io import png
from uam_jax.io.images import picture_size, read_image
from uam_jax.io.png import read_chunks

PIXELS = integers(6, 7, 3)


def saved(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", **options)
    return buffer.getvalue()


WORKFLOW = b'{"nodes": [' + b"1234567890, " * 200_000 + b"0]}"
TEXTS = {
    "tEXt": chunk(b"tEXt", b"workflow\0" + WORKFLOW),
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(WORKFLOW)),
    "iTXt": chunk(b"iTXt", b"workflow\0\0\0\0\0" + WORKFLOW),
    "packed iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(WORKFLOW)),
    "no text": chunk(b"zTXt", b"workflow\0\0" + b"no zlib stream"),
    "unknown packing": chunk(b"zTXt", b"workflow\0\7" + b"x"),
    "many": chunk(b"tEXt", b"workflow\0" + WORKFLOW) * 40,
}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", TEXTS)
def test_texts_of_megabytes_do_not_cost_the_picture(kind: str, before: bytes) -> None:
    content = with_chunk(saved(), TEXTS[kind], before=before)
    np.testing.assert_array_equal(np.rint((read_image("x", content).pixels + 1) * 127.5), PIXELS)
    assert picture_size("x", io.BytesIO(content)) == (6, 7)


def test_a_profile_of_two_megabytes_is_kept() -> None:
    large = SRGB + os.urandom(2_000_000)
    assert read_image("x", saved(icc_profile=large)).icc_profile == large


@pytest.mark.parametrize("name", ["colour profile", "XMP", "raw profile", "EXIF"])
def test_metadata_beyond_the_bound_are_left_out_and_the_picture_kept(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(png, "LARGEST", 100_000)
    packed = zlib.compress(bytes(100_001))
    extra = {
        "colour profile": chunk(b"iCCP", b"name\0\0" + packed),
        "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed),
        "raw profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + packed),
        "EXIF": chunk(b"eXIf", bytes(100_001)),
    }[name]
    with pytest.warns(UserWarning, match=f"its {name} is too large and is left out"):
        read = read_image("x.png", with_chunk(saved(), extra))
    assert read.size == (6, 7) and read.icc_profile is None


def test_the_pixels_are_not_read_for_the_size() -> None:
    chunks = read_chunks(io.BytesIO(saved()), pixels=False)
    assert chunks.rest.getvalue().endswith(b"IDAT")
    assert len(read_chunks(io.BytesIO(saved())).rest.getvalue()) > len(chunks.rest.getvalue())


@pytest.mark.parametrize("end", range(8, 200, 7))
def test_a_file_that_ends_anywhere_is_refused_as_damaged(end: int) -> None:
    content = with_chunk(saved(icc_profile=SRGB), TEXTS["no text"])[:end]
    with pytest.raises(InputError, match="damaged or truncated|is not a picture"):
        read_image("x.png", content)
