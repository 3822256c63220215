"""Direct inversion: the source branch is brought back to the way up after every step.

What the guided source would miss the way up by, a step at a time, is computed beforehand and added after each step, so
the source goes down exactly as it came up. The target is untouched: it gains from a control, which takes from the
source.

Two ways of it have the same result as long as the source line does not blend the source: these offsets, as published
(added after the blend and before what a control does to the latents), and the cleaner one, which sets the source on
the stored latents: `source.latents = "anchored"`. Then there is nothing to add, and this method is plain inversion.

Source: Ju et al., ICLR 2024 (arXiv 2310.01506), algorithm 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from uam_jax.method.inversions.ddim import DDIMInversion
from uam_jax.method.inversions.method import InversionMethod, SourceBranch
from uam_jax.method.inversions.way_up import size, whole_way
from uam_jax.method.samplers import Sampler
from uam_jax.method.schedule import reverse
from uam_jax.runtime.loops import scan
from uam_jax.types import Latent, Predictor, Step


@dataclass(frozen=True)
class DirectInversion(InversionMethod):
    """DDIM's way up, and one more evaluation of the guided source at each of its latents."""

    samplers: ClassVar[tuple[str, ...]] = ("ddim",)
    needs_source: ClassVar[bool] = True

    def source_cost(self, rows: int) -> int:
        return rows

    def of_branch(self, branch: str) -> InversionMethod:
        """Offsets are for a source that is replayed."""
        return self if branch == "replay" else DDIMInversion()

    def run(
        self,
        predict: Predictor,
        z0: Latent,
        steps: Step,
        *,
        sampler: Sampler,
        keep: Sequence[int],
        source: SourceBranch,
    ) -> dict[str, Array]:
        """DDIM's steps upwards; "latents", and of each step down "offset" (steps, b, h, w, c) and "error" (steps, b).

        The error is the offset's root mean square over that of the latent above it.
        """
        way, _ = whole_way(predict, z0, steps, sampler=sampler)

        def miss(
            nothing: tuple[()], given: tuple[Step, Latent, Latent]
        ) -> tuple[tuple[()], Latent]:
            step, above, below = given
            reached = sampler.advance(above, source.predict(above, step), step)
            return nothing, below - reached

        _, offset = scan(miss, (), (reverse(steps), way[:0:-1], way[-2::-1]))
        error = size(offset) / jnp.maximum(size(way[:0:-1]), 1e-6)
        return {"latents": way[jnp.asarray(keep)], "offset": offset, "error": error}

    def per_step(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"offset": data["offset"]}

    def figures(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """`step_error`: the largest that a guided step misses the way up by, see `run`."""
        return {"step_error": data["error"].max(axis=0)}

    def after(
        self, latents: dict[str, Latent], data: Mapping[str, Array], step: Step
    ) -> dict[str, Latent]:
        """The source with its offset."""
        if "source" not in latents:
            return latents
        return {**latents, "source": latents["source"] + data["offset"]}
