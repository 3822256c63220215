"""From the model's picture to the file's: the pixels, the mask that they were composed with, and how sure they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from uam_jax.compose import keep_unedited
from uam_jax.confidence import Calibration, picture_signals
from uam_jax.config import EditConfig
from uam_jax.images import resize


@dataclass(frozen=True)
class Delivery:
    """One edited picture as it is handed over.

    Attributes:
      pixels: in [-1, 1], at the original's size.
      mask: how much of each pixel is the model's; where nothing is composed (`preserve = "latent"`), how
        free it was.
      signals: of the edit; what they say of picture and mask holds for these ones.
      confidence: in [0, 1], from the signals.
      review: why it should be looked at; None where it need not be.
    """

    pixels: Float[np.ndarray, "h w 3"]
    mask: Float[np.ndarray, "h w"]
    signals: Mapping[str, float]
    confidence: float
    review: str | None

    @property
    def mask_share(self) -> float:
        """Mean of the mask."""
        return self.signals["share"]


def deliver(
    original: Float[np.ndarray, "H W 3"],
    edited: Float[np.ndarray, "h w 3"],
    free: Float[np.ndarray, "h w"],
    signals: Mapping[str, Any],
    *,
    config: EditConfig,
    calibration: Calibration,
    within: Float[np.ndarray, "H W"] | None = None,
    levels: int = 255,
) -> Delivery:
    """Brings an edit to the original's size and keeps what was not edited, as `config.preserve` says.

    Args:
      original: the picture as it was read, in [-1, 1].
      edited: the model's picture, at the model's size.
      free: how free each of its pixels was to change.
      signals: a number each, of `confidence.edit_signals`.
      config: the edit's settings.
      calibration: makes signals a confidence.
      within: the user's mask, if there is one, at the original's size.
      levels: the largest integer of the file's channels.
    """
    size = (original.shape[0], original.shape[1])
    if config.preserve == "pixels":
        threshold = config.mask.threshold
        pixels, mask = keep_unedited(original, edited, free, within=within, threshold=threshold)
    else:
        pixels, mask = resize(edited, size), resize(free, size, linear=True)
    own = {**signals, **picture_signals(original, pixels, mask, levels)}
    own = {name: float(value) for name, value in own.items()}
    listed = {name: np.asarray([value]) for name, value in own.items()}
    [confidence], [review] = calibration.confidence(listed), calibration.review(listed)
    return Delivery(pixels, mask, own, float(confidence), review)
