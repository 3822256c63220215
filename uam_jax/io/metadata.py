"""Metadata of a picture: orientation, colour profile, resolution, and the tags that describe the photograph."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, TiffImagePlugin

from uam_jax.io.png import Chunks

# Tags that describe the photograph. All other tags describe the old file: its layout, its orientation, and its
# thumbnail, which would still show the unedited picture. The resolution is kept apart.
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
# Tags in these blocks that describe the old file: the stored size, and an offset where other bytes are now.
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
    """Text of EXIF with unchanged bytes. Pillow reads every byte as a character and would write them as ASCII."""

    def encode(self, *_: str) -> bytes:
        return super().encode("latin-1")


@dataclass(frozen=True)
class Metadata:
    """Metadata of a picture file.

    Attributes:
      orientation: the turn that makes the stored pixels upright, 1 to 8 as in EXIF.
      turn: the part of that turn that remains after Pillow has loaded the pixels.
      icc_profile: the bytes of the colour profile.
      exif: the bytes of the EXIF tags that describe the photograph, without orientation and thumbnail.
      dpi: horizontal and vertical resolution.
    """

    orientation: int
    turn: int
    icc_profile: bytes | None
    exif: bytes | None
    dpi: tuple[float, float] | None


def read_metadata(image: Image.Image, chunks: Chunks | None) -> Metadata:
    """Reads the metadata of a picture without decoding its pixels.

    Args:
      image: the picture as Pillow opened it.
      chunks: the chunks of a PNG file, whose metadata Pillow may find only after the pixels.
    """
    if chunks:
        exif, xmp, icc_profile = _exif(chunks.exif), chunks.xmp, chunks.icc_profile
    else:
        exif, xmp, icc_profile = _exif(image), image.info.get("xmp"), image.info.get("icc_profile")
    tag = _tag(exif, ExifTags.Base.Orientation)
    valid = tag in range(1, 9)
    orientation = int(tag) if valid else _orientation_of_xmp(xmp)
    turn = 1 if image.format == "TIFF" and valid else orientation
    return Metadata(
        orientation, turn, icc_profile or None, _kept_bytes(exif), _resolution(image, exif)
    )


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Returns the (height, width) of a picture after it is turned upright."""
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow turns TIFF pictures by itself, and `size` is the turned one already before that.
        width, height = image.tag_v2[256], image.tag_v2[257]
    return (width, height) if orientation >= 5 else (height, width)


def turned(image: Image.Image, turn: int) -> Image.Image:
    """Turns a loaded picture as `Metadata.turn` says."""
    return image if turn == 1 else image.transpose(_TURNS[turn])


def fits(icc_profile: bytes | None, space: bytes) -> bool:
    """Whether a colour profile is for pictures of a colour space, such as b"RGB " or b"GRAY"."""
    return bool(icc_profile) and icc_profile[36:40] == b"acsp" and icc_profile[16:20] == space


def with_resolution(exif: bytes | None, dpi: tuple[float, float]) -> bytes:
    """Adds a resolution to EXIF, for formats that have no other place for it."""
    block = _kept(_exif(exif or b""))
    block[ExifTags.Base.XResolution], block[ExifTags.Base.YResolution] = dpi
    block[ExifTags.Base.ResolutionUnit] = 2
    return block.tobytes()


def has_blocks(exif: bytes) -> bool:
    """Whether EXIF has a block for the camera or the place."""
    return any(block in _exif(exif) for block in _EXIF_BLOCKS)


def without_blocks(exif: bytes) -> Image.Exif:
    """Removes the blocks for the camera and the place from EXIF."""
    return _kept(_exif(exif), blocks=())


def _exif(source: Image.Image | bytes) -> Image.Exif:
    """Reads the tags; none where metadata are malformed, because the picture itself can still be read."""
    try:
        if isinstance(source, Image.Image):
            return source.getexif()
        exif = Image.Exif()
        exif.load(source)
        return exif
    except Exception:
        return Image.Exif()


def _tag(exif: Image.Exif, tag: int) -> Any:
    """The value of a tag; None if it is missing or cannot be read."""
    try:
        return exif.get(tag)
    except Exception:  # as above
        return None


def _orientation_of_xmp(xmp: Any) -> int:
    packet = xmp.encode() if isinstance(xmp, str) else xmp or b""
    found = _XMP_ORIENTATION.search(packet.replace(b"\0", b""))  # the packet may be UTF-16
    return int(found[1]) if found else 1


def _kept_bytes(source: Image.Exif) -> bytes | None:
    try:
        kept = _kept(source)
        return kept.tobytes() if len(kept) else None
    except Exception:  # as above
        return None


def _kept(source: Image.Exif, *, blocks: Sequence[int] = _EXIF_BLOCKS) -> Image.Exif:
    """The tags that describe the photograph; the bytes of their texts do not change."""

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
    dpi = image.info.get("dpi")
    tags = (ExifTags.Base.XResolution, ExifTags.Base.YResolution, ExifTags.Base.ResolutionUnit)
    x, y, unit = (_tag(exif, tag) for tag in tags)
    # Pillow invents a resolution where files of these formats have none.
    if image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):
        dpi = None
    if image.format == "TIFF" and x is None:
        dpi = None
    try:
        scale = {2: 1.0, 3: 2.54}[unit or 2]
        x, y = dpi or (float(x) * scale, float(y) * scale)
        sides = float(x), float(y)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    # JPEG has 16 bits for a resolution, and a value below 1 has no meaning.
    return sides if all(1 <= side <= 65535 for side in sides) else None
