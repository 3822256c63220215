"""MasaCtrl's mutual self-attention: the target's queries attend to the source's keys and values.

Source: Cao et al., MasaCtrl, ICCV 2023 (arXiv 2304.08465), §3.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np
from jaxtyping import Array, Float

from uam_jax.method.controls.control import Control
from uam_jax.method.plan import Row
from uam_jax.method.section import Count
from uam_jax.types import AttentionRule, AttentionSite, Rules, plain_attention


@dataclass(frozen=True)
class MasaCtrl(Control):
    """Mutual self-attention in a window of steps and of transformer blocks."""

    step_start: Annotated[Count, "first denoising step with mutual self-attention"] = 4
    step_end: Annotated[
        Count, "denoising step before which it stops; with 1000 it goes on to the end"
    ] = 1000
    block_start: Annotated[Count, "first transformer block with it, in execution order"] = 10
    block_end: Annotated[
        Count, "transformer block before which it stops; with 1000 it goes on to the end"
    ] = 1000

    def windows(self, steps: int) -> Mapping[str, range]:
        """The steps with mutual self-attention."""
        return {"mutual": range(self.step_start, min(self.step_end, steps))}

    def rules(
        self,
        rows: Sequence[Row],
        batch: int,
        active: frozenset[str],
        data: Mapping[str, Array],
    ) -> Rules:
        """Self-attention to the source, in the window."""
        if "mutual" not in active:
            return Rules()
        blocks = {"block_start": self.block_start, "block_end": self.block_end}
        return Rules(own=mutual_self_attention(source_of_rows(rows, batch), **blocks))


def source_of_rows(rows: Sequence[Row], batch: int) -> tuple[int, ...]:
    """The sample from which each sample of a network call takes its keys and values.

    The samples of a target row take those of the source row in the same half of the guidance, or of the
    only source row; a source row takes its own.
    """
    halves = {row.half: number for number, row in enumerate(rows) if row.branch == "source"}
    only = next(iter(halves.values()))
    parts = [
        halves.get(row.half, only) if row.branch == "target" else number
        for number, row in enumerate(rows)
    ]
    return tuple(part * batch + example for part in parts for example in range(batch))


def mutual_self_attention(
    source_of: Sequence[int], *, block_start: int, block_end: int
) -> AttentionRule:
    """Self-attention whose row r has the keys and values of row `source_of[r]`.

    Applies to the blocks in [block_start, block_end); the others attend to themselves.
    """
    # Keys and values are projected once per row that is taken from, not once per row that takes.
    taken, place = np.unique(np.asarray(source_of), return_inverse=True)
    return _MutualSelfAttention(
        tuple(taken.tolist()), tuple(place.tolist()), block_start, block_end
    )


@jax.tree_util.register_static
@dataclass(frozen=True)
class _MutualSelfAttention:
    taken: tuple[int, ...]
    place: tuple[int, ...]
    block_start: int
    block_end: int

    def __call__(
        self, site: AttentionSite, x: Float[Array, "b n c"], context: Float[Array, "b n c"]
    ) -> Float[Array, "b n c"]:
        if not self.block_start <= site.number < self.block_end:
            return plain_attention(site, x, context)
        taken, place = np.asarray(self.taken), np.asarray(self.place)
        key, value = (part[place] for part in (site.key(x[taken]), site.value(x[taken])))
        return site.project(site.attend(site.query(x), key, value))
