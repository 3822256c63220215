"""Picture formats: what can be read, what each can hold when it is written, and what browsers show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from PIL import Image

try:
    import pillow_heif
except ImportError:  # the extra `heif` is not installed
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".heics", ".heifs")
"""What telephones and some cameras call their pictures; they are read with the extra `heif`."""
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Formats that Pillow knows by name, but has no decoder for, or only with Ghostscript or on Windows.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_SHOWN_BY_BROWSERS = {"AVIF", "BMP", "GIF", "ICO", "JPEG", "MPO", "PNG", "WEBP"}


@dataclass(frozen=True)
class Format:
    """Limits of a file format, and how it is written here: without loss wherever it can be.

    Attributes:
      suffix: of its files.
      alpha: whether it holds transparency.
      deep: whether it holds 16-bit grey; Pillow writes no 16-bit colour.
      icc: bytes of colour profile that it holds.
      exif: bytes of EXIF that it holds.
      blocks: whether camera and place, which are blocks of their own in EXIF, can be among them.
      dpi: whether it holds a resolution outside of EXIF.
      grey: whether it holds grey pictures as such; else they are written as RGB.
      max_side: the longest side that it holds, in pixels.
      options: for Pillow.
    """

    suffix: str
    alpha: bool = False
    deep: bool = False
    icc: int = 0
    exif: int = 0
    blocks: bool = True
    dpi: bool = False
    grey: bool = True
    max_side: int = 1 << 30
    options: Mapping[str, Any] = field(default_factory=dict)

    def holds_profile(self, profile: bytes, *, grey: bool) -> bool:
        """Whether a picture's colour profile can be kept: one for grey does not fit RGB."""
        return len(profile) <= self.icc and (self.grey or not grey)


_MANY = (1 << 31) - 1024
WRITTEN = {
    "PNG": Format(".png", alpha=True, deep=True, icc=_MANY, exif=_MANY, dpi=True),
    "TIFF": Format(
        ".tiff",
        alpha=True,
        deep=True,
        icc=_MANY,
        exif=_MANY,
        blocks=False,  # they make libtiff's writer fail
        dpi=True,
        options={"compression": "tiff_deflate"},
    ),
    "WEBP": Format(
        ".webp",
        alpha=True,
        icc=_MANY,
        exif=_MANY,
        grey=False,
        max_side=16383,
        options={"lossless": True, "exact": True},
    ),
    "JPEG": Format(
        ".jpg",
        icc=255 * 65519,  # segments that are counted in a byte
        exif=65533,  # one segment
        dpi=True,
        max_side=65500,
        options={"quality": 95, "subsampling": "4:4:4"},
    ),
    "AVIF": Format(
        ".avif",
        alpha=True,
        icc=_MANY,
        exif=_MANY,
        grey=False,
        max_side=32768,  # libavif reads no more
        options={"quality": 95, "subsampling": "4:4:4"},
    ),
    "JPEG2000": Format(".jp2", alpha=True, deep=True),
    "TGA": Format(".tga", alpha=True, max_side=65535),
    "BMP": Format(".bmp", dpi=True),
    "PPM": Format(".ppm", deep=True),
}
"""By Pillow's names; those of them that this build of Pillow writes are in `Image.SAVE`."""

ALIASES = {"MPO": "JPEG"}  # several JPEGs in a row, as telephones write them


def readable_suffixes() -> tuple[str, ...]:
    """Suffixes of the pictures that can be read here, in lower case; HEIC's if the extra `heif` is there."""
    known = Image.registered_extensions()
    decoded = (Image.OPEN.keys() | ALIASES.keys()) - _NOT_DECODED
    return tuple(sorted(suffix for suffix, name in known.items() if name in decoded))


def lacks_heif(name: str | PurePath) -> bool:
    """Whether a name is that of a HEIC picture, which can't be read because the extra `heif` is missing."""
    return pillow_heif is None and str(name).lower().endswith(HEIF_SUFFIXES)


def is_heif(head: bytes) -> bool:
    """Whether a file that begins with these 12 bytes is a HEIC picture, whatever its name is."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def is_raw(head: bytes, tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF file is a camera's raw file, in which Pillow finds a small preview.

    Args:
      head: its first 12 bytes.
      tags: of its first picture.
    """
    is_canon, is_dng = head[8:10] == b"CR", 50706 in tags
    is_reduced, has_others = bool(tags.get(254, 0) & 1), 330 in tags
    return is_canon or is_dng or (is_reduced and has_others)


def shown_by_browsers(name: str | PurePath) -> bool:
    """Whether browsers show pictures of this file name's format; TIFF, JPEG 2000, TGA, PPM they don't."""
    suffix = PurePath(name).suffix.lower()
    return Image.registered_extensions().get(suffix) in _SHOWN_BY_BROWSERS
