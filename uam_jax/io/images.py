"""Reads picture files into arrays: the first arrow of the flow; `encoding` writes them.

Pictures are float32 arrays (h, w, 3) in [-1, 1]. They represent 8- and 16-bit values exactly: pixels that are
not changed are written with the same integers.
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
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from uam_jax.errors import InputError
from uam_jax.io.channels import DEEP_GREY, Upright, deep_grey, opacity, shallow
from uam_jax.io.formats import ALIASES, is_heif, is_raw, pillow_heif
from uam_jax.io.metadata import fits, read_metadata, turned, upright_size
from uam_jax.io.png import SIGNATURE, Chunks, read_chunks

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in the grey value of a colour."""
_LARGEST_SHARE = 1.5
"""Largest working area of a picture, as a share of the requested area."""


@dataclass(frozen=True)
class Picture:
    """An upright picture, with everything that is needed to save its edited copy faithfully.

    Attributes:
      pixels: values in [-1, 1]; grey pictures have three equal channels.
      channel_max: the largest integer of the file's channels, 255 or 65535.
      grey: whether the file has one colour channel; its copies then have one too.
      alpha: opacity in [0, 255], kept apart because no model uses it.
      file_format: Pillow's name of the file's format, such as "PNG".
      icc_profile: the bytes of the colour profile.
      exif: the bytes of the EXIF tags that describe the photograph, without orientation and thumbnail.
      dpi: horizontal and vertical resolution.
    """

    pixels: Float[np.ndarray, "h w 3"]
    channel_max: int = 255
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
    """Reads a picture in any format that Pillow knows, and turns it upright as its metadata say.

    Palette pictures become RGB or RGBA, 1-bit pictures become grey, CMYK and Lab pictures become sRGB. A file of
    several frames gives its first frame, with a warning; 16-bit colour gives its upper 8 bits, with a warning. A
    colour profile that does not fit the channels of the result is left out.

    Args:
      path: the file.
      content: its bytes, if they have been read already; `path` is then used in messages only.

    Raises:
      InputError: the file is missing, damaged, not a picture, or too large to be decoded safely.
    """
    with opened(path, content) as upright:
        return _picture(upright)


def picture_size(path: str | Path, file: Any) -> tuple[int, int]:
    """Reads the (height, width) of an upright picture without decoding its pixels.

    Args:
      path: the file's name, for messages.
      file: the file, open for reading in binary mode.

    Raises:
      InputError: as in `read_image`.
    """
    with _named_errors(path):
        image, chunks = _open(file, pixels=False)
        with image:
            return upright_size(image, read_metadata(image, chunks).orientation)


@contextmanager
def opened(path: str | Path, content: bytes | None = None) -> Iterator[Upright]:
    """Opens a picture file for functions that use the file's own numbers; errors inside name the file.

    Args:
      path: the file.
      content: its bytes, if they have been read already.

    Raises:
      InputError: as in `read_image`.
    """
    path = Path(path)
    if content is None:
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder: name the picture files in it")
        if not os.path.isfile(path):  # reading a pipe might wait for ever
            raise InputError(f"{path}: no such file; check the path")
    with _named_errors(path):
        with path.open("rb") if content is None else io.BytesIO(content) as file:
            upright, notes = _load(file)
        yield upright
    for note in notes:
        warn(f"{path}: {note}")


@contextmanager
def quietly() -> Iterator[None]:
    """Suppresses this module's warnings in this thread; `warnings.catch_warnings` would affect all threads."""
    before = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(before)


