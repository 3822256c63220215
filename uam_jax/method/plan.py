"""The network evaluations that an edit takes, decided before it runs.

`EditConfig.plan` makes a plan, the editor and `edit` execute it, and the count of evaluations is
read off it, so that count and run cannot disagree. Pure Python over plain numbers.

Steps are counted from the start of denoising.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple


class Row(NamedTuple):
    """One sample of a network call, for every example.

    Attributes:
      branch: the branch whose latent the network gets.
      condition: the name of the condition that the network gets.
      half: the half of classifier-free guidance; a branch that has no unguided row is not guided.
    """

    branch: Literal["source", "target"]
    condition: Literal["null", "negative", "source", "target"]
    half: Literal["unguided", "guided"] = "guided"


def branch_rows(*, guided: bool, prompted: bool) -> tuple[Row, ...]:
    """The rows of the source and target branches.

    Args:
      guided: the guidance scale is not 1.
      prompted: the source has a prompt; between the null prompt and itself there is no guidance.
    """
    rows = []
    if not prompted:
        rows.append(Row("source", "source"))
    else:
        rows += [Row("source", "null", "unguided")] * guided + [Row("source", "source")]
    return (*rows, *[Row("target", "negative", "unguided")] * guided, Row("target", "target"))


@dataclass(frozen=True)
class Segment:
    """Consecutive denoising steps that do the same; `edit` runs one or several by one `lax.scan`.

    Attributes:
      start: the first step.
      stop: the step after the last.
      source: the source branch is evaluated beside the target.
      active: the control's windows that are open (they need the source).
      adaptive: a mask rule compares the branches' clean estimates (it needs the source).
      user: the user's mask takes part.
    """

    start: int
    stop: int
    source: bool
    active: frozenset[str]
    adaptive: bool
    user: bool

    @property
    def blended(self) -> bool:
        """Clean estimates are blended with the auxiliary branch's."""
        return self.adaptive or self.user

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """The evaluations of one edit.

    Attributes:
      segments: the steps of the source and target branches.
      rows: of those branches, in the order of the network call.
      auxiliary: "replay", "anchored" or "original", as in `AuxiliaryConfig.latents`.
      shared_inversion: the source's inversion is the uniform one, so the auxiliary branch starts
        from its latent at level `depth` and needs no inversion of its own.
      inversion_rows: rows of a step of the source's inversion.
      inversion_cost: evaluations of a row in its step, see `InversionMethod`.
      source_cost: evaluations in its step with the edit's source branch.
      auxiliary_cost: evaluations in a step of the auxiliary branch's inversion.
      agreement: evaluations that compare a result with its prompt.
      caption: evaluations that compare the picture with the source's prompt.
    """

    segments: tuple[Segment, ...]
    rows: tuple[Row, ...]
    auxiliary: str
    shared_inversion: bool
    inversion_rows: int = 1
    inversion_cost: int = 1
    source_cost: int = 0
    auxiliary_cost: int = 1
    agreement: int = 0
    caption: int = 0

    @property
    def steps(self) -> int:
        """Denoising steps in all."""
        return self.segments[-1].stop

    @property
    def start(self) -> int:
        """The level at which the edit starts."""
        return self.steps - self.segments[0].start

    @property
    def blended(self) -> int:
        """Steps that are blended: always the last ones."""
        return sum(len(part) for part in self.segments if part.blended)

    @property
    def depth(self) -> int:
        """The level from which the auxiliary branch is denoised; 0: it is not evaluated."""
        if self.auxiliary == "original" or not self.blended:
            return 0
        return self.start if self.auxiliary == "replay" else self.blended

    def rows_in(self, segment: Segment) -> tuple[Row, ...]:
        """The rows that are evaluated in a segment."""
        return tuple(row for row in self.rows if segment.source or row.branch != "source")

    @property
    def edit_evaluations(self) -> int:
        """Single-sample network evaluations of source, target and agreement, for one target."""
        steps = sum(len(part) * len(self.rows_in(part)) for part in self.segments)
        return steps + self.agreement

    @property
    def inversion_evaluations(self) -> int:
        """Single-sample network evaluations of the source's inversion, and of the look at its prompt before it."""
        each = self.inversion_rows * self.inversion_cost + self.source_cost
        return self.caption + each * self.start

    def evaluations(self, targets: int = 1) -> int:
        """Single-sample network evaluations for one image; its targets share all but the edit."""
        auxiliary = self.depth * (1 if self.shared_inversion else 1 + self.auxiliary_cost)
        return self.inversion_evaluations + auxiliary + targets * self.edit_evaluations


def segments(
    steps: int,
    *,
    adaptive: range,
    user: range,
    windows: Mapping[str, range],
    anchored: bool,
    compared: range = range(0),
    first: int = 0,
) -> tuple[Segment, ...]:
    """Cuts `steps` where what is done in them changes.

    Args:
      steps: how many there are.
      adaptive: the steps whose mask compares source and target.
      user: the steps in which the user's mask takes part.
      windows: the control's steps, by name.
      anchored: the source's latents are stored ones, so that it is evaluated only where it is
        needed; else it is replayed, and evaluated in every step up to the last that needs it.
      compared: further steps that need the source, to find where the branches differ.
      first: the step at which the edit starts; those before it are left out.
    """
    parts: Sequence[range] = (adaptive, compared, *windows.values())
    needed = [any(step in part for part in parts) for step in range(steps)]

    def program(step: int) -> tuple[bool, frozenset[str], bool, bool]:
        source = needed[step] if anchored else any(needed[step:])
        active = frozenset(name for name, part in windows.items() if step in part)
        return source, active, step in adaptive, step in user

    runs = [(flags, list(run)) for flags, run in groupby(range(first, steps), key=program)]
    return tuple(Segment(run[0], run[-1] + 1, *flags) for flags, run in runs)
