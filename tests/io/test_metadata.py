"""Orientation from every place in a file; profiles and resolutions that fit the written file."""

import io
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from picture_files import SRGB, chunk, exif, integers, with_chunk, xmp
from PIL import ExifTags, Image, TiffImagePlugin

from uam_jax.io.encoding import encode_image, output_format
from uam_jax.io.images import picture_size, read_image

UPRIGHT = np.kron(
    np.array(
        [[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 250], [0, 0, 0], [250, 250, 0]]]
    ),
    np.ones((16, 16, 1)),
).astype(np.uint8)
"""Six squares, 32x48 pixels, that no turn and no mirror leaves in place."""


def stored(orientation: int) -> np.ndarray:
    """The picture as a file with that orientation has its pixels."""
    return np.ascontiguousarray(
        {
            2: UPRIGHT[:, ::-1],
            3: UPRIGHT[::-1, ::-1],
            4: UPRIGHT[::-1],
            5: UPRIGHT.swapaxes(0, 1),
            6: np.rot90(UPRIGHT),
            7: UPRIGHT[::-1, ::-1].swapaxes(0, 1),
            8: np.rot90(UPRIGHT, -1),
        }.get(orientation, UPRIGHT)
    )


def saved(array: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def raw_profile(name: bytes, content: bytes, kind: bytes) -> bytes:
    """A profile as ImageMagick writes it, in a chunk of text."""
    text = b"\n%s\n%8d\n%s\n" % (name, len(content), content.hex().encode())
    packed = b"\0" + zlib.compress(text) if kind == b"zTXt" else text
    return chunk(kind, b"Raw profile type " + name + b"\0" + packed)


def itxt(packet: bytes, *, packed: bool = False) -> bytes:
    content = b"\1\0\0\0" + zlib.compress(packet) if packed else b"\0\0\0\0" + packet
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0" + content)


def in_png(before: bytes, make: Callable[[int], bytes]) -> Callable[[int], bytes]:
    return lambda way: with_chunk(saved(stored(way), "PNG"), make(way), before=before)


def tiff_tag(way: int, **options: object) -> bytes:
    return saved(stored(way), "TIFF", tiffinfo={274: way}, **options)


def tiff_xmp(way: int) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[700] = xmp(way)
    tags.tagtype[700] = 1
    return saved(stored(way), "TIFF", tiffinfo=tags)


FILES: dict[str, Callable[[int], bytes]] = {
    "JPEG, EXIF": lambda way: saved(stored(way), "JPEG", exif=exif(way), quality=95),
    "JPEG, XMP": lambda way: saved(stored(way), "JPEG", xmp=xmp(way), quality=95),
    "MPO, EXIF": lambda way: saved(stored(way), "MPO", exif=exif(way), quality=95),
    "TIFF, tag": tiff_tag,
    "TIFF, tag, packed": lambda way: tiff_tag(way, compression="tiff_deflate"),
    "TIFF, XMP": tiff_xmp,
    "WEBP, EXIF": lambda way: saved(stored(way), "WEBP", exif=exif(way), lossless=True),
    "WEBP, XMP": lambda way: saved(stored(way), "WEBP", xmp=xmp(way), lossless=True),
    "AVIF, EXIF": lambda way: saved(stored(way), "AVIF", exif=exif(way), quality=95),
    "HEIF, EXIF": lambda way: saved(stored(way), "HEIF", exif=exif(way), quality=95),
    **{
        f"PNG, {name} {place}": in_png(before, make)
        for place, before in {"first": b"IDAT", "last": b"IEND"}.items()
        for name, make in {
            "eXIf": lambda way: chunk(b"eXIf", exif(way)[6:]),
            "XMP": lambda way: itxt(xmp(way)),
            "packed XMP": lambda way: itxt(xmp(way), packed=True),
            "raw EXIF": lambda way: raw_profile(b"exif", exif(way), b"zTXt"),
            "raw EXIF, not packed": lambda way: raw_profile(b"exif", exif(way), b"tEXt"),
            "raw APP1": lambda way: raw_profile(b"APP1", exif(way), b"zTXt"),
            "raw XMP": lambda way: raw_profile(b"xmp", xmp(way), b"zTXt"),
        }.items()
    },
}


def check_upright(content: bytes) -> None:
    read = read_image("x", content)
    assert picture_size("x", io.BytesIO(content)) == read.size == (32, 48)
    np.testing.assert_allclose(
        read.pixels[8::16, 8::16], UPRIGHT[8::16, 8::16] / 127.5 - 1, atol=0.1
    )


@pytest.mark.parametrize("way", range(1, 9))
@pytest.mark.parametrize("kind", FILES)
def test_the_head_and_the_pixels_agree_on_what_is_up(kind: str, way: int) -> None:
    check_upright(FILES[kind](way))


NOT_WRITTEN = ("HEIF, EXIF", "TIFF, tag, packed")
"""Kinds whose writers refuse an orientation that there is not."""


@pytest.mark.parametrize("way", [0, 9])
@pytest.mark.parametrize("kind", [name for name in FILES if name not in NOT_WRITTEN])
def test_an_orientation_that_there_is_not_is_none(kind: str, way: int) -> None:
    check_upright(FILES[kind](way))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_a_right_orientation_beside_a_wrong_one_counts(kind: str) -> None:
    if kind == "PNG":
        chunks = chunk(b"eXIf", exif(0)[6:]) + itxt(xmp(6))
        content = with_chunk(saved(stored(6), "PNG"), chunks)
    elif kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[274], tags[700] = 0, xmp(6)
        tags.tagtype[700] = 1
        content = saved(stored(6), "TIFF", tiffinfo=tags)
    else:
        content = saved(stored(6), kind, exif=exif(0), xmp=xmp(6), quality=100)
    check_upright(content)


@pytest.mark.parametrize("kind", FILES)
def test_the_edited_copy_is_upright_and_says_nothing_of_turning(kind: str) -> None:
    read = read_image("x", FILES[kind](6))
    check_upright(encode_image("x.png", read.pixels, read))
    with Image.open(io.BytesIO(encode_image("x.png", read.pixels, read))) as image:
        assert ExifTags.Base.Orientation not in image.getexif()


# Resolution.


@pytest.mark.parametrize("written", ["png", "tif", "jpg", "bmp", "webp", "avif"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "BMP"])
def test_the_resolution_is_kept(kind: str, written: str) -> None:
    read = read_image("x", saved(UPRIGHT, kind, dpi=(300, 150)))
    assert read.dpi == pytest.approx((300, 150), abs=0.05)
    again = read_image("x", encode_image(f"x.{written}", read.pixels, read))
    assert again.dpi == pytest.approx((300, 150), abs=0.05)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_no_resolution_is_made_up(kind: str) -> None:
    read = read_image("x", saved(UPRIGHT, kind, exif=exif(1)))
    assert read.dpi is None


def test_a_resolution_in_exif_alone_counts() -> None:
    block = Image.Exif()
    block[ExifTags.Base.XResolution] = block[ExifTags.Base.YResolution] = 100.0
    block[ExifTags.Base.ResolutionUnit] = 3  # centimetres
    for kind in ("JPEG", "WEBP"):
        read = read_image("x", saved(UPRIGHT, kind, exif=block))
        assert read.dpi == pytest.approx((254, 254))


@pytest.mark.parametrize("dpi", [(0, 0), (1e9, 1e9)])
def test_a_resolution_that_means_nothing_is_none(dpi: tuple[float, float]) -> None:
    assert read_image("x", saved(UPRIGHT, "TIFF", dpi=dpi)).dpi is None


# Colour profiles.


def profile(space: bytes, length: int = 200) -> bytes:
    head = bytearray(length)
    head[16:20], head[36:40] = space, b"acsp"
    return bytes(head)


@pytest.mark.parametrize(
    ("shape", "space", "kept"),
    [
        ((8, 8, 3), b"RGB ", True),
        ((8, 8, 3), b"Lab ", False),
        ((8, 8, 3), b"GRAY", False),
        ((8, 8, 3), b"CMYK", False),
        ((8, 8), b"GRAY", True),
        ((8, 8), b"RGB ", False),
    ],
)
def test_a_profile_is_kept_if_it_is_for_the_channels(
    shape: tuple[int, ...], space: bytes, kept: bool
) -> None:
    content = saved(integers(*shape), "PNG", icc_profile=profile(space))
    assert read_image("x", content).icc_profile == (profile(space) if kept else None)


def test_what_is_no_profile_is_left_out() -> None:
    content = saved(integers(8, 8, 3), "PNG", icc_profile=bytes(200))
    assert read_image("x", content).icc_profile is None


def test_lab_becomes_srgb_without_its_profile() -> None:
    lab = Image.frombytes("LAB", (2, 1), bytes([138, 81, 70, 137, 0, 0]))
    buffer = io.BytesIO()
    lab.save(buffer, "TIFF", icc_profile=profile(b"Lab "))
    with pytest.warns(UserWarning, match="converted to RGB"):
        read = read_image("x", buffer.getvalue())
    assert read.icc_profile is None
    np.testing.assert_allclose(read.pixels[0], [[1, -1, -1], [0, 0, 0]], atol=0.05)


# What describes the picture.


def in_any_language() -> bytes:
    """EXIF with texts of UTF-8 and Latin-1, which Pillow writes as ASCII only."""
    block = Image.Exif()
    block[ExifTags.Base.ImageDescription], block[ExifTags.Base.Artist] = "1" * 9, "2" * 6
    camera = block.get_ifd(ExifTags.IFD.Exif)
    camera[ExifTags.Base.LensModel] = "3" * 9
    camera[ExifTags.Base.UserComment] = b"UNICODE\0" + "日本".encode("utf-16-le")
    camera[ExifTags.Base.ExifImageWidth], camera[ExifTags.Base.ExposureTime] = 7, 0.5
    camera[ExifTags.Base.ExifInteroperabilityOffset] = 99
    content = block.tobytes()
    for written, meant in {
        b"1" * 9: "日本語".encode(),
        b"2" * 6: "Jürgen".encode("latin-1"),
        b"3" * 9: "Objektiv²".encode("latin-1"),
    }.items():
        assert written in content
        content = content.replace(written, meant)
    return content


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif", "tif"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.filterwarnings("ignore:.*TIFF holds no EXIF of camera")
def test_texts_of_exif_stay_the_bytes_that_they_are(kind: str, suffix: str) -> None:
    content = saved(UPRIGHT, kind, exif=in_any_language(), dpi=(300, 300))
    read = read_image("x", content)
    for _ in range(2):
        content = encode_image(f"x.{suffix}", read.pixels, read)
        read = read_image("x", content)
    with Image.open(io.BytesIO(content)) as image:
        block = image.getexif()
        assert block[ExifTags.Base.ImageDescription].encode("latin-1") == "日本語".encode()
        assert block[ExifTags.Base.Artist] == "Jürgen"
        camera = block.get_ifd(ExifTags.IFD.Exif)
    if suffix != "tif":
        assert camera[ExifTags.Base.LensModel] == "Objektiv²"
        assert camera[ExifTags.Base.UserComment][8:].decode("utf-16-le") == "日本"
        assert camera[ExifTags.Base.ExposureTime] == 0.5
        # The old file's size, and a place in it.
        assert ExifTags.Base.ExifImageWidth not in camera
        assert ExifTags.Base.ExifInteroperabilityOffset not in camera


# Metadata that a format can't hold.


def described(size: int) -> bytes:
    block = Image.Exif()
    block[ExifTags.Base.Artist] = "someone"
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = bytes(size)
    return block.tobytes()


@pytest.mark.parametrize("suffix", ["jpg", "tif", "bmp", "jp2"])
def test_exif_that_a_format_cannot_hold_does_not_cost_the_picture(suffix: str) -> None:
    read = read_image("x", saved(UPRIGHT, "PNG", exif=described(100_000)))
    with pytest.warns(UserWarning, match="holds no EXIF") as caught:
        output_format(f"x.{suffix}", read)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="holds no EXIF"):
        content = encode_image(f"x.{suffix}", read.pixels, read)
    check_upright(content)


