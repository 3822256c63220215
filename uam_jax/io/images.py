"""Picture files to arrays: the first arrow of the flow; `encoding` is the way back.

Pictures are float32 arrays (h, w, 3) in [-1, 1]. That carries 8- and 16-bit values exactly: what was
read and not changed is written with the same integers.
"""

import io
import itertools
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from uam_jax.errors import InputError
from uam_jax.io.formats import ALIASES, is_heif, is_raw, pillow_heif
from uam_jax.io.metadata import Metadata, fits, read_metadata, turned, upright_size
from uam_jax.io.png import SIGNATURE, Chunks, read_chunks

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_MOST = 1.5
"""Times the area that was asked for, at which a picture may be worked on at most."""
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
DEEP_GREY = ("I", "F", *_SIXTEEN_BIT)
"""Pillow's modes of grey with more than 8 bits."""


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
      dpi: horizontal and vertical resolution.
    """

    pixels: Float[np.ndarray, "h w 3"]
    levels: int = 255
    grey: bool = False
    alpha: UInt8[np.ndarray, "h w"] | None = None
    file_format: str = "PNG"
    icc_profile: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_image(path: str | Path, content: bytes | None = None) -> Picture:
    """Reads any picture that Pillow knows, turned upright as its metadata say.

    Palette pictures become RGB or RGBA, 1-bit ones grey, CMYK and Lab ones sRGB. Of several frames the first
    counts, with a warning, as for 16-bit colour, of which Pillow reads the upper 8 bits. A colour profile that
    isn't one for the result's channels is left out.

    Args:
      path: the file.
      content: its bytes, if they are at hand; `path` is then only told.

    Raises:
      InputError: the file is missing, no picture, damaged, or too large to be decoded safely.
    """
    with opened(path, content) as upright:
        return _picture(upright)


def picture_size(path: str | Path, file: Any) -> tuple[int, int]:
    """The (height, width) of a picture, upright, without decoding its pixels.

    Raises:
      InputError: as `read_image`.
    """
    with _faults_told(path):
        image, chunks = _open(file, pixels=False)
        with image:
            return upright_size(image, read_metadata(image, chunks).orientation)


@dataclass(frozen=True)
class Upright:
    """A picture as Pillow loaded it, turned upright.

    Attributes:
      image: in the mode of its file.
      file_format: Pillow's name.
      rawmode: Pillow's name of the layout in the file.
      white_is_zero: the file's numbers count from white to black, and Pillow has not turned them round.
      metadata: of the file.
    """

    image: Image.Image
    file_format: str
    rawmode: str
    white_is_zero: bool
    metadata: Metadata


@contextmanager
def opened(path: str | Path, content: bytes | None = None) -> Iterator[Upright]:
    """A picture file, for functions that look at its own numbers; faults inside name the file.

    Raises:
      InputError: as `read_image`.
    """
    path = Path(path)
    if content is None:
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder: name the picture files in it")
        if not os.path.isfile(path):  # a pipe would be waited for, perhaps for ever
            raise InputError(f"{path}: no such file; check the path")
    with _faults_told(path):
        with path.open("rb") if content is None else io.BytesIO(content) as file:
            upright, notes = _load(file)
        yield upright
    for note in notes:
        warn(f"{path}: {note}")


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


def working_size(
    size: tuple[int, int], side: int, multiple: int, path: str | Path = "the picture"
) -> tuple[int, int]:
    """The (height, width) at which a model works on a picture of `size`: multiples of `multiple`, of about `side`².

    The sides of a rectangle of area `side`² with the picture's aspect ratio, each rounded to the nearest multiple. If
    these have more than 1.5 times the area, neighbouring multiples that have less are taken.

    Args:
      size: of the picture, (height, width).
      side: of a square of the area.
      multiple: of which both sides are multiples.
      path: the picture's file, to be told.

    Raises:
      InputError: `side` is smaller than `multiple`, or the picture is so narrow that no multiples hold the area.
    """
    if side < multiple:
        raise InputError(f"size {side}: the model works on multiples of {multiple} pixels")
    stretch = math.sqrt(size[1] / size[0])
    ideal = side / stretch / multiple, side * stretch / multiple

    def area(counts: tuple[int, ...]) -> float:
        return counts[0] * counts[1] * multiple**2 / side**2

    def distance(counts: tuple[int, ...]) -> float:
        return abs(math.log(area(counts))) + abs(math.log(counts[1] / counts[0] / stretch**2))

    nearest = [max(round(count), 1) for count in ideal]
    neighbours = itertools.product(*((max(math.floor(n), 1), math.ceil(n)) for n in ideal))
    fitting = [counts for counts in (tuple(nearest), *neighbours) if area(counts) <= _MOST]
    if not fitting:
        raise InputError(
            f"{path}: {by(size)} pixels are too narrow a shape to be worked on at the area of {side}x{side} in "
            f"multiples of {multiple}: crop it, or give a larger --size"
        )
    height, width = fitting[0] if fitting[0] == tuple(nearest) else min(fitting, key=distance)
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


def _open(file: Any, *, pixels: bool = True) -> tuple[ImageFile.ImageFile, Chunks | None]:
    """The picture with its head alone read, and a PNG file's chunks.

    Refuses what Pillow only warns of; a filter would not, when pictures are read in several threads.
    """
    head = file.read(12)
    file.seek(0)
    chunks = read_chunks(file, pixels=pixels) if head.startswith(SIGNATURE) else None
    try:
        image = Image.open(chunks.rest if chunks else file)
    except UnidentifiedImageError:
        if is_heif(head) and pillow_heif is None:
            raise InputError(
                "a HEIC picture, which needs: python -m pip install 'uam_jax[heif]'"
            ) from None
        raise
    if isinstance(image, TiffImageFile) and is_raw(head, image.tag_v2):
        raise InputError(
            "a camera's raw file, of which a small preview alone can be read: develop it to TIFF or JPEG"
        )
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    return image, chunks


def _load(file: Any) -> tuple[Upright, list[str]]:
    """The picture, and what the user should know about how it was read."""
    image, chunks = _open(file)
    with image:
        metadata = read_metadata(image, chunks)
        layout = image.tile[0].args if image.tile else ""
        rawmode = layout if isinstance(layout, str) else str(next(iter(layout or ()), ""))
        deep_colour = image.mode not in DEEP_GREY and (
            ";16" in rawmode
            or image.info.get("bit_depth", 8) > 8  # of HEIC
            or (image.format == "PPM" and isinstance(layout, tuple) and layout[-1] > 255)
        )
        photometric = image.tag_v2.get(262) if isinstance(image, TiffImageFile) else None
        frames = getattr(image, "n_frames", 1)
        image.load()
    file_format = image.format or ""
    notes = [f"its {name} is too large and is left out" for name in (chunks or Chunks()).left_out]
    if frames > 1 and file_format not in (*ALIASES, "PSD"):  # whose layers come after the whole
        notes.append(f"holds {frames} frames; only the first is used")
    if deep_colour:
        notes.append("colour of more than 8 bits is read with 8 bits per channel, and so written")
    if image.mode in ("CMYK", "LAB"):
        notes.append("its colours are converted to RGB")
    transparent = image.info.get("transparency")
    if rawmode in ("L;2", "L;4") and transparent is not None and transparent < 16:
        image.info["transparency"] = transparent * (85 if rawmode == "L;2" else 17)
    if deep_colour and chunks and transparent is not None:
        image.putalpha(_opacity_of_deep_png(image, chunks))
    white_is_zero = photometric == 0 and image.mode in DEEP_GREY
    upright = turned(image, metadata.turn)
    return Upright(upright, file_format, rawmode, white_is_zero, metadata), notes


def _opacity_of_deep_png(upper: Image.Image, chunks: Chunks) -> Image.Image:
    """Opacity of 16-bit colours of which one is transparent; Pillow would look for it among 8-bit ones."""
    transparent = np.asarray(upper.info.pop("transparency"))
    chunks.rest.seek(0)
    with Image.open(chunks.rest) as image:
        assert isinstance(image, ImageFile.ImageFile)
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        lower = np.asarray(image)
    same = (np.asarray(upper) == transparent >> 8) & (lower == transparent & 255)
    return Image.fromarray(np.where(same.all(-1), 0, 255).astype(np.uint8))


def _picture(upright: Upright) -> Picture:
    metadata = upright.metadata
    values, alpha, grey = _channels(upright)
    converted = upright.image.mode in ("CMYK", "LAB")
    keeps = not converted and fits(metadata.icc_profile, b"GRAY" if grey else b"RGB ")
    levels = int(np.iinfo(values.dtype).max)
    pixels = values * np.float32(2 / levels) - np.float32(1)
    if grey:
        pixels = np.repeat(pixels, 3, axis=-1)
    return Picture(
        pixels,
        levels,
        grey,
        alpha,
        upright.file_format,
        metadata.icc_profile if keeps else None,
        metadata.exif,
        metadata.dpi,
    )


def _channels(upright: Upright) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Integers (h, w, 1 or 3), alpha, and whether the picture is grey."""
    image = upright.image
    alpha = opacity(image)
    if image.mode in DEEP_GREY:
        values, top = deep_grey(upright)
        if not (values.min() >= 0 and values.max() <= top):
            raise InputError(
                f"its 32-bit values reach beyond 0 to {top}, so black and white are undefined: "
                "convert it to 16 or 8 bits"
            )
        if upright.white_is_zero:
            values = top - values
        levels = 255 if top == 255 else 65535
        if top != levels:
            values = np.rint(values * (levels / top))
        return values.astype(np.uint8 if levels == 255 else np.uint16)[..., None], alpha, True
    values = shallow(upright)
    return values.reshape(*values.shape[:2], -1), alpha, values.ndim == 2


