"""How far an edit can be trusted: signals that are computed from its own arrays, and one number made of them.

The right answer is not known here. The auxiliary branch shows how well the model can reproduce this picture at all, the
source branch shows whether denoising came back to where it started, the masks show whether the two prompts disagree
in one place or everywhere, and the network can be asked whether the result agrees with its prompt (`agreement`) and is
like the pictures that it knows (`loss`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uam_jax.errors import InputError
from uam_jax.method.edit import EditTrace
from uam_jax.method.masks import otsu, smooth
from uam_jax.types import Image, Latent

Signals = dict[str, Float[Array | np.ndarray, "t"]]


def error_map(images: Image, rebuilt: Image) -> Float[Array, "b height width"]:
    """Absolute difference of two pictures, mean over channels, as a share of the range."""
    return jnp.abs(images - rebuilt).mean(axis=-1) / 2


def edit_signals(
    images: Image, edited: Image, rebuilt: Image, z0: Latent, start: Latent, trace: EditTrace
) -> Signals:
    """The signals of an edit, each a number per target.

    Those of the picture and the mask (`picture_signals`) describe the model's own picture; `delivery.deliver` computes
    them again for the picture that is written.

    Args:
      images: the originals, in [-1, 1].
      edited: the model's pictures.
      rebuilt: the auxiliary branch's pictures; the VAE's picture where nothing was blended.
      z0: the originals' latents.
      start: the latents that the edit began with, which ought to look like noise.
      trace: of the edit.

    Returns:
      `reconstruction`: PSNR of `rebuilt` in dB. `round_trip`: the source branch's return to z0, as
      signal to error in dB (60 where it was not evaluated to the end). `noise`: mean square of
      `start`. `separability`: how clearly the image falls into a part where the
      branches differ and one where they don't (see `masks.otsu`). `contrast`: the first part's
      difference over the second's, as a logarithm. `difference`: of the branches, mean over
      everything. `stability` of the masks, see `EditTrace`. And those of `picture_signals`.
    """
    axes = (1, 2, 3)
    error = jnp.mean((images - rebuilt) ** 2, axis=axes) / 4
    power = jnp.mean(z0**2, axis=axes)
    trip = jnp.full(z0.shape[0], 60.0)
    if trace.source is not None:
        returned = jnp.mean((trace.source - z0) ** 2, axis=axes)
        trip = jnp.minimum(_decibels(power, returned), 60.0)
    even = smooth(trace.change[..., None])[..., 0]
    cut, separability = otsu(even.reshape(even.shape[0], -1))
    above = even > cut[:, None, None]
    count = above.sum(axis=(1, 2))
    inside = (even * above).sum(axis=(1, 2)) / jnp.maximum(count, 1)
    outside = (even * ~above).sum(axis=(1, 2)) / jnp.maximum(even[0].size - count, 1)
    return {
        "reconstruction": _decibels(jnp.ones_like(error), error),
        "round_trip": trip,
        "noise": jnp.mean(start**2, axis=axes),
        "separability": separability,
        "contrast": jnp.log(jnp.maximum(inside, 1e-6) / jnp.maximum(outside, 1e-6)),
        "difference": trace.change.mean(axis=(1, 2)),
        "stability": trace.stability,
        **jax.vmap(picture_signals)(images, edited, trace.free),
    }


def picture_signals(
    original: Float[Array | np.ndarray, "height width 3"],
    edited: Float[Array | np.ndarray, "height width 3"],
    mask: Float[Array | np.ndarray, "rows columns"],
    channel_max: int = 255,
) -> dict[str, Any]:
    """The signals of a picture as it is delivered, and of its mask.

    Args:
      original: in [-1, 1].
      edited: the picture that is made of it.
      mask: how much of each pixel was taken from the edit, or was free.
      channel_max: the largest integer of the file's channels.

    Returns:
      `share`: mean of the mask. `opacity`: its largest value. `moved`: root mean square change of the
      picture. `changed`: 1 if any value of the file is another than the original's, else 0.
    """
    difference = edited - original
    return {
        "share": mask.mean(),
        "opacity": mask.max(),
        "moved": (difference**2).mean() ** 0.5,
        "changed": (abs(difference).max() * (channel_max / 2) >= 0.5) * 1.0,
    }


def _decibels(signal: Float[Array, "b"], error: Float[Array, "b"]) -> Float[Array, "b"]:
    return 10 * jnp.log10(jnp.maximum(signal, 1e-10) / jnp.maximum(error, 1e-10))


_APART = (
    "what changes is hardly apart from what stays",
    "what changes is very sharply apart from what stays",
)
REASONS: dict[str, tuple[str, str]] = {
    "separability": _APART,
    "contrast": _APART,
    "difference": (
        "the target prompt hardly differs from the picture",
        "the target prompt differs from the picture almost everywhere",
    ),
    "stability": ("the mask changes from step to step", "the mask never changes"),
    "share": ("hardly anything was free to change", "most of the picture was free to change"),
    "moved": ("the picture hardly changed", "the picture changed as a whole"),
    "agreement": (
        "the result does not look like its target prompt",
        "the result looks like nothing but its target prompt",
    ),
    "loss": (
        "the result is plainer than the model's pictures",
        "the result is not like the model's pictures",
    ),
    "round_trip": ("the way back did not lead to the original", "nothing moved the source branch"),
}
"""The reasons that a low and a high value of a signal give; these signals `Calibration.weights` may name."""

UNFAMILIAR = "the model cannot reproduce this picture"
UNCHANGED = "nothing changed: the result equals the original"
MASKED = "nothing changed: the mask leaves nothing of the edit (give a larger one; mask.user=replace frees all of it)"


@dataclass(frozen=True)
class Calibration:
    """From signals to one confidence: a logistic regression, times how familiar the picture is.

    Attributes:
      weights: of the signals, standardised; one that an edit lacks counts as its mean.
      means: of the signals where it was fitted.
      scales: their standard deviations there.
      bias: of the logit.
      familiar: PSNR in dB: at it or above, the model reproduces a picture as well as those of its own
        world; 6 dB below it knows nothing of it.
      typical_noise: the signal `noise` of a familiar picture.
      noise: how far its logarithm may be from that; at twice that distance nothing is familiar.
      below: a result whose confidence is lower is to be reviewed.
      fitted: on what, in words; empty where it was not fitted for this model.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    bias: float = 2.0
    familiar: float = 22.0
    typical_noise: float = 1.0
    noise: float = 0.7
    below: float = 0.5
    fitted: str = ""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Reads the table `[confidence]` that ships beside a model; without one, only familiarity counts.

        Raises:
          InputError: naming the key that is at fault.
        """
        tables = ("weights", "means", "scales")
        numbers = ("bias", "familiar", "typical_noise", "noise", "below")
        known = (*tables, *numbers, "fitted")
        values: dict[str, Any] = {}
        for key, value in settings.items():
            if key not in known:
                raise InputError(f"[confidence] {key} is unknown: known are {', '.join(known)}")
            if key in numbers:
                values[key] = _number(key, value)
            elif key in tables and isinstance(value, Mapping):
                values[key] = {name: _number(f"{key}.{name}", x) for name, x in value.items()}
            elif key == "fitted" and isinstance(value, str):
                values[key] = value
            else:
                kind = "text" if key == "fitted" else "a table"
                raise InputError(f"[confidence] {key} = {value!r}: it must be {kind}")
        found = cls(**values)
        for key in ("typical_noise", "noise"):
            if getattr(found, key) <= 0:
                raise InputError(f"[confidence] {key} = {getattr(found, key)}: it must be above 0")
        for name in found.weights:
            if name not in REASONS or name not in found.means or not found.scales.get(name):
                raise InputError(
                    f"[confidence] weights.{name} needs means.{name} and scales.{name}"
                )
        return found

    def confidence(self, signals: Mapping[str, Any]) -> Float[np.ndarray, "t"]:
        """The chance, in [0, 1], that the edit did what it should and nothing else.

        It is 0 where the result equals its original, unless the network finds that this shows the target already.
        """
        logit = self.bias + sum(self._parts(signals).values(), np.zeros(()))
        likely = self.familiarity(signals) / (1 + np.exp(-np.clip(logit, -30, 30)))
        return np.where(_idle(signals), 0.0, likely)

    def familiarity(self, signals: Mapping[str, Any]) -> Float[np.ndarray, "t"]:
        """1 for a picture of the model's own world, 0 for one that it knows nothing of."""
        rebuilt = np.asarray(signals["reconstruction"], np.float64)
        noise = np.maximum(np.asarray(signals["noise"], np.float64), 1e-6)
        noise = np.abs(np.log(noise / self.typical_noise))
        ramps = 1 - (self.familiar - rebuilt) / 6, 2 - noise / self.noise
        return np.prod([np.nan_to_num(np.clip(ramp, 0, 1)) for ramp in ramps], axis=0)

    def review(self, signals: Mapping[str, Any]) -> list[str | None]:
        """Why each result should be looked at; None where it need not be."""
        sure, familiar = self.confidence(signals), self.familiarity(signals)
        parts, idle = self._parts(signals), _idle(signals)
        found: list[str | None] = []
        for index, confidence in enumerate(sure):
            if idle[index]:
                masked = np.asarray(signals["opacity"])[index] < 0.5
                found.append(MASKED if masked else UNCHANGED)
            elif confidence >= self.below:
                found.append(None)
            elif familiar[index] < self.below or not parts:
                rebuilt = float(np.asarray(signals["reconstruction"])[index])
                found.append(
                    f"{UNFAMILIAR} ({rebuilt:.1f} dB; pictures that it knows have {self.familiar:.1f} or more)"
                )
            else:
                worst = min(parts, key=lambda name: parts[name][index])
                value = float(np.asarray(signals[worst])[index])
                found.append(REASONS[worst][int(value > self.means[worst])])
        return found

    def _parts(self, signals: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The summand of the logit for each signal."""
        return {
            name: weight
            * np.nan_to_num(
                (np.asarray(signals[name], np.float64) - self.means[name]) / self.scales[name]
            )
            for name, weight in self.weights.items()
            if name in signals
        }


def _idle(signals: Mapping[str, Any]) -> np.ndarray:
    """Which results equal their originals, although these do not agree with the target as far as is known."""
    unchanged = np.asarray(signals["changed"]) == 0
    agreement = np.asarray(signals.get("agreement", np.nan), np.float64)
    return unchanged & ~(agreement >= 0)


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"[confidence] {key} = {value!r}: it must be a number")
    return float(value)
