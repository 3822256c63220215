"""Encodes arrays as picture files: the last arrow of the flow; `images` reads them."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from PIL import Image

from uam_jax.errors import InputError
from uam_jax.io.formats import ALIASES, WRITTEN, Format, shown_by_browsers
from uam_jax.io.images import LUMA, Picture, by, quietly, resize, warn
from uam_jax.io.metadata import has_blocks, with_resolution, without_blocks
from uam_jax.io.outputs import write_files


def output_format(path: str | Path, like: Picture) -> str:
    """Returns Pillow's name of the format of `path`; without a suffix, the format of `like`.

    A warning names each property of `like` that the format loses but that a result can do without: depth beyond 8
    bits, colour profile and EXIF.

    Raises:
      InputError: the format is unknown, or cannot hold the picture.
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
    if like.channel_max > 255 and not kind.deep:
        warn(f"{path}: {name} holds 8 bits of the original's 16; .png and .tiff hold them all")
    elif like.channel_max > 255 and like.alpha is not None and name != "PNG":
        warn(
            f"{path}: {name} holds 8 bits of the original's 16 beside transparency; .png holds all"
        )
    if like.icc_profile and not kind.holds_profile(like.icc_profile, grey=like.grey):
        warn(
            f"{path}: {name} cannot hold its colour profile of {len(like.icc_profile):,} bytes; .png does"
        )
    if like.exif and not kind.exif:
        warn(f"{path}: {name} holds no EXIF; .png, .jpg and .webp do")
    elif like.exif and len(like.exif) > kind.exif:
        warn(f"{path}: {name} holds no EXIF of {len(like.exif):,} bytes; .png and .webp do")
    elif like.exif and not kind.blocks and has_blocks(like.exif):
        warn(f"{path}: {name} holds no EXIF of camera and place; .png, .jpg and .webp do")
    return name


def default_suffix(path: str | Path, like: Picture) -> str:
    """Returns the suffix for a copy of the picture at `path`: its own, or ".png" if its format cannot be written."""
    suffix = Path(path).suffix
    own = suffix if suffix.lower() in Image.registered_extensions() else ""
    try:
        with quietly():
            name = output_format("copy" + own, like)
        return own or WRITTEN[name].suffix
    except InputError:
        kind = Image.registered_extensions().get(own.lower(), like.file_format)
        warn(f"{path}: {kind} cannot hold the result faithfully, so it becomes a .png")
        return ".png"