@pytest.mark.parametrize("suffix", ["png", "webp", "avif"])
def test_large_exif_is_kept_where_it_can_be(suffix: str) -> None:
    read = read_image("x", saved(UPRIGHT, "PNG", exif=described(100_000)))
    with Image.open(io.BytesIO(encode_image(f"x.{suffix}", read.pixels, read))) as image:
        block = image.getexif().get_ifd(ExifTags.IFD.Exif)
    assert len(block[ExifTags.Base.MakerNote]) == 100_000


def test_tiff_keeps_what_describes_the_picture() -> None:
    read = read_image("x", saved(UPRIGHT, "PNG", exif=described(10)))
    with pytest.warns(UserWarning, match="no EXIF of camera and place"):
        content = encode_image("x.tif", read.pixels, read)
    with Image.open(io.BytesIO(content)) as image:
        assert image.getexif()[ExifTags.Base.Artist] == "someone"


def test_a_profile_that_is_too_large_for_jpeg() -> None:
    large = profile(b"RGB ", 17_000_000)
    read = read_image("x", saved(UPRIGHT, "TIFF", icc_profile=large))
    assert read.icc_profile == large
    with pytest.warns(UserWarning, match="cannot hold its colour profile of 17,000,000 bytes"):
        content = encode_image("x.jpg", read.pixels, read)
    check_upright(content)


def test_metadata_that_an_encoder_refuses_does_not_cost_the_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Image.Image.save

    def save(image: Image.Image, *args: object, **options: object) -> None:
        if "icc_profile" in options:
            raise OSError("not this profile")
        write(image, *args, **options)

    read = read_image("x", saved(UPRIGHT, "PNG", icc_profile=SRGB))
    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.warns(UserWarning, match="left out .*not this profile"):
        content = encode_image("x.png", read.pixels, read)
    check_upright(content)
