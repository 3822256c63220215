"""Whole ways up (inversion) and down (denoising) between noise levels.

Every function takes the predictor and the sampler as arguments and a stack of `Step`s from `schedule`; the direction
lies in the steps alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.method.samplers import SAMPLERS, Sampler, follow
from uam_jax.runtime.loops import scan
from uam_jax.types import Latent, Prediction, Predictor, Step

Trajectory = Float[Array, "levels b h w c"]
"""Latents of successive noise levels."""
Taps = Mapping[str, Array]
"""Arrays that predictions recorded, (steps, b, …) where they are stacked over steps."""


def invert(
    predict: Predictor,
    latent: Latent,
    steps: Step,
    *,
    sampler: Sampler = SAMPLERS["ddim"],
    keep: Literal["last", "all"] | Sequence[int] = "last",
) -> tuple[Latent | Trajectory, Taps]:
    """Takes a clean latent up through `steps`, as `Schedule.inverting` gives them.

    Args:
      predict: the predictor.
      latent: z0, level 0.
      steps: inverting steps, lowest noise first.
      sampler: the rule of a step.
      keep: "last" returns the noisiest latent; "all" the latents of every level, [0] is z0; level
        numbers return those, and only those are held meanwhile.

    Returns:
      The latents, and the taps of every prediction, stacked over steps.
    """
    state = sampler.start(latent)
    if keep == "last":
        state, taps = follow(predict, state, steps, sampler=sampler, record=_taps)
        return sampler.latent(state), taps
    if keep == "all":
        _, (reached, taps) = follow(predict, state, steps, sampler=sampler, record=_reached)
        return jnp.concatenate([latent[None], reached]), taps
    levels = jnp.asarray(keep).reshape(-1, 1, 1, 1, 1)

    def advance(carried: tuple[Any, Trajectory], inputs: Any) -> tuple[Any, Taps]:
        state, kept = carried
        step, level = inputs
        prediction = predict(sampler.query(state), step)
        state = sampler.advance(state, prediction, step)
        return (state, jnp.where(levels == level, sampler.latent(state), kept)), prediction.taps

    numbered = steps, jnp.arange(1, steps.index.shape[0] + 1)
    kept = jnp.broadcast_to(latent, (len(keep), *latent.shape))
    (_, kept), taps = scan(advance, (state, kept), numbered)
    return kept, taps


def denoise(
    predict: Predictor, latent: Latent, steps: Step, *, sampler: Sampler = SAMPLERS["ddim"]
) -> Latent:
    """Takes a noisy latent down through `steps`, as `Schedule.denoising` gives them."""
    return sampler.latent(follow(predict, sampler.start(latent), steps, sampler=sampler)[0])


def denoise_with_clean(
    predict: Predictor,
    latent: Latent,
    steps: Step,
    *,
    last: int,
    sampler: Sampler = SAMPLERS["ddim"],
) -> tuple[Latent, Trajectory]:
    """`denoise`, which also returns the clean estimates of the `last` (at least 1) steps, in order.

    On a uniform inversion, with the uniform predictor, this is the auxiliary branch of an edit:
    started at level N it is replayed, started at level `last` it is anchored.
    """
    first = steps.index.shape[0] - last

    def advance(carried: tuple[Any, Trajectory], inputs: Any) -> tuple[Any, None]:
        state, kept = carried
        step, number = inputs
        prediction = predict(sampler.query(state), step)
        state = sampler.advance(state, prediction, step)
        # The first of the last steps overwrites what those before it have put into its place.
        place = jnp.maximum(number - first, 0)
        kept = jax.lax.dynamic_update_index_in_dim(kept, prediction.clean, place, 0)
        return (state, kept), None

    numbered = steps, jnp.arange(steps.index.shape[0])
    kept = jnp.broadcast_to(latent, (last, *latent.shape))
    (state, kept), _ = scan(advance, (sampler.start(latent), kept), numbered)
    return sampler.latent(state), kept


def _taps(prediction: Prediction, reached: Latent) -> Taps:
    del reached
    return prediction.taps


def _reached(prediction: Prediction, reached: Latent) -> tuple[Latent, Taps]:
    return reached, prediction.taps
