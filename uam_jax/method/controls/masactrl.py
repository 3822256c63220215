"""MasaCtrl's mutual self-attention: the target's queries attend to the source's keys and values.

Source: Cao et al., MasaCtrl, ICCV 2023 (arXiv 2304.08465), §3.2, and §3.3 for its masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uam_jax.errors import InputError, quoted
from uam_jax.method.alignment import Prompt
from uam_jax.method.controls.control import Control, Moment
from uam_jax.method.controls.cross_maps import (
    CrossMaps,
    WordMaps,
    added_maps,
    empty_maps,
    level_of,
    word_tokens,
)
from uam_jax.method.controls.sharing import (
    attend_within,
    in_order,
    projected,
    samples_of,
    source_of_rows,
)
from uam_jax.method.edits import Edit
from uam_jax.method.plan import Row
from uam_jax.method.section import Count, Share
from uam_jax.method.uniform import at_level
from uam_jax.types import AttentionRule, AttentionSite, Latent, Rules, plain_attention

Foreground = Float[Array, "b branches rows columns"]
"""1 in the foreground of source and target, 0 in the background."""


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
    keys: Annotated[
        Literal["source", "both"],
        "whose keys and values the target has: the source's, or its own too",
    ] = "source"
    foreground: Annotated[
        Literal["all", "mask", "words"],
        "foreground, which attends to foreground alone, as the rest to the rest: everything, the user's mask, or where "
        "the attention to the words to blend lies",
    ] = "all"
    word_side: Annotated[
        Share, "side of the cross-attention maps of the words, as a share of the latent's"
    ] = 0.25
    word_threshold: Annotated[
        Share, "share of the range of a word's map from which on a pixel is foreground"
    ] = 0.1

    @property
    def compares_prompts(self) -> bool:
        """It finds words in them."""
        return self.foreground == "words"

    @property
    def kinds_of_words(self) -> frozenset[str]:
        """Those to blend, as the foreground."""
        return frozenset({"blend"} if self.foreground == "words" else ())

    @property
    def needs_mask(self) -> bool:
        """As the foreground."""
        return self.foreground == "mask"

    def windows(self, steps: int) -> Mapping[str, range]:
        """The steps with mutual self-attention, and those whose maps of words it takes."""
        stop = min(self.step_end, steps)
        mutual = {"mutual": range(self.step_start, stop)}
        return {**mutual, "words": range(stop)} if self.foreground == "words" else mutual

    def prepare(self, tokenizer: Any, edits: Sequence[Edit]) -> Mapping[str, np.ndarray]:
        """The tokens of the words, where these are the foreground.

        Raises:
          InputError: an edit has none, or one that is in no prompt.
        """
        if self.foreground != "words":
            return {}
        tokens = []
        for edit in edits:
            if not edit.words.blend:
                raise InputError(
                    f"the edit to {quoted(edit.target)} has no words to blend, and control.foreground is words: name "
                    "what is in the foreground (--blend)"
                )
            prompts = (
                Prompt.of(tokenizer, edit.source or ""),
                Prompt.of(tokenizer, edit.target),
            )
            tokens.append(word_tokens(edit.words.blend, prompts, tokenizer.length)[None])
        return {"words": np.stack(tokens)}

    def rules(
        self,
        rows: Sequence[Row],
        batch: int,
        data: Mapping[str, Array],
        moment: Moment,
    ) -> Rules:
        """Self-attention to the source, in the window, and taps of the words' maps."""
        cross = own = None
        if "words" in moment.active:
            cross = CrossMaps(
                source=samples_of(rows, batch, "source", "guided"),
                target=samples_of(rows, batch, "target", "guided"),
                level=level_of(self.word_side),
                words=data["words"],
            )
        if "mutual" in moment.active:
            own = mutual_self_attention(
                source_of_rows(rows, batch),
                block_start=self.block_start,
                block_end=self.block_end,
                union=self.keys == "both",
                foreground=self._foreground(data, moment),
                level=level_of(self.word_side) if self.foreground == "words" else 0,
            )
        return Rules(cross=cross, own=own)

    def _foreground(self, data: Mapping[str, Array], moment: Moment) -> Foreground | None:
        if self.foreground == "mask":
            mask = jnp.moveaxis(data["user_mask"], -1, 1)
            return jnp.concatenate([mask, mask], axis=1)
        return self._of_words(moment.state) if self.foreground == "words" else None

    def _of_words(self, maps: WordMaps) -> Foreground:
        """Where the maps lie above the threshold between their least and their greatest value."""
        found = maps[:, 0]
        least, most = (end(found, axis=(2, 3), keepdims=True) for end in (jnp.min, jnp.max))
        above = found - least >= self.word_threshold * (most - least)
        return (above & (most > least)).astype(maps.dtype)

    def start(self, latents: Mapping[str, Latent]) -> Any:
        """The words' maps, summed over steps and layers."""
        if self.foreground != "words":
            return ()
        return empty_maps(latents["target"], 1, level_of(self.word_side))

    def after(
        self, taps: Mapping[str, Array], latents: dict[str, Latent], moment: Moment
    ) -> tuple[Any, dict[str, Latent]]:
        """Adds up the words' maps."""
        if "words" not in moment.active:
            return moment.state, latents
        remedy = "control.word_side to 0.5 or 1"
        return added_maps(moment.state, taps, self.word_side, remedy), latents


