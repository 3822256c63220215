"""Cross-attention with its maps written out: mixed of two branches' by token, and added up for some words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from uam_jax.errors import InputError
from uam_jax.method.alignment import Prompt, marked, places_of
from uam_jax.method.controls.sharing import in_order
from uam_jax.types import AttentionSite, Latent, Taps, plain_attention

WordMaps = Float[Array, "b lists branches rows columns"]
"""Attention to the words of some lists in two branches (source, target), at one level."""


def word_tokens(
    words: Sequence[str], prompts: tuple[Prompt, Prompt], length: int
) -> Float[np.ndarray, "branches s"]:
    """1 at the places of the words' tokens in the source's and in the target's prompt, 0 elsewhere.

    Raises:
      InputError: a word is in neither.
    """
    found = [places_of(word, *prompts) for word in words]
    return np.stack(
        [marked([at for places in found for at in places[branch]], length) for branch in (0, 1)]
    )


def level_of(side: float) -> int:
    """The first level whose sides are at most this share of the latent's."""
    return math.ceil(-math.log2(side) - 1e-9) if side > 0 else 1000


def empty_maps(latent: Latent, lists: int, level: int) -> WordMaps:
    """Maps of nothing, for latents whose sides a level halves `level` times."""
    b, h, w, _ = latent.shape
    return jnp.zeros_like(latent, shape=(b, lists, 2, -(-h // 2**level), -(-w // 2**level)))


def added_maps(maps: WordMaps, taps: Taps, side: float, remedy: str) -> WordMaps:
    """A step's maps added to those before; an `InputError` with the remedy if the network has none of that side."""
    if "words" not in taps:
        raise InputError(
            f"the model has no cross-attention at {side:g} of the latent's side: set {remedy}"
        )
    return maps + taps["words"].reshape(maps.shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CrossMaps:
    """Cross-attention whose maps, in some samples, are mixed of the source's and their own, a token at a time.

    Attributes:
      source: samples of the source, in the half of the guidance in which it holds.
      target: those of the target, in the same order.
      level: from which attention to words is tapped, as "words".
      words: 1 at the places of the words' tokens; None: nothing is tapped.
      mapper: from the source's tokens to the target's; None: nothing is mixed.
      taken: of each token of the target, the share that comes from the source.
      kept: of each token of the target, the share of its own map.
    """

    source: tuple[int, ...] = field(metadata={"static": True})
    target: tuple[int, ...] = field(metadata={"static": True})
    level: int = field(metadata={"static": True})
    words: Float[Array, "b lists branches s"] | None = None
    mapper: Float[Array, "b s s"] | None = None
    taken: Float[Array, "b s"] | None = None
    kept: Float[Array, "b s"] | None = None

    def __call__(
        self, site: AttentionSite, x: Float[Array, "b n c"], context: Float[Array, "b s e"]
    ) -> Float[Array, "b n c"] | tuple[Float[Array, "b n c"], Taps]:
        words = self.words if site.level == self.level else None
        if self.mapper is None and words is None:
            return plain_attention(site, x, context)
        query, key, value = site.query(x), site.key(context), site.value(context)
        shown = np.asarray(self.source + self.target)
        others = np.setdiff1d(np.arange(x.shape[0]), shown)
        maps = self.mixed(site.maps(query[shown], key[shown]))
        out = jnp.einsum("bhns,bshd->bnhd", maps, value[shown].astype(maps.dtype))
        parts = [(shown, out.astype(query.dtype))]
        if len(others):
            parts.append((others, site.attend(query[others], key[others], value[others])))
        projected = site.project(in_order(*parts))
        return projected if words is None else (projected, {"words": word_maps(maps, words)})

    def mixed(self, maps: Float[Array, "samples heads n s"]) -> Float[Array, "samples heads n s"]:
        """The maps of the source's samples, then of the target's, after these were mixed."""
        if self.mapper is None or self.taken is None or self.kept is None:
            return maps
        source, target = jnp.split(maps, 2)
        # A mapper's column is one token of the source, or the mean of several: it must not be rounded.
        moved = jnp.einsum("bhnt,bts->bhns", source, self.mapper, precision=lax.Precision.HIGHEST)
        taken, kept = self.taken[:, None, None], self.kept[:, None, None]
        return jnp.concatenate([source, taken * moved + kept * target])


def word_maps(
    maps: Float[Array, "samples heads n s"], words: Float[Array, "b lists branches s"]
) -> Float[Array, "b lists branches n"]:
    """Attention to the words of each list, meaned over heads and summed over tokens.

    Args:
      maps: of the source's b samples, then of the target's.
      words: 1 at the places of the words' tokens.
    """
    mean = maps.mean(axis=1).reshape(2, words.shape[0], *maps.shape[2:])
    return jnp.einsum("rbns,bkrs->bkrn", mean, words, precision=lax.Precision.HIGHEST)
