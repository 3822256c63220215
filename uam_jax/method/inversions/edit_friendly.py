"""Edit-friendly inversion: independent noise at every level, and the noises with which DDPM's steps join the levels.

The latent of each level is the clean one under noise of its own. So neighbouring levels are farther apart than on
any path of the sampler, and the noise that takes a step from one to the next holds much of the picture. The edit takes
the same steps with the same noises.

With the predictor of the inversion the way down is exact, except for the last step, which is taken without noise. Any
predictor will do: with uniform maps the noises are free of text.

Source: Huberman-Spiegelglas et al., CVPR 2024 (arXiv 2304.06140), §3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from uam_jax.method.inversions.method import InversionMethod
from uam_jax.method.inversions.way_up import size
from uam_jax.method.samplers import Sampler
from uam_jax.method.schedule import reverse
from uam_jax.method.section import Between, Share
from uam_jax.runtime.loops import scan
from uam_jax.types import Latent, Predictor, Step


@dataclass(frozen=True)
class EditFriendlyInversion(InversionMethod):
    """One evaluation at each level, from the noisiest that the edit uses downwards."""

    samplers: ClassVar[tuple[str, ...]] = ("ddpm",)
    skip: Annotated[
        Share,
        "share of the denoising steps that are left out, so that the edit starts at a lower level",
    ] = 0.24
    seed: Annotated[
        int, Between(0, 2**31 - 1), "of the levels' noise, the same for each picture"
    ] = 0

    def first(self, steps: int) -> int:
        return min(round(self.skip * steps), steps - 1)

    def run(
        self,
        predict: Predictor,
        z0: Latent,
        steps: Step,
        *,
        sampler: Sampler,
        keep: Sequence[int],
    ) -> dict[str, Array]:
        """The levels' latents and what joins them; "latents", "noise" (steps, b, h, w, c) and "error" (1, b).

        The noise of a step down is added to the mean that DDPM's step leads to; the last one's is left out, and its
        size over that of z0 is the error. A level's own noise does not depend on how many levels there are.
        """
        keys = jax.vmap(lambda level: jax.random.fold_in(jax.random.key(self.seed), level))
        own = jax.vmap(lambda key: jax.random.normal(key, z0.shape[1:], z0.dtype))(
            keys(1 + jnp.arange(len(steps.index)))
        )
        level = jax.tree.map(lambda part: part[:, None, None, None, None], steps)
        way = level.signal_next * z0 + level.sigma_next * own[:, None]
        way = jnp.concatenate([z0[None], way])

        def join(
            nothing: tuple[()], given: tuple[Step, Latent, Latent]
        ) -> tuple[tuple[()], Latent]:
            step, above, below = given
            return nothing, below - sampler.advance(above, predict(above, step), step)

        _, noise = scan(join, (), (reverse(steps), way[:0:-1], way[-2::-1]))
        error = size(noise[-1:]) / jnp.maximum(size(z0[None]), 1e-6)
        noise = noise.at[-1].set(0.0)
        return {"latents": way[jnp.asarray(keep)], "noise": noise, "error": error}

    def per_step(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"noise": data["noise"]}

    def figures(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """`round_trip_error`: of the way down with the inversion's predictor, see `run`."""
        return {"round_trip_error": data["error"][0]}

    def after(
        self, latents: dict[str, Latent], data: Mapping[str, Array], step: Step
    ) -> dict[str, Latent]:
        """Every branch with the step's noise."""
        return {name: latent + data["noise"] for name, latent in latents.items()}