def mutual_self_attention(
    source_of: Sequence[int],
    *,
    block_start: int,
    block_end: int,
    union: bool = False,
    foreground: Foreground | None = None,
    level: int = 0,
) -> AttentionRule:
    """Self-attention whose sample r has the keys and values of sample `source_of[r]`.

    Applies to the blocks in [block_start, block_end); the others attend to themselves.

    Args:
      source_of: as `sharing.source_of_rows` gives it.
      block_start: first transformer block in which it holds.
      block_end: the block before which it stops.
      union: samples that take have their own keys and values too.
      foreground: the regions of both branches that see nothing of each other's outside.
      level: of `foreground`, whose sides are the latent's halved so many times.
    """
    if union or foreground is not None:
        return _RegionalSelfAttention(
            tuple(source_of), block_start, block_end, union, level, foreground
        )
    return _MutualSelfAttention(tuple(source_of), block_start, block_end)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _MutualSelfAttention:
    source_of: tuple[int, ...]
    block_start: int
    block_end: int

    def __call__(
        self, site: AttentionSite, x: Float[Array, "b n c"], context: Float[Array, "b n c"]
    ) -> Float[Array, "b n c"]:
        if not self.block_start <= site.number < self.block_end:
            return plain_attention(site, x, context)
        key, value = projected(x, self.source_of, site.key, site.value)
        return site.project(site.attend(site.query(x), key, value))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _RegionalSelfAttention:
    """See `mutual_self_attention`; the samples of a branch are those of one example after those of another."""

    source_of: tuple[int, ...] = field(metadata={"static": True})
    block_start: int = field(metadata={"static": True})
    block_end: int = field(metadata={"static": True})
    union: bool = field(metadata={"static": True})
    level: int = field(metadata={"static": True})
    foreground: Foreground | None = None

    def __call__(
        self, site: AttentionSite, x: Float[Array, "b n c"], context: Float[Array, "b n c"]
    ) -> Float[Array, "b n c"]:
        if not self.block_start <= site.number < self.block_end:
            return plain_attention(site, x, context)
        every, source_of = np.arange(x.shape[0]), np.asarray(self.source_of)
        alone, takes = every[source_of == every], every[source_of != every]
        query, key, value = site.query(x), site.key(x), site.value(x)
        keys, values = key[source_of[takes]], value[source_of[takes]]
        if self.union:
            keys = jnp.concatenate([keys, key[takes]], axis=1)
            values = jnp.concatenate([values, value[takes]], axis=1)
        if self.foreground is None:
            mixed = site.attend(query[takes], keys, values)
        else:
            source, target = self._inside(site.level, x.shape[1])[
                :, takes % self.foreground.shape[0]
            ]
            inside = jnp.concatenate([source, target], axis=1) if self.union else source
            mixed = attend_within(site, query[takes], keys, values, target, inside)
        plain = site.attend(query[alone], key[alone], value[alone])
        return site.project(in_order((alone, plain), (takes, mixed)))

    def _inside(self, level: int, pixels: int) -> Float[Array, "branches b n"]:
        """The foreground of each branch at a level of the network, 1 or 0."""
        assert self.foreground is not None
        branches = jnp.moveaxis(self.foreground, 1, 0)
        if level >= self.level:
            found = [at_level(branch, level - self.level)[..., 0] for branch in branches]
            return (jnp.stack(found) >= 0.5).astype(branches.dtype)
        factor = 2 ** (self.level - level)
        grown = branches.repeat(factor, axis=2).repeat(factor, axis=3)
        return grown.reshape(*grown.shape[:2], pixels)