def refuse_nonfinite(path: str | Path, pixels: np.ndarray) -> None:
    """Refuses the output of a network that overflowed, which would be encoded as black pixels.

    Args:
      path: the picture's file, for the message.
      pixels: an array of any shape.

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
    """Encodes a picture in the format of `path`.

    Values are clipped to [-1, 1] and rounded to the nearest level.

    Args:
      path: the name of the file, whose suffix names the format.
      pixels: the picture, in [-1, 1].
      like: the original, whose depth, grey, alpha, colour profile, EXIF and resolution the file gets, as far as its
        format can hold them; None for 8-bit colour without metadata.

    Returns:
      The bytes of the file.

    Raises:
      InputError: see `output_format`.
      ValueError: `pixels` and `like` differ in size.
    """
    like = like or Picture(pixels)
    if like.size != pixels.shape[:2]:
        raise ValueError(f"{by(pixels.shape[:2])} pixels for a picture of {by(like.size)}")
    name = output_format(path, like)
    kind = WRITTEN[name]
    channel_max = _channel_max(name, like)
    deep = channel_max > 255
    values = pixels @ LUMA if like.grey else pixels
    values = np.rint((np.clip(values, -1, 1) + 1) * np.float32(channel_max / 2))
    values = values.astype(np.uint16 if deep else np.uint8)
    options = dict(kind.options)
    if like.alpha is not None and deep:
        values, options["transparency"] = _with_transparent_grey(values, like.alpha)
    elif like.alpha is not None and kind.alpha:
        values = np.dstack([values, like.alpha])
    return _saved(path, Image.fromarray(values), name, options, _held_metadata(like, kind))


def file_channel_max(path: str | Path, like: Picture) -> int:
    """Returns the largest integer of a channel in the file that `encode_image` makes for `path`."""
    with quietly():
        return _channel_max(output_format(path, like), like)


def _channel_max(name: str, like: Picture) -> int:
    deep = WRITTEN[name].deep and (like.alpha is None or name == "PNG")
    return like.channel_max if deep else 255


def _with_transparent_grey(
    values: UInt16[np.ndarray, "h w"], alpha: UInt8[np.ndarray, "h w"]
) -> tuple[UInt16[np.ndarray, "h w"], int]:
    """Gives the transparent pixels of deep grey a value of their own, which is how PNG and Pillow store them."""
    seen = alpha > 0
    used = np.bincount(values[seen], minlength=65536) > 0
    transparent = int(np.argmin(used))
    if used.all():  # one grey value of 65535 changes by 1
        values = np.where(seen & (values == transparent), transparent + 1, values)
    return np.where(seen, values, transparent).astype(np.uint16), transparent


def _held_metadata(like: Picture, kind: Format) -> dict[str, Any]:
    """The metadata of a picture that a format can hold, as options for Pillow."""
    held: dict[str, Any] = {}
    exif = like.exif
    if like.dpi:
        if kind.dpi:
            held["dpi"] = like.dpi
        elif kind.exif:
            exif = with_resolution(exif, like.dpi)
    if exif and len(exif) <= kind.exif:
        held["exif"] = exif if kind.blocks else without_blocks(exif)
    if like.icc_profile and kind.holds_profile(like.icc_profile, grey=like.grey):
        held["icc_profile"] = like.icc_profile
    return held


def _saved(
    path: str | Path, image: Image.Image, name: str, options: dict[str, Any], held: dict[str, Any]
) -> bytes:
    """The bytes of the file; metadata that the encoder refuses are left out, with a warning."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, name, **options, **held)
    except Exception as error:
        if not held:
            raise
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        # No earlier check can find this, so the warning is given even inside `quietly`.
        warnings.warn(
            f"{path}: EXIF, colour profile and resolution are left out ({name}: {error})",
            UserWarning,
            stacklevel=3,
        )
    return buffer.getvalue()


def encode_mask(mask: Float[np.ndarray, "h w"]) -> bytes:
    """Encodes a mask in [0, 1] as an 8-bit grey PNG, which is white where the mask is 1."""
    pixels = np.repeat(mask[..., None] * 2 - 1, 3, axis=-1)
    return encode_image("mask.png", pixels, Picture(pixels, grey=True))


def encode_error(error: Float[np.ndarray, "h w"]) -> bytes:
    """Encodes an error map in [0, 1] as a grey PNG, eight times brighter so that it can be seen."""
    return encode_mask(np.minimum(8 * error, 1))


def encode_preview(
    pixels: Float[np.ndarray, "h w 3"], like: Picture | None = None, *, side: int = 512
) -> bytes:
    """Encodes a small JPEG for pages that show many pictures.

    Args:
      pixels: the picture, in [-1, 1].
      like: the original, whose colour profile the JPEG gets so that it looks like the full picture beside it.
      side: the longest side of the JPEG in pixels.
    """
    scale = min(1.0, side / max(pixels.shape[:2]))
    height, width = (max(round(length * scale), 1) for length in pixels.shape[:2])
    small = resize(pixels, (height, width))
    like = like or Picture(pixels)
    plain = Picture(small, grey=like.grey, icc_profile=like.icc_profile)
    return encode_image("preview.jpg", small, plain)


def needs_shown_copy(path: str | Path, like: Picture) -> bool:
    """Whether browsers cannot show the file at `path`, or its format cannot hold the colour profile of `like`."""
    if not shown_by_browsers(path):
        return True
    profile, kind = like.icc_profile, WRITTEN[output_format(path, like)]
    return profile is not None and not kind.holds_profile(profile, grey=like.grey)


def write_image(
    path: str | Path,
    pixels: Float[np.ndarray, "h w 3"],
    like: Picture | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes one picture as `encode_image` describes; the file appears whole.

    Raises:
      InputError: the format cannot hold the picture, or the file exists and `overwrite` is not set.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: choose another name or allow overwriting")
    write_files({path: encode_image(path, pixels, like)})
