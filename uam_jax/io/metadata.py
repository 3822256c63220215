"""Metadata of a picture: which way is up, its colour profile, resolution, and what describes the photograph."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, TiffImagePlugin

from uam_jax.io.png import Chunks

# What describes the photograph. Everything else in an EXIF block describes the old file: its layout,
# its orientation, its thumbnail, which would still show the unedited picture. The resolution is kept apart.
_EXIF_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
_EXIF_BLOCKS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# In these blocks: its size as it was stored, and a place in it, where other bytes are now.
_OF_THE_OLD_FILE = (
    ExifTags.Base.ExifImageWidth,
    ExifTags.Base.ExifImageHeight,
    ExifTags.Base.ExifInteroperabilityOffset,
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:\s*=\s*["']|[^<>]*>)\s*([1-8])\s*["'<]""")


class _Text(str):
    """Text of EXIF, which Pillow reads a byte a character, in whatever encoding it is, and would write as ASCII."""

    def encode(self, *_: str) -> bytes:
        return super().encode("latin-1")


@dataclass(frozen=True)
class Metadata:
    """Metadata of a picture file.

    Attributes:
      orientation: how the stored pixels are to be turned, 1 to 8 as EXIF counts.
      turn: the part of it that Pillow leaves to do when it has loaded the pixels.
      icc_profile: the colour profile's bytes.
      exif: what describes the photograph, without orientation and thumbnail.
      dpi: horizontal and vertical resolution.
    """

    orientation: int
    turn: int
    icc_profile: bytes | None
    exif: bytes | None
    dpi: tuple[float, float] | None


def read_metadata(image: Image.Image, chunks: Chunks | None) -> Metadata:
    """Metadata of a picture, of which no pixels need be decoded.

    Args:
      image: as Pillow opened it.
      chunks: of a PNG file, whose metadata Pillow may see only after the pixels.
    """
    if chunks:
        exif, xmp, icc_profile = _exif(chunks.exif), chunks.xmp, chunks.icc_profile
    else:
        exif, xmp, icc_profile = _exif(image), image.info.get("xmp"), image.info.get("icc_profile")
    told = _tag(exif, ExifTags.Base.Orientation)
    valid = told in range(1, 9)
    orientation = int(told) if valid else _orientation_of_xmp(xmp)
    turn = 1 if image.format == "TIFF" and valid else orientation
    return Metadata(
        orientation, turn, icc_profile or None, _kept_bytes(exif), _resolution(image, exif)
    )


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """The (height, width) that a picture has when it is turned upright."""
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow turns them itself, and says so before it has.
        width, height = image.tag_v2[256], image.tag_v2[257]
    return (width, height) if orientation >= 5 else (height, width)


def turned(image: Image.Image, turn: int) -> Image.Image:
    """A loaded picture, turned as `Metadata.turn` says."""
    return image if turn == 1 else image.transpose(_TURNS[turn])


def fits(icc_profile: bytes | None, space: bytes) -> bool:
    """Whether a colour profile is one for pictures of a space, as b"RGB " or b"GRAY"."""
    return bool(icc_profile) and icc_profile[36:40] == b"acsp" and icc_profile[16:20] == space


def with_resolution(exif: bytes | None, dpi: tuple[float, float]) -> bytes:
    """The same EXIF with a resolution, for formats that have no other place for it."""
    block = _kept(_exif(exif or b""))
    block[ExifTags.Base.XResolution], block[ExifTags.Base.YResolution] = dpi
    block[ExifTags.Base.ResolutionUnit] = 2
    return block.tobytes()


def has_blocks(exif: bytes) -> bool:
    """Whether EXIF says something of the camera or the place."""
    return any(block in _exif(exif) for block in _EXIF_BLOCKS)


def without_blocks(exif: bytes) -> Image.Exif:
    """The same EXIF without what it says of the camera and the place."""
    return _kept(_exif(exif), blocks=())


def _exif(source: Image.Image | bytes) -> Image.Exif:
    """The tags; malformed metadata must not keep a sound picture from being read."""
    try:
        if isinstance(source, Image.Image):
            return source.getexif()
        exif = Image.Exif()
        exif.load(source)
        return exif
    except Exception:
        return Image.Exif()


def _tag(exif: Image.Exif, tag: int) -> Any:
    """A tag's value, or None if there is none that can be read."""
    try:
        return exif.get(tag)
    except Exception:  # as above
        return None


def _orientation_of_xmp(xmp: Any) -> int:
    packet = xmp.encode() if isinstance(xmp, str) else xmp or b""
    found = _XMP_ORIENTATION.search(packet.replace(b"\0", b""))  # UTF-16 too
    return int(found[1]) if found else 1


def _kept_bytes(source: Image.Exif) -> bytes | None:
    try:
        kept = _kept(source)
        return kept.tobytes() if len(kept) else None
    except Exception:  # as above
        return None


def _kept(source: Image.Exif, *, blocks: Sequence[int] = _EXIF_BLOCKS) -> Image.Exif:
    """What of the tags describes the photograph, with texts that stay the bytes that they are."""

    def exact(value: Any) -> Any:
        return _Text(value) if isinstance(value, str) else value

    kept = Image.Exif()
    kept.update({tag: exact(source[tag]) for tag in _EXIF_TAGS if tag in source})
    for block in blocks:
        values = {
            tag: exact(value)
            for tag, value in source.get_ifd(block).items()
            if tag not in _OF_THE_OLD_FILE
        }
        if values:
            kept[block] = values
    return kept


def _resolution(image: Image.Image, exif: Image.Exif) -> tuple[float, float] | None:
    told = image.info.get("dpi")
    tags = (ExifTags.Base.XResolution, ExifTags.Base.YResolution, ExifTags.Base.ResolutionUnit)
    x, y, unit = (_tag(exif, tag) for tag in tags)
    # Pillow makes one up where these formats have none.
    if image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):
        told = None
    if image.format == "TIFF" and x is None:
        told = None
    try:
        scale = {2: 1.0, 3: 2.54}[unit or 2]
        x, y = told or (float(x) * scale, float(y) * scale)
        sides = float(x), float(y)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    # JPEG has 16 bits for it, and whoever writes less than 1 means nothing by it.
    return sides if all(1 <= side <= 65535 for side in sides) else None
