"""Files to arrays and back: the first and the last arrow of the flow, and the only user of Pillow.

Pictures are float32 arrays (h, w, 3) in [-1, 1]. That carries 8- and 16-bit values exactly: what was
read and not changed is written with the same integers.
"""

import io
import math
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from uam_jax.errors import InputError
from uam_jax.formats import ALIASES, WRITTEN, is_heif, pillow_heif

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
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
        _warn(f"{path}: {note}")
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


def read_mask(
    path: str | Path, size: tuple[int, int], content: bytes | None = None
) -> Float[np.ndarray, "h w"]:
    """Reads a mask: white (1) may change, black or transparent (0) must not; 0/1 labels count as 0/255.

    Raises:
      InputError: as `read_image`, or the mask's size isn't `size` (height, width), or it's all black.
    """
    picture = read_image(path, content)
    if picture.size != size:
        raise InputError(
            f"{path}: the mask has {_by(picture.size)} pixels, its picture {_by(size)}: "
            "both must have the same size"
        )
    # Rounded, so that black is exactly 0.
    white = np.rint((picture.pixels @ _LUMA + 1) * np.float32(picture.levels / 2))
    if picture.alpha is not None:
        white *= picture.alpha / np.float32(255)
    if not white.any():
        raise InputError(f"{path}: the mask is all black: paint white what may change")
    return white / np.float32(picture.levels if white.max() > 1 else 1)


def output_format(path: str | Path, like: Picture) -> str:
    """The format that `path` says, or without a suffix the one of `like`.

    Warns about what that format loses of `like` and can be done without.

    Raises:
      InputError: the format is unknown, or can't hold the picture.
    """
    path = Path(path)
    formats = Image.registered_extensions() | {"": like.file_format}
    name = formats.get(path.suffix.lower(), "")
    name = ALIASES.get(name, name)
    if name not in WRITTEN or name not in Image.SAVE:
        known = ", ".join(kind.suffix for key, kind in WRITTEN.items() if key in Image.SAVE)
        raise InputError(f"{path}: cannot write {path.suffix or name} files; choose from {known}")
    kind = WRITTEN[name]
    if like.alpha is not None and not kind.alpha and like.alpha.min() < 255:
        raise InputError(f"{path}: {name} holds no transparency; choose .png, .webp or .tiff")
    if max(like.size) > kind.max_side:
        raise InputError(f"{path}: {name} holds at most {kind.max_side} pixels a side; choose .png")
    if like.levels > 255 and not kind.deep:
        _warn(f"{path}: {name} holds 8 bits of the original's 16; .png and .tiff hold them all")
    if like.icc_profile and not kind.icc:
        _warn(f"{path}: {name} holds no colour profile; .png, .tiff and .jpg do")
    return name


def default_suffix(path: str | Path, like: Picture) -> str:
    """The suffix for a copy of the picture at `path`: its own, or ".png" if that can't be written."""
    suffix = Path(path).suffix
    own = suffix if suffix.lower() in Image.registered_extensions() else ""
    try:
        with quietly():
            name = output_format("copy" + own, like)
        return own or WRITTEN[name].suffix
    except InputError:
        _warn(f"{path}: {like.file_format} cannot hold the result faithfully, so it becomes a .png")
        return ".png"


def refuse_nonfinite(path: str | Path, pixels: np.ndarray) -> None:
    """Says what to do about a network that overflowed, before black pixels are made of it.

    Raises:
      InputError: a number is not finite.
    """
    if not np.isfinite(pixels).all():
        raise InputError(
            f"{path}: the network gave numbers that are not finite: try --dtype float32"
        )


def encode_image(
    path: str | Path, pixels: Float[np.ndarray, "h w 3"], like: Picture | None = None
) -> bytes:
    """The bytes of a file for `path`: depth, grey, alpha, profile and EXIF as `like` has them.

    Values are rounded to the nearest level, after clipping to [-1, 1].

    Raises:
      InputError: see `output_format`.
      ValueError: `pixels` and `like` differ in size.
    """
    like = like or Picture(pixels)
    if like.size != pixels.shape[:2]:
        raise ValueError(f"{_by(pixels.shape[:2])} pixels for a picture of {_by(like.size)}")
    name = output_format(path, like)
    kind = WRITTEN[name]
    levels = like.levels if kind.deep else 255
    values = pixels @ _LUMA if like.grey else pixels
    values = np.rint((np.clip(values, -1, 1) + 1) * np.float32(levels / 2))
    values = values.astype(np.uint8 if levels == 255 else np.uint16)
    if like.alpha is not None and kind.alpha:
        values = np.dstack([values, like.alpha])
    metadata = {"exif": like.exif} if kind.exif and like.exif else {}
    buffer = io.BytesIO()
    Image.fromarray(values).save(
        buffer, name, icc_profile=like.icc_profile, **kind.options, **metadata
    )
    return buffer.getvalue()


def encode_mask(mask: Float[np.ndarray, "h w"]) -> bytes:
    """The bytes of an 8-bit grey PNG: white where `mask` is 1."""
    pixels = np.repeat(mask[..., None] * 2 - 1, 3, axis=-1)
    return encode_image("mask.png", pixels, Picture(pixels, grey=True))


def encode_error(error: Float[np.ndarray, "h w"]) -> bytes:
    """The bytes of a grey PNG of an error map in [0, 1], eight times brighter to be seen."""
    return encode_mask(np.minimum(8 * error, 1))


def encode_preview(
    pixels: Float[np.ndarray, "h w 3"], like: Picture | None = None, *, side: int = 512
) -> bytes:
    """The bytes of a small JPEG, for pages that show many pictures; its longer side is at most `side`.

    It has the colour profile of `like`, so that it looks like the full picture beside it.
    """
    scale = min(1.0, side / max(pixels.shape[:2]))
    height, width = (max(round(length * scale), 1) for length in pixels.shape[:2])
    small = resize(pixels, (height, width))
    like = like or Picture(pixels)
    plain = Picture(small, grey=like.grey, icc_profile=like.icc_profile)
    return encode_image("preview.jpg", small, plain)


def write_files(files: Mapping[Path, bytes]) -> None:
    """Writes all files or none: to temporary names beside them first, then renamed into place."""
    staged: list[tuple[Path, Path]] = []
    try:
        for number, (path, data) in enumerate(files.items()):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.parent / f".uam-{os.getpid()}-{number}.tmp"
            staged.append((temporary, path))
            temporary.write_bytes(data)
        for temporary, path in staged:
            os.replace(temporary, path)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def write_image(
    path: str | Path,
    pixels: Float[np.ndarray, "h w 3"],
    like: Picture | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes one picture atomically, as `encode_image` describes.

    Raises:
      InputError: the format is unfit, or the file exists and `overwrite` isn't set.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: choose another name or allow overwriting")
    write_files({path: encode_image(path, pixels, like)})


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


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"


def _warn(message: str) -> None:
    if not _QUIET.get():
        warnings.warn(message, UserWarning, stacklevel=3)
