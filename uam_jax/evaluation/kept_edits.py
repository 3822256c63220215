"""A few edited pictures beside a record of `uam bench`: they show how much a dtype or a backend changes an edit."""

import io
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from uam_jax.errors import InputError
from uam_jax.evaluation import metrics

KEPT = 2
"""Results that are kept of a case, so that a case of Stable Diffusion's size takes about 3 MB."""

_STRIDE = 16
_CLOSE = 1e-3
"""Largest difference of the same input on two machines, whose sines differ in the last digit."""


class Agreement(NamedTuple):
    """Means over the kept results.

    Attributes:
      psnr: of the edited pictures, in dB, at most 100; nan where a network gave numbers that are not finite.
      overlap: of the edit masks above 0.5, intersection over union; nan where both are empty.
    """

    psnr: float
    overlap: float


class KeptEdits(NamedTuple):
    """The first results of a case, and what they were made from.

    Attributes:
      inputs: every 16th pixel of the first pictures, (n, h, w, 3) in [-1, 1].
      prompts: the source (empty where the edit has none) and the targets.
      images: edited pictures, (n, h, w, 3) float16 in [-1, 1].
      masks: where a picture is the edit's, (n, h, w).
    """

    inputs: np.ndarray
    prompts: np.ndarray
    images: np.ndarray
    masks: np.ndarray

    @classmethod
    def of(
        cls, pictures: np.ndarray, prompts: list[str], images: np.ndarray, masks: np.ndarray
    ) -> Self:
        """Takes the first of a case's pictures (b, h, w, 3), edits (t, h, w, 3) and masks (t, h, w) in [0, 1]."""
        return cls(
            np.asarray(pictures[:KEPT, ::_STRIDE, ::_STRIDE], np.float32),
            np.asarray(prompts),
            np.asarray(images[:KEPT], np.float16),
            np.asarray(masks[:KEPT]) > 0.5,
        )

    def encode(self) -> bytes:
        """The content of an .npz file."""
        with io.BytesIO() as buffer:
            np.savez_compressed(buffer, **self._asdict())
            return buffer.getvalue()

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads a file of `encode`.

        Raises:
          InputError: the file cannot be read, or is not such a file.
        """
        try:
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
                found = cls(*(stored[name] for name in cls._fields))
        except OSError as error:
            raise InputError(f"{file}: can't be read ({error.strerror or error})") from None
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            raise InputError(f"{file}: not edits of `uam bench`") from None
        kinds = [array.dtype.kind for array in found]
        pictures = found.images.shape
        if kinds != ["f", "U", "f", "b"] or (len(pictures), *pictures[3:]) != (4, 3):
            raise InputError(f"{file}: not edits of `uam bench`")
        return found

    def agreement(self, reference: Self) -> Agreement:
        """How far these edits are those of a reference.

        Raises:
          InputError: they are edits of other pictures, or with other prompts.
        """
        same = (
            self.inputs.shape == reference.inputs.shape
            and self.images.shape == reference.images.shape
            and self.masks.shape == reference.masks.shape == self.images.shape[:3]
            and np.array_equal(self.prompts, reference.prompts)
            and np.allclose(self.inputs, reference.inputs, rtol=0, atol=_CLOSE)
        )
        if not same:
            raise InputError("the edits are of other pictures or prompts")
        overlaps = metrics.overlap(self.masks, reference.masks)
        known = overlaps[np.isfinite(overlaps)]
        return Agreement(
            float(metrics.psnr(self.images, reference.images).mean()),
            float(known.mean()) if known.size else float("nan"),
        )
