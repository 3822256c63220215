"""Picture files to arrays: the first arrow of the flow; `encoding` is the way back.

Pictures are float32 arrays (h, w, 3) in [-1, 1]. That carries 8- and 16-bit values exactly: what was
read and not changed is written with the same integers.
"""

import io
import math
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from uam_jax.errors import InputError
from uam_jax.formats import ALIASES, is_heif, pillow_heif

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_SIXTEEN_BIT_GREY = ("I;16", "I;16L", "I;16B", "I;16N")

# What describes the photograph. Everything else in an EXIF block describes the old file: its layout,
# its orientation, its thumbnail, which would still show the unedited picture.
_EXIF_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
    ExifTags.Base.ResolutionUnit,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
_EXIF_BLOCKS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


@dataclass(frozen=True)
class Picture:
    """A picture as it was read, upright, with what is needed to save its edited copy faithfully.

    Attributes:
      pixels: values in [-1, 1]; grey pictures have three equal channels.
      levels: the largest integer of the file's channels, 255 or 65535.
      grey: the file holds one colour channel; so will its copies.
      alpha: opacity, kept apart because no model sees it.
      file_format: Pillow's name of the format, "PNG" say.
      icc_profile: the colour profile's bytes.
      exif: what describes the photograph, without orientation and thumbnail.
    """

    pixels: Float[np.ndarray, "h w 3"]
    levels: int = 255
    grey: bool = False
    alpha: UInt8[np.ndarray, "h w"] | None = None
    file_format: str = "PNG"
    icc_profile: bytes | None = None
    exif: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_image(path: str | Path, content: bytes | None = None) -> Picture:
    """Reads any picture that Pillow knows, turned upright as its EXIF orientation says.

    Palette pictures become RGB or RGBA, 1-bit ones grey, CMYK ones sRGB. Of several frames the first
    counts, with a warning, as for 16-bit colour, of which Pillow reads the upper 8 bits.

    Args:
      path: the file.
      content: its bytes, if they are at hand; `path` is then only told.

    Raises:
      InputError: the file is missing, no picture, damaged, or too large to be decoded safely.
    """
    path = Path(path)
    if content is None:
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder: name the picture files in it")
        if not os.path.isfile(path):  # a pipe would be waited for, perhaps for ever
            raise InputError(f"{path}: no such file; check the path")
    with _faults_told(path), path.open("rb") if content is None else io.BytesIO(content) as file:
        picture, notes = _decode(file)
    for note in notes:
        warn(f"{path}: {note}")
    return picture


def picture_size(path: str | Path, file: io.IOBase) -> tuple[int, int]:
    """The (height, width) of a picture, upright, without decoding its pixels.

    Raises:
      InputError: as `read_image`.
    """
    with _faults_told(path), _open(file) as image:
        width, height = image.size
        # Pillow's own way decodes a whole PNG to see whether EXIF follows the pixels.
        exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
        if not exif and image.format == "PNG":
            exif.load(_exif_of_png(file))
        turned = exif.get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if turned else (height, width)


def _exif_of_png(file: Any) -> bytes:
    """The eXIf chunk, wherever it is; from the chunks' heads alone."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(length)
        file.seek(length + 4, os.SEEK_CUR)
    return b""


@contextmanager
def quietly() -> Iterator[None]:
    """Without this module's warnings in this thread; `warnings.catch_warnings` would change all threads'."""
    before = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(before)


@contextmanager
def _faults_told(path: str | Path) -> Iterator[None]:
    """Whatever Pillow raises, as an `InputError` that names the file."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"{path} unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels: scale it down first"
        ) from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is no picture in a format that can be read: convert it to PNG or JPEG"
        ) from None
    except PermissionError:
        raise InputError(f"{path} may not be read: check its permissions") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    # Pillow's decoders raise nearly anything on damaged data: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise InputError(
            f"{path} cannot be decoded ({error}): it may be damaged or truncated, export it anew"
        ) from error


def working_size(size: tuple[int, int], side: int, multiple: int) -> tuple[int, int]:
    """The (height, width) at which a model works on a picture of `size`.

    The sides of a rectangle of area `side`² with the picture's aspect ratio, each rounded to the
    nearest multiple of `multiple`.

    Raises:
      InputError: `side` is smaller than `multiple`.
    """
    if side < multiple:
        raise InputError(f"size {side}: the model works on multiples of {multiple} pixels")
    stretch = math.sqrt(size[1] / size[0])
    height, width = (max(round(s / multiple), 1) for s in (side / stretch, side * stretch))
    return height * multiple, width * multiple


