"""Plug-and-Play: the target takes features and self-attention maps of the source, which has no prompt.

Source: Tumanyan et al., Plug-and-Play Diffusion Features, CVPR 2023 (arXiv 2211.12572), §4, and the authors' code for
diffusers, which inverts and edits in 50 steps. With the negative prompt "ugly, blurry, black, low res, unrealistic" it
is the edit of the published comparison.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Self

import jax
import numpy as np
from jaxtyping import Array, Float

from uam_jax.errors import InputError
from uam_jax.method.controls.control import Control, Moment, rounded_down
from uam_jax.method.controls.sharing import SharedMaps, source_of_rows
from uam_jax.method.plan import Row
from uam_jax.method.section import Count, Share
from uam_jax.types import Rules, Site


@dataclass(frozen=True)
class PlugAndPlay(Control):
    """Features of one ResNet block and maps of the self-attention, each in a window of steps, in both halves.

    The source takes one evaluation, under the null prompt. Its inversion's prompt is what `source.condition` says.
    """

    feature_steps: Annotated[
        Share, "share of the steps, from the first, whose features are the source's"
    ] = 0.8
    map_steps: Annotated[
        Share, "share of the steps, from the first, whose self-attention maps are the source's"
    ] = 0.5
    block_start: Annotated[
        Count,
        "first transformer block whose maps are taken, in execution order; 0: the second on the network's way up",
    ] = 0
    block_end: Annotated[
        Count, "transformer block before which that stops; with 1000 it goes on to the end"
    ] = 1000
    resnet: Annotated[
        Count,
        "ResNet block whose features are taken, in execution order; 0: the one before the second transformer block on "
        "the network's way up",
    ] = 0

    def branches(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        """One row of the source, under the null prompt."""
        targets = [row for row in rows if row.branch == "target"]
        return (Row("source", "null"), *targets)

    def windows(self, steps: int) -> Mapping[str, range]:
        """The steps with the source's features, and with its maps."""
        return {
            "features": range(rounded_down(self.feature_steps * steps)),
            "maps": range(rounded_down(self.map_steps * steps)),
        }

    def fitted(self, sites: Sequence[Site]) -> Self:
        """The control with the numbers of its blocks.

        Raises:
          InputError: the network has none where they should be.
        """
        pairs = [
            (before.number, site.number)
            for before, site in pairwise(sites)
            if site.part == "up" and before.kind == "residual" and site.kind == "own"
        ]
        if len(pairs) < 2 and not (self.block_start and self.resnet):
            raise InputError(
                "the network has no second transformer block on its way up: set control.block_start and "
                "control.resnet, or control=none"
            )
        resnet, block = pairs[1] if len(pairs) > 1 else (0, 0)
        return replace(self, block_start=self.block_start or block, resnet=self.resnet or resnet)

    def rules(
        self,
        rows: Sequence[Row],
        batch: int,
        data: Mapping[str, Array],
        moment: Moment,
    ) -> Rules:
        """The source's features and maps, in their windows."""
        if not moment.active:  # the source may not be evaluated
            return Rules()
        source_of = source_of_rows(rows, batch)
        maps = SharedMaps(source_of, self.block_start, self.block_end)
        features = SharedFeatures(source_of, self.resnet)
        return Rules(
            own=maps if "maps" in moment.active else None,
            residual=features if "features" in moment.active else None,
        )


@jax.tree_util.register_static
@dataclass(frozen=True)
class SharedFeatures:
    """The hidden state of a ResNet block, before its shortcut, of sample `source_of[r]` in place of r's.

    Attributes:
      source_of: as `sharing.source_of_rows` gives it.
      resnet: the block's number.
    """

    source_of: tuple[int, ...]
    resnet: int

    def __call__(self, site: Site, h: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return h[np.asarray(self.source_of)] if site.number == self.resnet else h
