"""Reads mask files into arrays, whatever values a tool uses for "may change" and "must not change".

The value 0, black and the first entry of a palette mean "must not change". If the file has one other value, it means
"may change", whatever it is: white, 1, the number of a class, or a colour. Several greys are a soft mask, from black to
the file's white; in lossy formats, an eighth of the range at either end counts as black or white. Several classes or
colours are refused, because the file does not say which of them may change.

A transparent part means one of two things. In a layer with paint (white, with or without black; or one other colour
that leaves some of the border transparent), the paint may change. In every other picture the transparent part is a
hole, and the hole may change.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from uam_jax.errors import InputError
from uam_jax.io.channels import DEEP_GREY, Upright, deep_grey, opacity, shallow
from uam_jax.io.images import LUMA, by, opened

_LOSSY = ("AVIF", "HEIF", "JPEG", "JPEG2000", "MPO", "WEBP")
"""Formats that may change values a little, so that their values cannot be labels."""
_FEW = 32
"""Most colours of a drawn mask; a photograph has more."""
_SHOWN = 5
"""Most classes or colours that an error names."""
_REMEDY = "save the part that may change as white on black"


def read_mask(
    path: str | Path, size: tuple[int, int], content: bytes | None = None
) -> Float[np.ndarray, "h w"]:
    """Reads a mask as the module's docstring describes.

    Args:
      path: the file.
      size: (height, width) of the picture that the mask belongs to.
      content: the file's bytes, if they have been read already.

    Returns:
      The mask in [0, 1]: 1 where the picture may change, 0 where it must not.

    Raises:
      InputError: the file cannot be read (see `read_image`), has another size or several classes or colours, or lets
        nothing change.
    """
    with opened(path, content) as upright:
        own = (upright.image.height, upright.image.width)
        if own != size:
            raise InputError(
                f"the mask has {by(own)} pixels, its picture {by(size)}: both must have the same size"
            )
        values = _values(upright)
        mask = _mask(values, opacity(upright.image))
        if values.lossy:
            mask = _without_ringing(mask)
        if not mask.any():
            raise InputError(
                "the mask is all black or transparent: paint the part that may change white"
            )
        return mask


@dataclass(frozen=True)
class _Values:
    """The numbers of a mask file.

    Attributes:
      numbers: greys or classes (h, w), or colours (h, w, 3).
      top: the number for white.
      lossy: whether the file's format may have changed the numbers a little.
    """

    numbers: np.ndarray
    top: int
    lossy: bool

    @property
    def codes(self) -> np.ndarray:
        """One number for each value, (h, w); those of lossy formats are rounded to coarse steps."""
        numbers = self.numbers
        if self.lossy:
            numbers = np.minimum((numbers.astype(np.int32) + 16) // 32 * 32, 255)
        if numbers.ndim == 2:
            return numbers
        return numbers.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)

    @property
    def white(self) -> int:
        """The code of white."""
        return self.top if self.numbers.ndim == 2 else 0xFFFFFF


def _values(upright: Upright) -> _Values:
    image = upright.image
    lossy = upright.file_format in _LOSSY
    if image.mode in DEEP_GREY:
        numbers, top = deep_grey(upright)
        if upright.white_is_zero:
            numbers = top - numbers
        elif top > 1 and numbers.max() <= 255:  # 8 bits in a wider file
            top = 255
        return _Values(numbers, top, False)
    if image.mode == "P":
        colours = _colours_of_palette(
            np.asarray(image), np.array(image.getpalette("RGB"), np.uint8)
        )
    else:
        colours = shallow(upright)
    spread = colours.max(-1) - colours.min(-1) if colours.ndim == 3 else np.zeros(1)
    if colours.ndim == 3 and spread.max() <= (24 if lossy else 0):
        colours = np.rint(colours @ LUMA).astype(np.uint8)
    return _Values(colours, 255, lossy)


def _colours_of_palette(
    indices: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, " n"]
) -> np.ndarray:
    """Colours of a palette picture, black for its first entry; its indices, if all the colours are equal."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette) // 3] = palette.reshape(-1, 3)
    used = np.unique(indices)
    seen = colours[used]
    if len(used) > 1 and (seen == seen[0]).all():
        return indices
    greys = (seen == seen[:, :1]).all()
    if seen.any(-1).all() and (len(used) == 2 or not greys):  # no black
        colours[0] = 0
    return colours[indices]