def resize(
    values: Float[np.ndarray, "h w *c"], size: tuple[int, int], *, linear: bool = False
) -> Float[np.ndarray, "H W *c"]:
    """Scales to `size` (height, width), antialiased, in floating point; the same size is no change.

    Lanczos, clipped to the range of the input, for pictures; `linear` weights, none of them
    negative, for masks.
    """
    if values.shape[:2] == size:
        return values
    height, width = size
    kernel = Image.Resampling.BILINEAR if linear else Image.Resampling.LANCZOS
    channels = np.moveaxis(values.reshape(*values.shape[:2], -1), -1, 0).astype(np.float32)
    scaled = [Image.fromarray(channel).resize((width, height), kernel) for channel in channels]
    stacked = np.stack([np.asarray(channel) for channel in scaled], axis=-1)
    return np.clip(stacked, values.min(), values.max()).reshape(height, width, *values.shape[2:])


def _decode(file: io.IOBase) -> tuple[Picture, list[str]]:
    """The picture, and what the user should know about how it was read."""
    with _open(file) as image:
        file_format = image.format or ""
        rawmodes = str([tile[3] for tile in image.tile])
        frames = getattr(image, "n_frames", 1)
        image.load()
        notes = []
        if frames > 1 and file_format not in ALIASES:
            notes.append(f"holds {frames} frames; only the first is used")
        if ";16" in rawmodes and image.mode not in (*_SIXTEEN_BIT_GREY, "I"):
            notes.append("16-bit colour is read with 8 bits per channel, and so written")
        exif = _kept_exif(image)
        icc_profile = image.info.get("icc_profile")
        upright = ImageOps.exif_transpose(image)
    if upright.mode in ("CMYK", "YCbCr", "HSV"):
        upright, icc_profile = _to_srgb(upright, icc_profile), None
        notes.append("its colours are converted to RGB")
    values, alpha, grey = _channels(upright)
    levels = int(np.iinfo(values.dtype).max)
    pixels = values * np.float32(2 / levels) - np.float32(1)
    if grey:
        pixels = np.repeat(pixels, 3, axis=-1)
    return Picture(pixels, levels, grey, alpha, file_format, icc_profile, exif), notes


def _open(file: Any) -> ImageFile.ImageFile:
    """The picture with its head alone read.

    Refuses what Pillow only warns of; a filter would not, when pictures are read in several threads.
    """
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        if is_heif(file.read(12)) and pillow_heif is None:
            raise InputError(
                "a HEIC picture, which needs: python -m pip install 'uam_jax[heif]'"
            ) from None
        raise
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    return image


def _channels(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Integers (h, w, 1 or 3), alpha, and whether the picture is grey."""
    if image.mode in _SIXTEEN_BIT_GREY:
        return np.asarray(image).astype(np.uint16)[..., None], None, True
    if image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        top = 65535 if image.mode == "I" else 1
        if not (values.min() >= 0 and values.max() <= top):
            raise InputError(
                f"its 32-bit values reach beyond 0 to {top}, so black and white are undefined: "
                "convert it to 16 or 8 bits"
            )
        return np.rint(values * (65535 / top)).astype(np.uint16)[..., None], None, True
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = image.has_transparency_data
    values = np.asarray(image.convert(("L" if grey else "RGB") + ("A" if alpha else "")))
    values = values.reshape(*values.shape[:2], -1)
    count = 1 if grey else 3
    return values[..., :count], values[..., count].copy() if alpha else None, grey


def _to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    if icc_profile:
        try:
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(
                image, io.BytesIO(icc_profile), srgb, outputMode="RGB"
            )
            if converted is not None:
                return converted
        except ImageCms.PyCMSError:  # a profile for another mode, or damaged: as if there were none
            pass
    return image.convert("RGB")


def _kept_exif(image: Image.Image) -> bytes | None:
    kept = Image.Exif()
    try:
        source = image.getexif()
        kept.update({tag: source[tag] for tag in _EXIF_TAGS if tag in source})
        for block in _EXIF_BLOCKS:
            if values := source.get_ifd(block):
                kept[block] = dict(values)
        return kept.tobytes() if len(kept) else None
    except Exception:  # malformed metadata must not keep a sound picture from being read
        return None


def by(size: tuple[int, ...]) -> str:
    """A (height, width) as people write it."""
    return f"{size[1]}x{size[0]}"


def warn(message: str) -> None:
    """A warning to the user, unless this thread wants none; see `quietly`."""
    if not _QUIET.get():
        warnings.warn(message, UserWarning, stacklevel=3)
