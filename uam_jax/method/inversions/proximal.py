"""Proximal guidance: negative-prompt inversion whose guidance leaves out what it would change little.

The difference between the guided and the unguided output is thresholded before it is scaled. Two forms go by this name:

- "benchmark": the threshold alone. The published comparisons have this one, since their runner asks for the correction
  and does not pass it on.
- "proxnpi": also a correction after each late step, of what the difference left alone, to the stored latents of the way
  up: z - rate·(z - z*)·(1 - dilated(|δ'| > λ)), with the thresholded difference δ'.

λ is a quantile of |δ| over the pixels and channels of an example's source and target together, as released. Without
interpolation the source's difference is 0, and half of the values are: the quantile 0.75 is the target's median. The
released code has one quantile for a whole batch; here each example has its own.

Source: Han et al., WACV 2024 (arXiv 2306.05414), and the authors' code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import jax.numpy as jnp
from jaxtyping import Array

from uam_jax.method.inversions.negative_prompt import NegativePromptInversion
from uam_jax.method.masks import dilate, threshold
from uam_jax.method.sample import Trajectory
from uam_jax.method.section import Between, Count, Share
from uam_jax.types import Latent, Step, Taps


@dataclass(frozen=True)
class ProximalInversion(NegativePromptInversion):
    """Negative-prompt inversion with a threshold inside the guidance."""

    form: Annotated[
        Literal["benchmark", "proxnpi"], "the threshold alone, or with the correction of latents"
    ] = "benchmark"
    threshold: Annotated[
        Literal["soft", "hard"],
        "what is left of a difference above λ: what it exceeds λ by, which the released code calls l0, or all of it",
    ] = "soft"
    quantile: Annotated[Share, "quantile of the differences, which gives λ"] = 0.75
    rate: Annotated[Share, "share of the correction, in the form proxnpi"] = 1.0
    t_correct: Annotated[Count, "timestep below which steps are corrected, in that form"] = 400
    radius: Annotated[int, Between(0, 64), "radius of the dilation, in that form"] = 1

    def beside(self, way: Trajectory) -> dict[str, Array]:
        """In the form proxnpi "below" (steps, b, h, w, c): the latents below the steps, z0 first."""
        return {"below": way[:-1]} if self.form == "proxnpi" else {}

    def per_step(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"below": data["below"][::-1]} if self.form == "proxnpi" else {}

    def guide(self, differences: dict[str, Latent], step: Step) -> tuple[dict[str, Latent], Taps]:
        """The thresholded differences, and where they are large: "large_" and the branch's name, 0 or 1."""
        if not differences:
            return differences, {}
        # A source that is not guided, or not evaluated, has no difference.
        nothing = jnp.zeros_like(differences["target"])
        both = jnp.concatenate([differences["target"], differences.get("source", nothing)], axis=1)
        level = threshold(both, jnp.asarray(self.quantile))
        kept, large = {}, {}
        for branch, each in differences.items():
            size = jnp.abs(each)
            rest = size - level if self.threshold == "soft" else size
            kept[branch] = jnp.sign(each) * jnp.where(size > level, rest, 0.0)
            large[f"large_{branch}"] = dilate(
                (jnp.abs(kept[branch]) > level).astype(each.dtype), self.radius
            )
        return kept, large if self.form == "proxnpi" else {}

    def after(
        self, latents: dict[str, Latent], data: Mapping[str, Array], step: Step
    ) -> dict[str, Latent]:
        """In the form proxnpi, every branch corrected where its difference is small."""
        if self.form == "benchmark":
            return latents
        rate = jnp.where(step.time < self.t_correct, self.rate, 0.0)
        return {
            name: latent - rate * (latent - data["below"]) * (1 - data.get(f"large_{name}", 0.0))
            for name, latent in latents.items()
        }
