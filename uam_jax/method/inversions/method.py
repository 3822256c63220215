"""The base class of inversions: settings, the way up, and hooks in the edit that follows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Array

from uam_jax.errors import InputError
from uam_jax.method.plan import Row
from uam_jax.method.samplers import SAMPLERS, Sampler
from uam_jax.method.section import Section
from uam_jax.types import Condition, Latent, Predictor, Scalar, Step, Taps


class SourceBranch(NamedTuple):
    """The edit's source branch as it will go down, with the text's maps and without a control.

    Attributes:
      predict: its guided prediction.
      under: the predictor under a condition alone, which has a row for each example.
      condition: the source's, a row for each example.
      null: the null prompt's, likewise; None where the branch is not guided.
      guidance: the edit's scale.
    """

    predict: Predictor
    under: Callable[[Condition], Predictor]
    condition: Condition
    null: Condition | None
    guidance: Scalar


@dataclass(frozen=True)
class InversionMethod(Section):
    """How clean latents become noise.

    A subclass is a frozen dataclass of settings with default values, see `section`. In a table they stand
    beside those that every inversion has, see `config.InversionConfig`. Its methods depend on nothing but its
    fields and their arguments. `run` and the hooks in the edit's steps (`conditions`, `query`, `guide`, `after`, in
    this order) are called while programs are traced, the others outside programs.
    """

    prefix: ClassVar[str] = "inversion."
    samplers: ClassVar[tuple[str, ...]] = ()
    """The samplers that it works with, by name; empty: all that are general, see `Sampler`.

    Where the first is not general, settings that name the inversion and no sampler get it.
    """
    replaces_null: ClassVar[bool] = False
    """Whether `conditions` puts others in the place of the null prompt and of the negative prompts: the source needs
    a prompt then, and an edit may not have a negative prompt."""

    needs_source: ClassVar[bool] = False
    """Whether `run` also gets the keyword `source`, the edit's `SourceBranch`."""

    @property
    def cost(self) -> int:
        """Network evaluations of a step with the inversion's predictor, for each row: as many, or at most."""
        return 1

    def source_cost(self, rows: int) -> int:
        """Further evaluations of a step with the `SourceBranch`, for each example: as many, or at most.

        Args:
          rows: of that branch: 2 if it is guided, else 1.
        """
        return 0

    @property
    def works_with(self) -> tuple[str, ...]:
        """The names of the samplers that it works with."""
        general = (each for each, sampler in SAMPLERS.items() if sampler.general)
        return self.samplers or tuple(general)

    def check_sampler(self, name: str) -> None:
        """Raises an `InputError` for a sampler that the method does not work with."""
        if name not in self.works_with:
            works = " or ".join(self.works_with)
            raise InputError(
                f"sampler is {name}, and {type(self).__name__} works with {works}: set sampler={works}, or choose "
                "another inversion.kind"
            )

    def first(self, steps: int) -> int:
        """The denoising step at which an edit starts; neither it nor the inversion takes those before.

        Args:
          steps: the number of denoising steps.
        """
        return 0

    @property
    def in_edit(self) -> "InversionMethod":
        """The method as the edit's program sees it: without hooks of its own it is any other without them.

        So edits whose inversions differ on the way up alone share the program.
        """
        hooks = ("conditions", "query", "guide", "after")
        own = any(getattr(type(self), hook) is not getattr(InversionMethod, hook) for hook in hooks)
        return self if own else InversionMethod()

    def of_branch(self, branch: Literal["replay", "anchored", "alone"]) -> "InversionMethod":
        """The method as one branch needs it, which may be a simpler one.

        Args:
          branch: the edit's source, "replay" or "anchored" on its latents as in `SourceConfig.latents`; or "alone": a
            branch that goes down by itself with the inversion's own predictor, such as the auxiliary branch. Of the
            hooks in the steps it gets `query` and `after` alone, and its latents are called "source".
        """
        return self

    def branches(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        """The rows of the edit's network call, of which some may not be needed.

        Args:
          rows: those that guidance and the source's condition ask for.
        """
        return rows

    def run(
        self,
        predict: Predictor,
        z0: Latent,
        steps: Step,
        *,
        sampler: Sampler,
        keep: Sequence[int],
        **source: Any,
    ) -> dict[str, Array]:
        """The way up.

        Args:
          predict: the predictor of the source.
          z0: clean latents, (b, h, w, c).
          steps: inverting steps, lowest noise first.
          sampler: the rule of a step.
          keep: the levels whose latents are wanted, in ascending order; 0 is `z0`.
          source: the keyword `source` alone, see `needs_source`.

        Returns:
          "latents", (levels, b, h, w, c), and whatever else an edit needs of it; of every array the first axis is
          levels or steps, the second the batch.
        """
        raise InputError(f"{type(self).__name__} has no method run: an inversion needs one")

    def per_step(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """The data that the hooks below get, for each denoising step from the first on, most noise first.

        Args:
          data: from `run`.
        """
        return {}

    def figures(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """Numbers that tell how good the inversion of each example is, (b,) each, by name.

        They become part of the results' records.

        Args:
          data: from `run`.
        """
        return {}

    def conditions(
        self, conditions: Mapping[str, Condition], data: Mapping[str, Array], step: Step
    ) -> Mapping[str, Condition]:
        """The conditions of a step's network call, by name.

        Args:
          conditions: those of the edit: "null" (one row), "negative", "source" and "target".
          data: this step's, from `per_step`.
          step: that is about to be taken.
        """
        return conditions

    def query(
        self, latents: dict[str, Latent], data: Mapping[str, Array], step: Step
    ) -> tuple[dict[str, Latent], Step]:
        """The latents at which the network is evaluated, and the step that starts at their level.

        Its noise there is taken for that at the branches' own latents.

        Args:
          latents: (b, h, w, c) by branch.
          data: this step's, from `per_step`.
          step: that is about to be taken; its time is what the network is given.
        """
        return latents, step

    def guide(self, differences: dict[str, Latent], step: Step) -> tuple[dict[str, Latent], Taps]:
        """The differences between guided and unguided outputs, by branch, before they are scaled.

        Args:
          differences: (b, h, w, c) of the branches that are guided.
          step: that is about to be taken.

        Returns:
          The differences in their place, and arrays that `after` gets among its data.
        """
        return differences, {}

    def after(
        self, latents: dict[str, Latent], data: Mapping[str, Array], step: Step
    ) -> dict[str, Latent]:
        """The branches' latents after a step of the edit.

        Args:
          latents: (b, h, w, c) by branch, as the sampler left them; the source's only where it is replayed.
          data: this step's, from `per_step`, and what `guide` returned beside the differences.
          step: that was taken.
        """
        return latents
