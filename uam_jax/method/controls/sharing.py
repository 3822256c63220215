"""Samples of a network call that take parts of their attention from the source's, for several controls."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uam_jax.method.plan import Row
from uam_jax.types import AttentionSite, plain_attention

_FAR = 1000.0
"""How much lower a logit is whose query and key lie on different sides: its exponential is zero."""


def samples_of(rows: Sequence[Row], batch: int, branch: str, half: str) -> tuple[int, ...]:
    """The samples of a branch in one half of the guidance."""
    numbers = [
        number for number, row in enumerate(rows) if (row.branch, row.half) == (branch, half)
    ]
    return tuple(number * batch + example for number in numbers for example in range(batch))


def source_of_rows(
    rows: Sequence[Row], batch: int, halves: Collection[str] = ("unguided", "guided")
) -> tuple[int, ...]:
    """The sample from which each sample of a network call takes.

    The samples of a target row in one of the halves take from those of the source row in the same half of the
    guidance, or of the only source row; the others take from themselves.
    """
    sources = {row.half: number for number, row in enumerate(rows) if row.branch == "source"}
    only = next(iter(sources.values()))
    parts = [
        sources.get(row.half, only) if row.branch == "target" and row.half in halves else number
        for number, row in enumerate(rows)
    ]
    return tuple(part * batch + example for part in parts for example in range(batch))


def in_order(*parts: tuple[np.ndarray, Array]) -> Array:
    """All samples of a network call, in their order, from parts of them and their places."""
    places = np.concatenate([at for at, _ in parts])
    return jnp.concatenate([part for _, part in parts])[np.argsort(places)]


def attend_within(
    site: AttentionSite,
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b s heads d"],
    value: Float[Array, "b s heads d"],
    queries_inside: Float[Array, "b n"],
    keys_inside: Float[Array, "b s"],
) -> Float[Array, "b n heads d"]:
    """Attention of queries inside a region to the keys inside, and of those outside to the keys outside.

    A query whose side has no keys attends to all. The region is a part of the heads: two further channels, whose
    product is far below zero where the sides differ, so that every implementation of attention takes it.

    Args:
      site: the layer.
      query: of each sample.
      key: of the sample that it takes from.
      value: likewise.
      queries_inside: 1 inside, 0 outside.
      keys_inside: likewise.
    """
    width = query.shape[-1]
    wide = width + 8  # fused kernels take multiples of 8
    scale = (wide / width) ** 0.5

    def widened(x: Array, *channels: Float[Array, "b n"]) -> Array:
        spread = [jnp.broadcast_to(each[..., None], x.shape[:-1]) for each in channels]
        filling = [jnp.zeros_like(x[..., 0])] * (wide - width - len(spread))
        return jnp.concatenate([x, jnp.stack([*spread, *filling], axis=-1).astype(x.dtype)], -1)

    far = -_FAR * wide**0.5
    query = widened((query * scale).astype(query.dtype), queries_inside, 1 - queries_inside)
    key = widened(key, far * (1 - keys_inside), far * keys_inside)
    return site.attend(query, key, widened(value))[..., :width]


def projected(
    x: Float[Array, "b n c"], source_of: Sequence[int], *projections: Callable[[Array], Array]
) -> list[Array]:
    """Projections of the sample that each takes from, made once per sample that is taken from."""
    taken, place = np.unique(np.asarray(source_of), return_inverse=True)
    return [project(x[taken])[place] for project in projections]


@jax.tree_util.register_static
@dataclass(frozen=True)
class SharedMaps:
    """Self-attention whose sample r has its own values under the maps of sample `source_of[r]`.

    The maps are not written out: they are those of that sample's queries and keys.

    Attributes:
      source_of: as `source_of_rows` gives it.
      block_start: first transformer block in which it holds.
      block_end: the block before which it stops.
      level_start: first level in which it holds, of those that halve the latent's sides.
    """

    source_of: tuple[int, ...]
    block_start: int = 0
    block_end: int = 1000
    level_start: int = 0

    def __call__(
        self, site: AttentionSite, x: Float[Array, "b n c"], context: Float[Array, "b n c"]
    ) -> Float[Array, "b n c"]:
        held = self.block_start <= site.number < self.block_end
        if not held or site.level < self.level_start:
            return plain_attention(site, x, context)
        query, key = projected(x, self.source_of, site.query, site.key)
        return site.project(site.attend(query, key, site.value(x)))
