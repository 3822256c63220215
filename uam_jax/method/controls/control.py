"""The base class of controls: settings, and hooks around the network calls of an edit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array

from uam_jax.method.plan import Row
from uam_jax.method.section import Section
from uam_jax.types import Latent, Rules, Step


@dataclass(frozen=True)
class Control(Section):
    """How the target branch takes its structure from the source; each hook does nothing by default.

    A subclass is a frozen dataclass of settings with default values, see `section`. Its hooks depend on nothing
    but its fields and their arguments. `branches`, `windows` and `prepare` run on the host; the others are called
    while programs are traced.
    """

    prefix: ClassVar[str] = "control."

    def branches(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        """The rows of a network call: which branch, under which condition, in which half of the guidance.

        Args:
          rows: those that guidance and the source's condition ask for.
        """
        return rows

    def windows(self, steps: int) -> Mapping[str, range]:
        """Named ranges of denoising steps, counted from the noisiest; the source is evaluated in all of them.

        Args:
          steps: the number of denoising steps.
        """
        return {}

    def prepare(self, tokenizer: Any, edits: Sequence[Any]) -> dict[str, Array]:
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
        active: frozenset[str],
        data: Mapping[str, Array],
    ) -> Rules:
        """The rules of a network call.

        Args:
          rows: of the call, whose batch axis has len(rows) * batch samples: those of the first row, of the
            second, and so on.
          batch: the number of examples.
          active: the names of the windows that the step lies in.
          data: from `prepare`.
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
        self, state: Any, taps: Mapping[str, Array], latents: dict[str, Latent], step: Step
    ) -> tuple[Any, dict[str, Latent]]:
        """The state and the latents after a step of the sampler.

        Args:
          state: before the step.
          taps: that the rules of the step's network call returned, summed by name over the layers.
          latents: (b, h, w, c) by branch, as the sampler left them; the source's only where it is replayed or
            anchored on stored latents, which stay as they are.
          step: that was taken.
        """
        return state, latents


@dataclass(frozen=True)
class NoControl(Control):
    """The target branch is left to its prompt."""
