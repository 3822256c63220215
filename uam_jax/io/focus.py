"""Focus: the part of a large picture around the user's mask, which is worked on in place of the whole.

A model works at its own size. A photograph is scaled down to it, and a small region of it to a few pixels.
`Crop.of` finds a smaller picture around that region: it has the shape of the whole one, so that it is worked on at the
same size, and is never smaller than that size, so that no pixel is enlarged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
from jaxtyping import Bool, Float, Shaped

from uam_jax.errors import InputError, quoted

Focus = Literal["auto", "on", "off"]

_CONTEXT = 2
"""Sides of the box with its context, in those of the mask's box: half a side is added all round. Objects fill about
half of the pictures that models were trained on."""

_AUTO_SHARE = 1 / 4
"""A box with its context that covers less of the picture than this is worth a crop: it has at least twice the detail
in each direction."""


@dataclass(frozen=True)
class Crop:
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def whole(cls, size: Sequence[int]) -> Self:
        """All of a picture, whose size, or array's shape, begins with height and width."""
        return cls(0, 0, size[0], size[1])

    @classmethod
    def of(
        cls,
        mask: Float[np.ndarray, "H W"] | None,
        size: tuple[int, int],
        *,
        working: tuple[int, int],
        focus: Focus = "auto",
    ) -> Self:
        """The part of a picture to work on.

        It lies around the box of all pixels where the mask is above 0, moved into the picture where that is near the
        border. It is the whole picture if there is no mask, if the mask is empty, if it would be as large anyway
        (as when the picture is no larger than the model), or if `focus` says so.

        Args:
          mask: where the picture may change, at its size.
          size: of the picture, (height, width).
          working: the size at which the model works on the picture.
          focus: "on" takes the crop wherever it is smaller than the picture, "auto" where moreover the box with its
            context covers less than a quarter of the picture, and "off" never.
        """
        whole = cls.whole(size)
        if mask is None or focus == "off" or not (inside := mask > 0).any():
            return whole
        rows, columns = _extent(inside.any(axis=1)), _extent(inside.any(axis=0))
        context = [_CONTEXT * (end - first) for first, end in (rows, columns)]
        if focus == "auto" and context[0] * context[1] >= _AUTO_SHARE * size[0] * size[1]:
            return whole
        scale = max(
            need / side for need, side in zip([*context, *working], [*size, *size], strict=True)
        )
        if scale >= 1:
            return whole
        height, width = (round(scale * side) for side in size)
        top, left = (
            min(max((first + end - length) // 2, 0), side - length)
            for (first, end), length, side in zip(
                (rows, columns), (height, width), size, strict=True
            )
        )
        return cls(top, left, height, width)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    def cut(self, values: Shaped[np.ndarray, "H W *c"]) -> Shaped[np.ndarray, "h w *c"]:
        """This part of an array of the picture's size, as a view."""
        return values[self.top : self.top + self.height, self.left : self.left + self.width]

    def paste(
        self, whole: Shaped[np.ndarray, "H W *c"], part: Shaped[np.ndarray, "h w *c"]
    ) -> Shaped[np.ndarray, "H W *c"]:
        """A copy of `whole` with `part` in this place; `part` itself, if that is all of it."""
        if self.size == whole.shape[:2]:
            return part
        result = whole.copy()
        self.cut(result)[...] = part
        return result

    def __str__(self) -> str:
        return f"{self.top},{self.left},{self.height},{self.width}"


def check_focus(focus: str, *, masked: bool, whose: str = "the picture") -> None:
    """Refuses an unknown focus, and one that has no mask to lie on.

    Raises:
      InputError: it is none of "auto", "on" and "off", or it is "on" without a mask.
    """
    if focus not in get_args(Focus):
        raise InputError(f"focus is {quoted(focus)}: choose {', '.join(get_args(Focus))}")
    if focus == "on" and not masked:
        raise InputError(
            f"focus is on, but {whose} has no mask to work around: give a mask, or choose focus auto"
        )


def _extent(occupied: Bool[np.ndarray, "n"]) -> tuple[int, int]:
    """The first occupied place and the one after the last."""
    found = np.flatnonzero(occupied)
    return int(found[0]), int(found[-1]) + 1