def _mask(values: _Values, alpha: UInt8[np.ndarray, "h w"] | None) -> Float[np.ndarray, "h w"]:
    if alpha is None or alpha.min() == 255:
        return _strength(values, np.ones(values.numbers.shape[:2], bool))
    if (alpha == 0).any() and alpha.any() and _is_picture_with_hole(values, alpha):
        return (255 - alpha) / np.float32(255)
    paint = np.unique(values.codes[alpha == alpha.max()])
    one = len(paint) == 1 and paint[0] != 0
    strength = np.float32(1) if one else _strength(values, alpha > 0)
    return _yes_if_alone(strength * (alpha / np.float32(255)))


def _is_picture_with_hole(values: _Values, alpha: UInt8[np.ndarray, "h w"]) -> bool:
    """Whether the opaque part is a picture and not paint."""
    codes = values.codes[alpha == alpha.max()]
    found, counts = np.unique(codes, return_counts=True)
    others = found[found != 0]
    border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
    is_layer = bool((border == 0).any())
    if len(others) <= 1:
        return not len(others) or bool(others[0] != values.white and not is_layer)
    clear = counts[(found == 0) | (found == values.white)].sum()
    if values.numbers.ndim == 2 and values.white in others and clear > 0.9 * len(codes):
        raise InputError(
            "the mask is nearly black and white, and partly transparent: save it without transparency, "
            "white where the picture may change"
        )
    return len(others) > _FEW or not is_layer


def _without_ringing(mask: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Restores the exact 0 and 1 of a lossy mask, from which compression may differ by up to an eighth."""
    return np.clip((mask - np.float32(1 / 8)) / np.float32(6 / 8), 0, 1)


def _strength(values: _Values, seen: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The mask's value at each pixel, in [0, 1]; 0 where the pixel is not seen."""
    if values.numbers.ndim == 3:
        return _strength_of_colours(values, seen)
    numbers = np.where(seen, values.numbers, 0)
    found = np.unique(numbers)
    others = found[found != 0]
    if len(others) <= 1 and np.isfinite(others).all():
        return (numbers != 0).astype(np.float32)
    if not (others[0] > 0 and others[-1] <= values.top):  # False also for NaN
        raise InputError(
            f"the mask's values reach from {others[0]:g} to {others[-1]:g}, so black and white are undefined: "
            "save it as white on black"
        )
    if values.lossy and others[-1] <= values.top // 8:
        raise InputError(
            f"the mask is nearly black: its brightest value is {others[-1]} of {values.top}"
        )
    # Label tools count classes from 1, and use the largest number for pixels of no class.
    classes = others[others < values.top]
    most = values.top // (8 if values.top in others else 2)
    if values.top > 1 and not values.lossy and classes[-1] <= most:
        raise InputError(f"the mask has several classes ({_named(others)}): {_REMEDY}")
    return numbers.astype(np.float32) / np.float32(values.top)


def _strength_of_colours(
    values: _Values, seen: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """The mask's value at each pixel where all colours are shades of one colour, from black to it."""
    colours = np.where(seen[..., None], values.numbers, 0).astype(np.float32)
    brightness = colours.max(-1)
    if not brightness.any():
        return brightness
    if values.lossy:
        full = np.median(colours[brightness > brightness.max() / 2], axis=0)
    else:
        full = colours.reshape(-1, 3)[colours.sum(-1).argmax()]
    share = np.clip(colours @ full / (full @ full), 0, 1)
    off = np.abs(colours - share[..., None] * full).max(-1)
    alone = _yes_if_alone(np.where(colours.any(-1), share, 0))
    if values.lossy:
        one = (off > 64).sum() < 0.02 * (brightness > 64).sum()
    else:  # shades of a darker colour might be other classes
        one = off.max() <= 2 and (full.max() == 255 or set(np.unique(alone)) <= {0, 1})
    if not one:
        codes = _Values(colours, 255, values.lossy).codes
        found, counts = np.unique(codes[codes != 0], return_counts=True)
        names = [f"#{code:06x}" for code in found[np.argsort(-counts, kind="stable")]]
        raise InputError(f"the mask has several colours ({_named(names)}): {_REMEDY}")
    return alone


def _yes_if_alone(mask: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Sets a mask's values above 0 to 1 if they are all equal."""
    highest = mask.max()
    alone = ((mask == 0) | (mask == highest)).all()
    return (mask > 0).astype(np.float32) if alone else mask.astype(np.float32)


def _named(found: Iterable[object]) -> str:
    names = [f"{name:g}" if isinstance(name, np.number) else str(name) for name in found]
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
