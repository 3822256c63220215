"""From the model's picture to the file's: the pixels, the mask that they were composed with, and their confidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float

from uam_jax.io.compose import keep_unedited
from uam_jax.io.focus import Crop
from uam_jax.io.images import LUMA, resize
from uam_jax.method.confidence import Calibration, Signals, picture_signals
from uam_jax.method.config import EditConfig
from uam_jax.types import ImageLike, MaskLike


@dataclass(frozen=True)
class ModelPicture:
    """One edited picture as the model made it, on the host.

    Attributes:
      pixels: in [-1, 1], at the model's size.
      free: how free each of them was to change.
      signals: a number each, of `confidence.edit_signals`.
      config: the edit's settings.
      calibration: makes signals a confidence.
      figures: of its picture's inversions, a number each, by name.
    """

    pixels: Float[np.ndarray, "h w 3"]
    free: Float[np.ndarray, "h w"]
    signals: Mapping[str, Any]
    config: EditConfig
    calibration: Calibration
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivery:
    """One edited picture as it is handed over.

    Attributes:
      pixels: in [-1, 1], at the original's size.
      mask: how much of each pixel is the model's; where nothing is composed (`preserve = "latent"`, without
        a crop), how free it was.
      signals: of the edit; what they say of picture and mask holds for these ones, within the crop.
      confidence: in [0, 1], from the signals.
      review: why it should be looked at; None where it need not be.
      crop: the part that was edited; None: all of it.
      figures: of its picture's inversions, by name (`EditResult.figures`).
    """

    pixels: Float[np.ndarray, "h w 3"]
    mask: Float[np.ndarray, "h w"]
    signals: Mapping[str, float]
    confidence: float
    review: str | None
    crop: Crop | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def mask_share(self) -> float:
        """Mean of the mask."""
        return float(self.mask.mean())


def deliver(
    original: Float[np.ndarray, "H W 3"],
    edited: ModelPicture,
    *,
    within: Float[np.ndarray, "H W"] | None = None,
    crop: Crop | None = None,
    channel_max: int = 255,
    grey: bool = False,
) -> Delivery:
    """Brings an edit to the original's size and keeps what was not edited, as `config.preserve` says.

    A crop is pasted through the mask: with `preserve = "latent"` through the user's alone.

    Args:
      original: the picture as it was read, in [-1, 1].
      edited: the model's picture.
      within: the user's mask, if there is one, at the original's size.
      crop: the part of the original that was edited, around that mask; None: all of it.
      channel_max: the largest integer of the file's channels.
      grey: the file has one channel, as its original.
    """
    whole = Crop.whole(original.shape)
    crop = crop or whole
    part, free, config = crop.cut(original), edited.free, edited.config
    allowed = None if within is None else crop.cut(within)
    if config.preserve == "pixels" or crop != whole:
        taken = free if config.preserve == "pixels" else np.ones_like(free)
        threshold = config.mask.threshold
        pixels, mask = keep_unedited(
            part, edited.pixels, taken, within=allowed, threshold=threshold
        )
    else:
        pixels, mask = resize(edited.pixels, crop.size), resize(free, crop.size, linear=True)
    if grey:  # what changes in colour alone is no change of the file
        pixels = np.repeat((pixels @ LUMA)[..., None], 3, axis=-1)
    own = {**edited.signals, **picture_signals(part, pixels, mask, channel_max)}
    own = {name: float(value) for name, value in own.items()}
    listed = {name: np.asarray([value]) for name, value in own.items()}
    calibration = edited.calibration
    [confidence], [review] = calibration.confidence(listed), calibration.review(listed)
    return Delivery(
        pixels=crop.paste(original, pixels),
        mask=crop.paste(np.zeros(original.shape[:2], np.float32), mask),
        signals=own,
        confidence=float(confidence),
        review=review,
        crop=None if crop == whole else crop,
        figures={name: float(value) for name, value in edited.figures.items()},
    )


@dataclass(frozen=True)
class EditResult:
    """The results of an edit towards T targets in all.

    Its arrays are on the devices; `fetch` brings those that are handed over to the host.

    Attributes:
      images: (T, h, w, 3) in [-1, 1].
      latents: (T, h/f, w/f, c), scaled.
      source_latents: the same of the replayed source branch; None where it was anchored or not needed.
      auxiliary_latents: (b, h/f, w/f, c), the uniform reconstruction; None where nothing is blended.
      masks: (T, h, w) in [0, 1]. Where unedited pixels are kept (`Editor.edit` with `preserve = "pixels"`),
        how much of each pixel is the model's; else the share of blended steps and channels in which it
        was free to change (1 where nothing is blended).
      evaluations: single-sample U-Net evaluations that this call spent.
      source_index: (T,), the image that each target belongs to.
      error_map: (b, h, w) in [0, 1]: how far the uniform reconstruction is from each pixel of the
        original (`confidence.error_map`).
      signals: numbers from which confidence and review are made, (T,) each (`confidence.edit_signals`), and
        "agreement" and "loss" where `config.agreement` asks for them (`method.agreement`).
      config: the edit's settings.
      calibration: makes signals a confidence.
      step_masks: (steps, T, h/f, w/f, c), 1 where free, if asked for.
      figures: numbers by which the inversions tell how good they are for each target's picture, (T,) each, by name:
        of a fixed-point inversion "source_residual", and "auxiliary_residual" where the auxiliary branch has an
        inversion of its own; and "source_agreement", how well the source prompt describes it, where it was asked.
    """

    images: Float[Array | np.ndarray, "t height width 3"]
    latents: Float[Array, "t h w c"]
    source_latents: Float[Array, "t h w c"] | None
    auxiliary_latents: Float[Array, "b h w c"] | None
    masks: Float[Array | np.ndarray, "t height width"]
    evaluations: int
    source_index: np.ndarray
    error_map: Float[Array | np.ndarray, "b height width"]
    signals: Signals | Mapping[str, np.ndarray]
    config: EditConfig
    calibration: Calibration
    step_masks: Float[Array, "m t h w c"] | None = None
    figures: Mapping[str, Float[Array | np.ndarray, "t"]] = field(default_factory=dict)

    @cached_property
    def confidence(self) -> np.ndarray:
        """(T,) in [0, 1]: how sure it is that the edit did what it should and nothing else."""
        return self.calibration.confidence(jax.device_get(dict(self.signals)))

    @cached_property
    def review(self) -> list[str | None]:
        """The reason to look at each result; None where there is none."""
        return self.calibration.review(jax.device_get(dict(self.signals)))

    def delivered(self, originals: ImageLike, within: MaskLike | None) -> Self:
        """Every picture composed with its original, as `deliver` does; pictures and masks are NumPy arrays then.

        Args:
          originals: in [-1, 1], at the model's size.
          within: the users' masks, if there are any.
        """
        [host] = fetch([self])
        originals, within = jax.device_get((originals, within))
        made = [
            host.deliver(
                number,
                originals[index],
                within=None if within is None else np.asarray(within[index], np.float32),
            )
            for number, index in enumerate(host.source_index)
        ]
        return replace(
            host,
            images=np.stack([each.pixels for each in made]),
            masks=np.stack([each.mask for each in made]),
            signals={
                name: np.asarray([each.signals[name] for each in made]) for name in host.signals
            },
        )

    def deliver(
        self, target: int, original: Float[np.ndarray, "H W 3"], **options: Any
    ) -> Delivery:
        """One target's picture for its original, at that one's size; `options` are those of `delivery.deliver`.

        For results of `Editor.edit_latents` and `Editor.edit_prepared`, whose pictures are the model's own, once
        `fetch` has brought them to the host.
        """
        edited = ModelPicture(
            pixels=np.asarray(self.images[target], np.float32),
            free=np.asarray(self.masks[target], np.float32),
            signals={name: values[target] for name, values in self.signals.items()},
            config=self.config,
            calibration=self.calibration,
            figures={name: values[target] for name, values in self.figures.items()},
        )
        return deliver(original, edited, **options)


Results = TypeVar("Results", bound=EditResult)


def fetch(results: Sequence[Results]) -> list[Results]:
    """The results with pictures, masks, error maps and numbers on the host, brought there in one transfer."""
    names = ("images", "masks", "error_map", "signals", "figures")
    on_host = jax.device_get([{name: getattr(each, name) for name in names} for each in results])
    return [replace(result, **arrays) for result, arrays in zip(results, on_host, strict=True)]
