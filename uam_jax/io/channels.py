"""Channels of a picture that Pillow has loaded: grey, colours and opacity, as the numbers in the file."""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms

from uam_jax.io.metadata import Metadata, fits

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
DEEP_GREY = ("I", "F", *_SIXTEEN_BIT)
"""Pillow's modes of grey with more than 8 bits."""


@dataclass(frozen=True)
class Upright:
    """A picture as Pillow loaded it, turned upright.

    Attributes:
      image: the picture, in the mode of its file.
      file_format: Pillow's name of the file's format.
      rawmode: Pillow's name of the layout of the numbers in the file.
      white_is_zero: whether the numbers count from white to black, and Pillow has not inverted them.
      metadata: the file's metadata.
    """

    image: Image.Image
    file_format: str
    rawmode: str
    white_is_zero: bool
    metadata: Metadata


def shallow(upright: Upright) -> UInt8[np.ndarray, "h w *c"]:
    """Returns the 8-bit numbers of a picture: grey (h, w) or colours (h, w, 3), in [0, 255].

    Colours of more than 8 bits are reduced to 8; CMYK and Lab colours are converted to sRGB.
    """
    image = upright.image
    if image.mode in ("CMYK", "LAB"):
        image = _to_srgb(image, upright.metadata.icc_profile)
    return np.asarray(_plain(image).convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))


def deep_grey(upright: Upright) -> tuple[np.ndarray, int]:
    """Returns the numbers (h, w) of a grey picture of more than 8 bits, and the number that stands for full."""
    values = np.asarray(upright.image)
    if upright.rawmode == "I;32N":  # unsigned, for which Pillow has no mode
        values = values.view(np.uint32)
    if upright.rawmode == "I;12":
        return values, 4095
    sixteen = upright.image.mode in _SIXTEEN_BIT or upright.rawmode in _SIXTEEN_BIT
    if values.dtype.kind != "f" and (sixteen or upright.file_format == "PPM"):
        return values, 65535
    # The range of 32-bit files is not fixed: it is 0 to 1, or that of 8 or 16 bits.
    if values.dtype.kind == "f" and (values.max() <= 1 or (values != np.rint(values)).any()):
        return values, 1
    return values, 255 if values.max() <= 255 else 65535


def _plain(image: Image.Image) -> Image.Image:
    """The same picture with colours that are not multiplied by alpha."""
    return (
        image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]) if image.mode[-1] == "a" else image
    )


def opacity(image: Image.Image) -> UInt8[np.ndarray, "h w"] | None:
    """Returns alpha in [0, 255], also where the file names one transparent colour; None if all is opaque."""
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
        except ImageCms.PyCMSError:  # a damaged profile counts as none
            pass
    return image.convert("RGB")
