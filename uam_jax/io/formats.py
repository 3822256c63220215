"""Picture formats: those that can be read, the limits of those that can be written, and those that browsers show."""

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
"""Suffixes of HEIC pictures, which telephones and some cameras write; reading them needs the extra `heif`."""
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Formats that Pillow knows by name but cannot decode, or only with Ghostscript or on Windows.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_SHOWN_BY_BROWSERS = {"AVIF", "BMP", "GIF", "ICO", "JPEG", "MPO", "PNG", "WEBP"}


@dataclass(frozen=True)
class Format:
    """Limits of a file format, and the options with which it is written: without loss if possible.

    Attributes:
      suffix: the suffix of its files.
      alpha: whether it holds transparency.
      deep: whether it holds 16-bit grey; Pillow writes no 16-bit colour.
      icc: the largest colour profile that it holds, in bytes.
      exif: the largest EXIF that it holds, in bytes.
      blocks: whether its EXIF can have the blocks for the camera and the place.
      dpi: whether it holds a resolution outside of EXIF.
      grey: whether it holds grey pictures; otherwise they are written as RGB.
      max_side: the longest side that it holds, in pixels.
      options: Pillow's options for writing it.
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
        """Whether a picture's colour profile can be kept. A profile for grey does not fit RGB."""
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
        blocks=False,  # libtiff's writer fails with them
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
        icc=255 * 65519,  # 255 segments, since a byte counts them
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
"""Formats by Pillow's names. Those that this build of Pillow can write are in `Image.SAVE`."""

ALIASES = {"MPO": "JPEG"}  # a sequence of JPEGs, which telephones write


def readable_suffixes() -> tuple[str, ...]:
    """Returns the suffixes of pictures that can be read, in lower case; HEIC needs the extra `heif`."""
    known = Image.registered_extensions()
    decoded = (Image.OPEN.keys() | ALIASES.keys()) - _NOT_DECODED
    return tuple(sorted(suffix for suffix, name in known.items() if name in decoded))


def lacks_heif(name: str | PurePath) -> bool:
    """Whether a name is that of a HEIC picture and the extra `heif`, which reads it, is missing."""
    return pillow_heif is None and str(name).lower().endswith(HEIF_SUFFIXES)


def is_heif(head: bytes) -> bool:
    """Whether a file that begins with these 12 bytes is a HEIC picture."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def is_raw(head: bytes, tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF file is a camera's raw file, in which Pillow finds only a small preview.

    Args:
      head: the first 12 bytes of the file.
      tags: the tags of its first picture.
    """
    is_canon, is_dng = head[8:10] == b"CR", 50706 in tags
    is_reduced, has_others = bool(tags.get(254, 0) & 1), 330 in tags
    return is_canon or is_dng or (is_reduced and has_others)


def shown_by_browsers(name: str | PurePath) -> bool:
    """Whether browsers show pictures of the format that a file name has; they do not show TIFF, JPEG 2000, TGA, PPM."""
    suffix = PurePath(name).suffix.lower()
    return Image.registered_extensions().get(suffix) in _SHOWN_BY_BROWSERS
