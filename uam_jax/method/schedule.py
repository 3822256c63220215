"""Noise levels and timesteps: the checkpoint's scheduler file in, stacked `Step`s for the scans out.

`Step`s come in two directions over the same N noise intervals. Denoising goes from level t to t-k
with the noise predicted at (z_t, t); inverting goes from t-k to t with the noise predicted at
(z_{t-k}, t), the current latent with the *next* timestep. So an inverting step is the denoising
step with its two levels exchanged. Level 0 is the clean latent, level d the one d steps above it.

Differences from diffusers' `DDIMScheduler` and `DDIMInverseScheduler` (same numbers elsewhere):

- Defaults for absent keys are Stable Diffusion's (scaled-linear betas from 0.00085 to 0.012,
  `set_alpha_to_one` false, `steps_offset` 1), not the classes'. The file may name any scheduler
  class, as Stable Diffusion's own files do; only one of another process (flow matching) is refused.
- `clip_sample` is taken as false, whatever the file says: it was made for pixels in [-1, 1], and
  diffusers' own Stable Diffusion pipelines overrule it too.
- A step leads to the level of the next timestep *visited*. diffusers always goes down by
  `num_train_timesteps // N`, which is another level if the spacing is "linspace", or "trailing"
  with N not a divisor; its chain then jumps between steps and inverting does not retrace it.
  In "leading" spacing the two agree, except where the stride does not pass the offset (N above
  500 with offset 1) and diffusers ends at ᾱ of timestep 0 whatever `set_alpha_to_one` says.
- ᾱ is accumulated in float64 and then rounded to float32 (within 1e-6 of a float32 product).
- A timestep outside the table (leading, N = 1000, offset 1) is an error here, an IndexError there.
- Inverting has "linspace" too, and never runs out of levels.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from uam_jax.errors import InputError
from uam_jax.types import Latent, Prediction, Step

CHOICES = {
    "beta_schedule": ("scaled_linear", "linear"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "prediction_type": ("epsilon", "v_prediction"),
}
"""The values that are supported, for keys of a scheduler file that have few."""

NEUTRAL = {
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "use_flow_sigmas": False,
}
"""Keys that would change the result and are not supported, with the one value that changes nothing."""


@dataclass(frozen=True)
class Schedule:
    """A training noise schedule and how sampling steps through it; fields are named as in the file.

    Hashable, so it may be a static argument of a jitted function.

    Raises:
      InputError: on a value that is not supported; the message names the key.
    """

    __no_type_check__ = True  # by annotation, in tests: these checks come first and say more

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    set_alpha_to_one: bool = False
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise _unsupported(key, getattr(self, key), f"one of {', '.join(choices)}")
        for key, least in (("num_train_timesteps", 1), ("steps_offset", 0)):
            value = getattr(self, key)
            if type(value) is not int or value < least:
                raise _unsupported(key, value, f"an integer of at least {least}")
        for key in ("beta_start", "beta_end"):
            value = getattr(self, key)
            if not isinstance(value, float) or not 0 < value < 1:
                raise _unsupported(key, value, "a number between 0 and 1")
        if not isinstance(self.set_alpha_to_one, bool):
            raise _unsupported("set_alpha_to_one", self.set_alpha_to_one, "true or false")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the contents of a checkpoint's `scheduler/scheduler_config.json`.

        Raises:
          InputError: on a value that would change the result and is not supported.
        """
        name = str(config.get("_class_name", ""))
        if name.startswith(("FlowMatch", "EDM")):
            raise _unsupported("_class_name", name, "a scheduler with betas (DDIM, PNDM, Euler, …)")
        for key, neutral in NEUTRAL.items():
            if config.get(key, neutral) != neutral:
                raise _unsupported(key, config[key], f"{neutral} or absent")
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """ᾱ of every train timestep, float32 (T,): the running product of 1 - β."""
        start, end, count = self.beta_start, self.beta_end, self.num_train_timesteps
        if self.beta_schedule == "scaled_linear":
            betas = np.linspace(start**0.5, end**0.5, count, dtype=np.float64) ** 2
        else:
            betas = np.linspace(start, end, count, dtype=np.float64)
        return np.cumprod(1 - betas).astype(np.float32)

    @property
    def final_alpha_bar(self) -> float:
        """ᾱ of level 0, below the last timestep."""
        return 1.0 if self.set_alpha_to_one else float(self.alpha_bar[0])

    def spaced(self, spacing: str) -> Self:
        """The same noise levels, visited in another spacing; "" is their own."""
        return replace(self, timestep_spacing=spacing) if spacing else self

    def timesteps(self, steps: int) -> np.ndarray:
        """The train timesteps that `steps` steps visit, int32, in denoising order (highest first).

        Raises:
          InputError: where one of them is outside the training schedule.
        """
        total = self.num_train_timesteps
        if not 1 <= steps <= total:
            raise InputError(f"steps is {steps}: it must be from 1 to {total}, the trained steps")
        if self.timestep_spacing == "leading":
            visited = np.arange(steps)[::-1] * (total // steps) + self.steps_offset
        elif self.timestep_spacing == "trailing":
            # Counted down as diffusers does, so that halves round alike; [:steps] drops a 0 too many.
            visited = np.round(np.arange(total, 0, -total / steps))[:steps] - 1
        else:
            visited = np.round(np.linspace(0, total - 1, steps))[::-1]
        if visited[0] >= total:
            raise InputError(
                f"steps is {steps}: with steps_offset {self.steps_offset} it would visit timestep "
                f"{int(visited[0])} of {total}; use fewer steps"
            )
        return visited.astype(np.int32)

    def denoising(self, steps: int, depth: int | None = None) -> Step:
        """The last `depth` of `steps` denoising steps (default: all), from level `depth` to 0."""
        times = self.timesteps(steps)
        alpha_bar = np.append(self.alpha_bar[times], np.float32(self.final_alpha_bar))
        signal, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        first = 0 if depth is None else steps - depth
        return Step(
            index=jnp.arange(first, steps, dtype=jnp.int32),
            time=jnp.asarray(times[first:]),
            signal=jnp.asarray(signal[first:-1]),
            sigma=jnp.asarray(sigma[first:-1]),
            signal_next=jnp.asarray(signal[first + 1 :]),
            sigma_next=jnp.asarray(sigma[first + 1 :]),
        )

    def inverting(self, steps: int, depth: int | None = None) -> Step:
        """The first `depth` of `steps` inverting steps (default: all), from level 0 to `depth`."""
        return reverse(self.denoising(steps, depth))

    def at(self, shares: Sequence[float]) -> Step:
        """Steps that stay where they are, at shares of the trained timesteps; their indices count them."""
        times = np.asarray([int(share * self.num_train_timesteps) for share in shares], np.int32)
        signal, sigma = np.sqrt(self.alpha_bar[times]), np.sqrt(1 - self.alpha_bar[times])
        level = (jnp.asarray(signal), jnp.asarray(sigma)) * 2
        return Step(jnp.arange(len(times), dtype=jnp.int32), jnp.asarray(times), *level)

    def split(self, output: Latent, latent: Latent, step: Step) -> Prediction:
        """The network's output for `latent`, as a clean estimate and noise; see the function `split`."""
        return split(output, latent, step, self.prediction_type)


def reverse(steps: Step) -> Step:
    """The same intervals in the other direction and order: each step with its two levels exchanged."""
    return turned(Step(*(part[::-1] for part in steps)))


def turned(step: Step) -> Step:
    """The same interval in the other direction: the step with its two levels exchanged."""
    index, time, signal, sigma, signal_next, sigma_next = step
    return Step(index, time, signal_next, sigma_next, signal, sigma)


NOISE = 0.02
"""The largest ᾱ of the noisiest level that still counts as noise: Stable Diffusion's last one has 0.005."""


@cache  # so that it is said once
def warn_of_little_noise(schedule: Schedule, steps: int) -> None:
    """Warns where the noisiest latent that `steps` steps reach still shows the picture.

    In "leading" spacing the timesteps are multiples of a whole number, and so many numbers of steps end far
    below the last one: 501 steps at 501 of 1000.
    """
    reached = int(schedule.timesteps(steps)[0])
    alpha_bar = float(schedule.alpha_bar[reached])
    if alpha_bar > NOISE:
        warnings.warn(
            f"{steps} steps in {schedule.timestep_spacing} spacing stop short of the noise: at timestep "
            f"{reached} of {schedule.num_train_timesteps}, where alpha_bar is {alpha_bar:.3f} (the picture's "
            f'share; up to {NOISE} is noise). Set spacing to "trailing" or "linspace", or take another '
            "number of steps",
            UserWarning,
            stacklevel=3,
        )


def at_own_times(up: Step) -> Step:
    """Inverting steps from level 0, whose network call is given the timestep of the latent's own level.

    Level 0 has no timestep of its own: it is given 0, the lowest.
    """
    return up._replace(time=jnp.concatenate([jnp.zeros_like(up.time[:1]), up.time[:-1]]))


def split(output: Latent, latent: Latent, step: Step, prediction_type: str) -> Prediction:
    """Takes a network's output apart into a clean estimate and noise.

    Both belong to the level where the step starts, the latent's own: when inverting, that is below the
    timestep that the network was given. With z = signal·x0 + sigma·ε:

    - "epsilon": the output is ε.
    - "v_prediction": the output is signal·ε - sigma·x0 (Salimans and Ho 2022, arXiv 2202.00512).
    - "sample": the output is x0; at sigma 0 the noise is not determined, and not finite.
    - "flow": the output is ε - x0, the velocity of a rectified flow, where signal + sigma = 1 (Liu et al. 2022,
      arXiv 2209.03003).

    Args:
      output: of the network, for `latent`.
      latent: the network's input.
      step: that is about to be taken from `latent`.
      prediction_type: one of these names.
    """
    signal, sigma = step.signal, step.sigma
    if prediction_type == "flow":
        return Prediction(latent - sigma * output, latent + signal * output)
    if prediction_type == "sample":
        return Prediction(output, (latent - signal * output) / sigma)
    noise = output
    if prediction_type == "v_prediction":
        noise = signal * output + sigma * latent
    return Prediction((latent - sigma * noise) / signal, noise)


def _unsupported(key: str, value: object, remedy: str) -> InputError:
    return InputError(f"scheduler config: {key} is {value!r}, which is not supported; use {remedy}")