@contextmanager
def _named_errors(path: str | Path) -> Iterator[None]:
    """Turns any error of Pillow into an `InputError` that names the file."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"{path} unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels: scale it down first"
        ) from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is not a picture in a format that can be read: convert it to PNG or JPEG"
        ) from None
    except PermissionError:
        raise InputError(f"{path} cannot be read: check its permissions") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    # Pillow's decoders raise many kinds of errors on damaged data: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise InputError(
            f"{path} cannot be decoded ({error}): it may be damaged or truncated; export it again"
        ) from error


def working_size(
    size: tuple[int, int], side: int, multiple: int, path: str | Path = "the picture"
) -> tuple[int, int]:
    """Computes the (height, width) in pixels at which a model works on a picture.

    They are the sides of a rectangle of area `side`² with the picture's aspect ratio, each rounded to the nearest
    multiple of `multiple`. If the rounded sides have more than 1.5 times that area, neighbouring multiples with a
    smaller area are taken.

    Args:
      size: (height, width) of the picture in pixels.
      side: side of a square that has the wanted area.
      multiple: number of which both sides must be multiples.
      path: the picture's file, for messages.

    Raises:
      InputError: `side` is smaller than `multiple`, or the picture is so narrow that no multiples have the area.
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
    fitting = [counts for counts in (tuple(nearest), *neighbours) if area(counts) <= _LARGEST_SHARE]
    if not fitting:
        raise InputError(
            f"{path}: a picture of {by(size)} pixels is too narrow to work on at the area of {side}x{side} pixels in "
            f"multiples of {multiple}: crop it, or give a larger --size"
        )
    height, width = fitting[0] if fitting[0] == tuple(nearest) else min(fitting, key=distance)
    return height * multiple, width * multiple


def resize(
    values: Float[np.ndarray, "h w *c"], size: tuple[int, int], *, linear: bool = False
) -> Float[np.ndarray, "H W *c"]:
    """Scales an array to another size in floating point, with antialiasing; the same size returns it unchanged.

    Args:
      values: a picture or a mask, in any range.
      size: (height, width) of the result.
      linear: whether to interpolate linearly, without negative weights, as masks need. Otherwise Lanczos
        interpolation is used, and its result is clipped to the range of the input.
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
    """Opens a picture of which only the header is read, and sorts the chunks of a PNG file.

    Pictures of which Pillow only warns that they are too large are refused. A filter of warnings could not do that
    reliably, because pictures are read in several threads.
    """
    head = file.read(12)
    file.seek(0)
    chunks = read_chunks(file, pixels=pixels) if head.startswith(SIGNATURE) else None
    try:
        image = Image.open(chunks.rest if chunks else file)
    except UnidentifiedImageError:
        if is_heif(head) and pillow_heif is None:
            raise InputError(
                "a HEIC picture, which needs the extra `heif`: python -m pip install 'uam_jax[heif]'"
            ) from None
        raise
    if isinstance(image, TiffImageFile) and is_raw(head, image.tag_v2):
        raise InputError(
            "a camera's raw file, of which only a small preview can be read: develop it to TIFF or JPEG"
        )
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    return image, chunks


def _load(file: Any) -> tuple[Upright, list[str]]:
    """Loads a picture, and lists notes for the user about the way it was read."""
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
    if frames > 1 and file_format not in (
        *ALIASES,
        "PSD",
    ):  # a PSD file has the whole before its layers
        notes.append(f"holds {frames} frames; only the first is used")
    if deep_colour:
        notes.append("colour of more than 8 bits is read, and written, with 8 bits per channel")
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
    """Opacity of a 16-bit picture with one transparent colour, which Pillow would seek among 8-bit colours."""
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
    channel_max = int(np.iinfo(values.dtype).max)
    pixels = values * np.float32(2 / channel_max) - np.float32(1)
    if grey:
        pixels = np.repeat(pixels, 3, axis=-1)
    return Picture(
        pixels,
        channel_max,
        grey,
        alpha,
        upright.file_format,
        metadata.icc_profile if keeps else None,
        metadata.exif,
        metadata.dpi,
    )


def _channels(upright: Upright) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """The integers (h, w, 1 or 3) of a picture, its alpha, and whether it is grey."""
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
        channel_max = 255 if top == 255 else 65535
        if top != channel_max:
            values = np.rint(values * (channel_max / top))
        return values.astype(np.uint8 if channel_max == 255 else np.uint16)[..., None], alpha, True
    values = shallow(upright)
    return values.reshape(*values.shape[:2], -1), alpha, values.ndim == 2


def by(size: tuple[int, ...]) -> str:
    """Writes a (height, width) as "WIDTHxHEIGHT"."""
    return f"{size[1]}x{size[0]}"


def warn(message: str) -> None:
    """Warns the user, unless this thread is inside `quietly`."""
    if not _QUIET.get():
        warnings.warn(message, UserWarning, stacklevel=3)
