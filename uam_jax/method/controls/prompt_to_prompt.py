"""Prompt-to-Prompt: the target takes attention maps of the source, for the tokens that both prompts have.

Source: Hertz et al., Prompt-to-Prompt, ICLR 2023 (arXiv 2208.01626), and the authors' code for its windows, which act
on the conditional half of the guidance alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from uam_jax.errors import InputError, quoted
from uam_jax.method.alignment import Prompt, places_of, refined, replaced
from uam_jax.method.controls.control import ROUNDING, Control, Moment, rounded_down
from uam_jax.method.controls.cross_maps import (
    CrossMaps,
    added_maps,
    empty_maps,
    level_of,
    word_tokens,
)
from uam_jax.method.controls.local_blend import region
from uam_jax.method.controls.sharing import SharedMaps, samples_of, source_of_rows
from uam_jax.method.edits import Edit
from uam_jax.method.plan import Row
from uam_jax.method.section import Share
from uam_jax.types import Latent, Rules


@dataclass(frozen=True)
class PromptToPrompt(Control):
    """Cross- and self-attention maps of the source, weights of words, and LocalBlend, each in a window of steps."""

    mapping: Annotated[
        Literal["refine", "replace"],
        "tokens whose maps are taken from the source: those that both prompts have, or each word's from the source's "
        "word at the same place",
    ] = "refine"
    cross_steps: Annotated[
        Share, "share of the steps, from the first, whose cross-attention is the source's"
    ] = 0.4
    word_steps: Annotated[
        Share,
        "share of the steps in which windows of single words may lie, if more than cross_steps",
    ] = 0.0
    self_steps: Annotated[
        Share, "share of the steps, from the first, whose self-attention is the source's"
    ] = 0.6
    self_side: Annotated[
        Share, "largest side of self-attention maps that are taken, as a share of the latent's"
    ] = 0.5
    local_blend: Annotated[
        bool, "whether words to blend limit the edit; the source is then evaluated in every step"
    ] = True
    blend_start: Annotated[Share, "share of the steps after which LocalBlend begins"] = 0.2
    blend_side: Annotated[
        Share, "side of the cross-attention maps of LocalBlend, as a share of the latent's"
    ] = 0.25
    blend_threshold: Annotated[
        Share, "share of a map's maximum above which it belongs to a word to blend"
    ] = 0.3
    subtract_threshold: Annotated[
        Share, "share of a map's maximum above which it belongs to a word to subtract"
    ] = 0.3

    @property
    def compares_prompts(self) -> bool:
        """It aligns them."""
        return True

    @property
    def kinds_of_words(self) -> frozenset[str]:
        """Weights and windows, and with LocalBlend those to blend and to subtract."""
        return frozenset(
            {"weights", "windows"} | ({"blend", "subtract"} if self.local_blend else set())
        )

    def windows(self, steps: int) -> Mapping[str, range]:
        """The steps with the source's cross-attention and self-attention, and with LocalBlend's maps."""
        # The authors' table of windows has a row more than there are steps.
        cross = rounded_down(max(self.cross_steps, self.word_steps) * (steps + 1))
        return {
            "cross": range(min(cross, steps)),
            "self": range(rounded_down(self.self_steps * steps)),
            **({"blend": range(steps)} if self.local_blend else {}),
        }

    def prepare(self, tokenizer: Any, edits: Sequence[Edit]) -> Mapping[str, np.ndarray]:
        """The mappers of the prompts' tokens, and the tokens of the words.

        Raises:
          InputError: a source prompt is missing, a word is in no prompt, or a word's window ends too late.
        """
        made = [self._prepared(tokenizer, edit) for edit in edits]
        return {name: np.stack([each[name] for each in made]) for name in made[0]}

    def _prepared(self, tokenizer: Any, edit: Edit) -> dict[str, np.ndarray]:
        if not (edit.source or "").strip():
            raise InputError(
                f"the edit to {quoted(edit.target)} has no source prompt, with whose tokens those of the target are "
                "aligned: describe the picture as it is"
            )
        source, target = (Prompt.of(tokenizer, text or "") for text in (edit.source, edit.target))
        length, words = tokenizer.length, edit.words
        mapper, copied = (refined if self.mapping == "refine" else replaced)(source, target, length)
        weights = np.ones(length, np.float32)
        for word, weight in words.weights.items():
            weights[list(places_of(word, target)[0])] = weight
        window = np.tile(np.float32([0, self.cross_steps]), (length, 1))
        latest = max(self.cross_steps, self.word_steps)
        for word, (begin, end) in words.windows.items():
            if end > latest:
                raise InputError(
                    f"the window of {quoted(word)} ends at {end:g} of the steps, and the source's cross-attention is "
                    f"there until {latest:g}: set control.word_steps={end:g}"
                )
            window[list(places_of(word, target)[0])] = begin, end
        tokens = [
            word_tokens(given, (source, target), length) for given in (words.blend, words.subtract)
        ]
        if not words.blend:
            tokens[0][:] = 1  # the source's maps of all tokens sum to 1: nothing lies outside
        return {
            "mapper": mapper,
            "copied": copied,
            "weights": weights,
            "window": window,
            "words": np.stack(tokens),
        }

    def rules(
        self,
        rows: Sequence[Row],
        batch: int,
        data: Mapping[str, Array],
        moment: Moment,
    ) -> Rules:
        """The source's maps in their windows, and LocalBlend's taps."""
        cross = own = None
        blends = "blend" in moment.active
        if "cross" in moment.active or blends:
            edited = "cross" in moment.active
            taken, kept = self._shares(data, moment) if edited else (None, None)
            cross = CrossMaps(
                source=samples_of(rows, batch, "source", "guided"),
                target=samples_of(rows, batch, "target", "guided"),
                taken=taken,
                kept=kept,
                mapper=data["mapper"] if edited else None,
                words=data["words"] if blends else None,
                level=self._blend_level,
            )
        if "self" in moment.active:
            source_of = source_of_rows(rows, batch, halves=("guided",))
            own = SharedMaps(source_of, level_start=level_of(self.self_side))
        return Rules(cross=cross, own=own)

    def _shares(self, data: Mapping[str, Array], moment: Moment) -> tuple[Array, Array]:
        """How much of a token's map is taken from the source, and how much is the target's own, in a step."""
        ends = jnp.floor(data["window"] * (moment.steps + 1) + ROUNDING)
        index = moment.step.index
        inside = (ends[..., 0] <= index) & (index < ends[..., 1])
        taken = data["weights"] * data["copied"]
        kept = data["weights"] * (1 - data["copied"])
        return jnp.where(inside, taken, 0), jnp.where(inside, kept, 1)

    @property
    def _blend_level(self) -> int:
        return level_of(self.blend_side)

    def start(self, latents: Mapping[str, Latent]) -> Any:
        """LocalBlend's maps, summed over steps and layers."""
        return empty_maps(latents["target"], 2, self._blend_level) if self.local_blend else ()

    def after(
        self, taps: Mapping[str, Array], latents: dict[str, Latent], moment: Moment
    ) -> tuple[Any, dict[str, Latent]]:
        """Outside LocalBlend's region, the target is the source."""
        if "blend" not in moment.active:
            return moment.state, latents
        remedy = "control.blend_side to 0.5 or 1, or control.local_blend=false"
        state = added_maps(moment.state, taps, self.blend_side, remedy)
        source, target = latents["source"], latents["target"]
        inside = region(
            state,
            target.shape[1:3],
            threshold=self.blend_threshold,
            subtract_threshold=self.subtract_threshold,
        )
        early = moment.step.index < rounded_down(self.blend_start * moment.steps)
        return state, {**latents, "target": jnp.where(inside | early, target, source)}
