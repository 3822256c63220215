"""The base class of controls: settings, and hooks around the network calls of an edit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from jaxtyping import Array

from uam_jax.method.edits import Edit
from uam_jax.method.plan import Row
from uam_jax.method.section import Section
from uam_jax.types import Latent, Rules, Site, Step

ROUNDING = 1e-4
"""Added before a number of steps is rounded down, so that 0.29 of 100 steps are 29."""


class Moment(NamedTuple):
    """The step of an edit in which a hook is called.

    Attributes:
      step: that is taken.
      steps: how many denoising steps there are in all; static.
      active: the names of the control's windows that the step lies in; static.
      state: the control's, before the step.
    """

    step: Step
    steps: int
    active: frozenset[str] = frozenset()
    state: Any = ()


@dataclass(frozen=True)
class Control(Section):
    """How the target branch takes its structure from the source; each hook does nothing by default.

    A subclass is a frozen dataclass of settings with default values, see `section`. Its hooks depend on nothing
    but its fields and their arguments. `branches`, `windows` and `prepare` run on the host; the others are called
    while programs are traced.
    """

    prefix: ClassVar[str] = "control."

    @property
    def compares_prompts(self) -> bool:
        """Whether it works with the prompts of both branches, so that the source must have a real one."""
        return False

    @property
    def kinds_of_words(self) -> frozenset[str]:
        """The attributes of `Words` that it acts on, where an edit names single words."""
        return frozenset()

    @property
    def needs_mask(self) -> bool:
        """Whether it works with the user's mask, which its rules then find as "user_mask" in their data."""
        return False

    def branches(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        """The rows of a network call: which branch, under which condition, in which half of the guidance.

        Args:
          rows: those that guidance and the source's condition ask for.
        """
        return rows

    def fitted(self, sites: Sequence[Site]) -> Self:
        """The control as it acts in a network, with what its settings leave to the network's structure.

        Args:
          sites: of the network, in execution order.
        """
        return self

    def windows(self, steps: int) -> Mapping[str, range]:
        """Named ranges of denoising steps, counted from the noisiest; the source is evaluated in all of them.

        Args:
          steps: the number of denoising steps.
        """
        return {}

    def prepare(self, tokenizer: Any, edits: Sequence[Edit]) -> Mapping[str, Array | np.ndarray]:
        """Arrays that the hooks need of the edits' prompts, each of shape (b, ...) with one row per edit.

        Args:
          tokenizer: of the model.
          edits: the b edits of a batch.
        """
        return {}

    def rules(
        self,
        rows: Sequence[Row],
        batch: int,
        data: Mapping[str, Array],
        moment: Moment,
    ) -> Rules:
        """The rules of a network call.

        Args:
          rows: of the call, whose batch axis has len(rows) * batch samples: those of the first row, of the
            second, and so on.
          batch: the number of examples.
          data: from `prepare`; with it "user_mask", (b, h, w, 1) at the latent's size, if it `needs_mask`.
          moment: the step whose prediction is wanted.
        """
        return Rules()

    def start(self, latents: Mapping[str, Latent]) -> Any:
        """The state before the first step, a pytree of arrays.

        Make every array from `latents`, for example `jnp.zeros_like(latents["target"][:, 0, 0, 0])`: under `shard_map`
        the state must vary over devices as they do.

        Args:
          latents: (b, h, w, c) by branch.
        """
        return ()

    def after(
        self, taps: Mapping[str, Array], latents: dict[str, Latent], moment: Moment
    ) -> tuple[Any, dict[str, Latent]]:
        """The state and the latents after a step of the sampler.

        Args:
          taps: that the rules of the step's network call returned, summed by name over the layers.
          latents: (b, h, w, c) by branch, as the sampler left them; the source's only where it is replayed or
            anchored on stored latents, which stay as they are.
          moment: the step that was taken.
        """
        return moment.state, latents


@dataclass(frozen=True)
class NoControl(Control):
    """The target branch is left to its prompt."""


def rounded_down(steps: float) -> int:
    """A whole number of steps."""
    return math.floor(steps + ROUNDING)