def shallow(upright: Upright) -> UInt8[np.ndarray, "h w *c"]:
    """Grey (h, w) or colours (h, w, 3) of a file that has no more than 8 bits for them, or is read with no more."""
    image = upright.image
    if image.mode in ("CMYK", "LAB"):
        image = _to_srgb(image, upright.metadata.icc_profile)
    return np.asarray(_plain(image).convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))


def deep_grey(upright: Upright) -> tuple[np.ndarray, int]:
    """The numbers in a grey file of more than 8 bits, and the one that stands for full."""
    values = np.asarray(upright.image)
    if upright.rawmode == "I;32N":  # unsigned, which Pillow has no mode for
        values = values.view(np.uint32)
    if upright.rawmode == "I;12":
        return values, 4095
    sixteen = upright.image.mode in _SIXTEEN_BIT or upright.rawmode in _SIXTEEN_BIT
    if values.dtype.kind != "f" and (sixteen or upright.file_format == "PPM"):
        return values, 65535
    # Files of 32 bits hold numbers from elsewhere: shares up to 1, or those of 8 or 16 bits.
    if values.dtype.kind == "f" and (values.max() <= 1 or (values != np.rint(values)).any()):
        return values, 1
    return values, 255 if values.max() <= 255 else 65535


def _plain(image: Image.Image) -> Image.Image:
    """The same with colours that aren't multiplied by alpha."""
    return (
        image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]) if image.mode[-1] == "a" else image
    )


def opacity(image: Image.Image) -> UInt8[np.ndarray, "h w"] | None:
    """Alpha, also where it is that of one transparent colour."""
    if not image.has_transparency_data:
        return None
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and image.mode in ("L", *DEEP_GREY):
        return np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)
    return np.asarray(_plain(image).convert("RGBA").getchannel("A"))


def _to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    if image.mode == "CMYK" and fits(icc_profile, b"CMYK"):
        try:
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(
                image, io.BytesIO(icc_profile), srgb, outputMode="RGB"
            )
            if converted is not None:
                return converted
        except ImageCms.PyCMSError:  # damaged: as if there were none
            pass
    return image.convert("RGB")


def by(size: tuple[int, ...]) -> str:
    """A (height, width) as people write it."""
    return f"{size[1]}x{size[0]}"


def warn(message: str) -> None:
    """A warning to the user, unless this thread wants none; see `quietly`."""
    if not _QUIET.get():
        warnings.warn(message, UserWarning, stacklevel=3)
