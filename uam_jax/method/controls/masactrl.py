"""MasaCtrl's mutual self-attention: the target looks at the source's keys and values.

Source: Cao et al., MasaCtrl, ICCV 2023 (arXiv 2304.08465), §3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float

from uam_jax.types import AttentionRule, AttentionSite, plain_attention


def source_of_rows(pairs: int, *, source_rows: int, target_rows: int) -> tuple[int, ...]:
    """The batch row from which each row takes its keys and values.

    The batch is laid out in parts of `pairs` rows: the source's, then the target's; of two parts
    the first is unconditional. The target's unconditional part takes the source's unconditional
    part, its conditional part the conditional one; a source of one part serves both.
    """
    parts = [*range(source_rows), *(min(part, source_rows - 1) for part in range(target_rows))]
    return tuple(part * pairs + pair for part in parts for pair in range(pairs))


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
