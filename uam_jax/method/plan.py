"""Which network evaluations an edit takes, decided before it runs.

`EditConfig.plan` makes a plan, the pipeline and `edit` execute it, and the count of evaluations is
read off it, so that count and run cannot disagree. Pure Python over plain numbers.

Steps are counted from the start of denoising. A *row* is one sample in a network call: guidance
takes two, unless its two contexts are the same or its scale is 1.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple


class Row(NamedTuple):
    """One sample of a network call, for every example.

    Attributes:
      branch: whose latent it is.
      condition: by which text.
      half: of classifier-free guidance; a branch that has no unguided row is not guided.
    """

    branch: Literal["source", "target"]
    condition: Literal["null", "negative", "source", "target"]
    half: Literal["unguided", "guided"] = "guided"


@dataclass(frozen=True)
class Segment:
    """Consecutive denoising steps that run one program: one `lax.scan`.

    Attributes:
      start: the first step.
      stop: the step after the last.
      source: the source branch is evaluated beside the target.
      controlled: the attention control is active (it needs the source).
      adaptive: a mask rule compares the branches' clean estimates (it needs the source).
      user: the user's mask takes part.
    """

    start: int
    stop: int
    source: bool
    controlled: bool
    adaptive: bool
    user: bool

    @property
    def blended(self) -> bool:
        """Clean estimates are blended with the auxiliary branch's."""
        return self.adaptive or self.user


@dataclass(frozen=True)
class Plan:
    """The evaluations of one edit.

    Attributes:
      segments: the steps of the source and target branches.
      auxiliary: "replay", "anchored" or "original", as in `EditConfig`.
      shared_inversion: the source's inversion is the uniform one, so the auxiliary branch starts
        from its latent at level `depth` and needs no inversion of its own.
      inversion_rows: rows of a step of the source's inversion.
      source_rows: rows of the source branch in a step.
      target_rows: rows of the target branch in a step.
    """

    segments: tuple[Segment, ...]
    auxiliary: str
    shared_inversion: bool
    inversion_rows: int
    source_rows: int
    target_rows: int

    @property
    def steps(self) -> int:
        """Denoising steps in all."""
        return self.segments[-1].stop

    @property
    def blended(self) -> int:
        """How many steps are blended: always the last ones."""
        return sum(part.stop - part.start for part in self.segments if part.blended)

    @property
    def depth(self) -> int:
        """The level from which the auxiliary branch is denoised; 0: it is not evaluated."""
        if self.auxiliary == "original" or not self.blended:
            return 0
        return self.steps if self.auxiliary == "replay" else self.blended

    @property
    def edit_evaluations(self) -> int:
        """Single-sample network evaluations of the source and target branches, for one target."""
        return sum(
            (part.stop - part.start) * (self.target_rows + part.source * self.source_rows)
            for part in self.segments
        )

    def evaluations(self, targets: int = 1) -> int:
        """Single-sample network evaluations for one image; its targets share all but the edit."""
        inversion = self.inversion_rows * self.steps
        auxiliary = self.depth * (1 if self.shared_inversion else 2)
        return inversion + auxiliary + targets * self.edit_evaluations


def segments(
    steps: int,
    *,
    adaptive: range,
    user: range,
    controlled: Collection[int],
    anchored: bool,
    compared: range = range(0),
) -> tuple[Segment, ...]:
    """Cuts `steps` where the program changes.

    Args:
      steps: how many there are.
      adaptive: the steps whose mask compares source and target.
      user: the steps in which the user's mask takes part.
      controlled: the steps in which the attention control is active.
      anchored: the source's latents are stored ones, so that it is evaluated only where it is
        needed; else it is replayed, and evaluated in every step up to the last that needs it.
      compared: further steps that need the source, to tell where the branches differ.
    """
    needed = [
        any(step in part for part in (adaptive, controlled, compared)) for step in range(steps)
    ]

    def program(step: int) -> tuple[bool, bool, bool, bool]:
        source = needed[step] if anchored else any(needed[step:])
        return source, step in controlled, step in adaptive, step in user

    runs = [(flags, list(run)) for flags, run in groupby(range(steps), key=program)]
    return tuple(Segment(run[0], run[-1] + 1, *flags) for flags, run in runs)
