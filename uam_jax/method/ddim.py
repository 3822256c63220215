"""Deterministic DDIM between noise levels: one step, and its scans up (invert) and down (denoise).

Every function takes the noise predictor as an argument and a stack of `Step`s from `schedule`;
the direction lies in the steps alone. Against diffusers, see `schedule` for the levels; a step
here is its step with eta 0 and without clipping.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.types import Latent, NoisePredictor, Step

Trajectory = Float[Array, "levels b h w c"]
"""Latents of successive noise levels."""


def clean_estimate(latent: Latent, noise: Latent, alpha_bar: Float[Array, ""]) -> Latent:
    """x0 = (z - √(1-ᾱ)·ε) / √ᾱ, what is left of `latent` without its noise."""
    return (latent - jnp.sqrt(1 - alpha_bar) * noise) / jnp.sqrt(alpha_bar)


def renoise(
    clean: Latent, noise: Latent, signal: Float[Array, ""], sigma: Float[Array, ""]
) -> Latent:
    """The latent signal·x0 + sigma·ε."""
    return signal * clean + sigma * noise


def arrive(clean: Latent, noise: Latent, step: Step) -> Latent:
    """The latent at the level that `step` leads to: √ᾱ'·x0 + √(1-ᾱ')·ε."""
    return renoise(clean, noise, jnp.sqrt(step.alpha_bar_next), jnp.sqrt(1 - step.alpha_bar_next))


def ddim_step(latent: Latent, noise: Latent, step: Step) -> Latent:
    """One step, down or up: the clean estimate at the latent's level, renoised to the next level."""
    return arrive(clean_estimate(latent, noise, step.alpha_bar), noise, step)


def invert(
    predict: NoisePredictor,
    latent: Latent,
    steps: Step,
    *,
    keep: Literal["last", "all"] | Sequence[int] = "last",
) -> Latent | Trajectory:
    """Takes a clean latent up through `steps`, as `Schedule.inverting` gives them.

    Args:
      predict: the noise predictor.
      latent: z0, level 0.
      steps: inverting steps, lowest noise first.
      keep: "last" returns the noisiest latent; "all" the latents of every level, [0] is z0; level
        numbers return those, and only those are held meanwhile.
    """
    if keep == "last":
        return _follow(predict, latent, steps, lambda clean, reached: None)[0]
    if keep == "all":
        _, reached = _follow(predict, latent, steps, lambda clean, reached: reached)
        return jnp.concatenate([latent[None], reached])
    levels = jnp.asarray(keep).reshape(-1, 1, 1, 1, 1)

    def advance(carried: tuple[Latent, Trajectory], inputs: Any) -> tuple[Any, None]:
        latent, kept = carried
        step, level = inputs
        reached = ddim_step(latent, predict(latent, step), step)
        return (reached, jnp.where(levels == level, reached, kept)), None

    numbered = steps, jnp.arange(1, steps.index.shape[0] + 1)
    kept = jnp.broadcast_to(latent, (len(keep), *latent.shape))
    return jax.lax.scan(advance, (latent, kept), numbered)[0][1]


def denoise(predict: NoisePredictor, latent: Latent, steps: Step) -> Latent:
    """Takes a noisy latent down through `steps`, as `Schedule.denoising` gives them."""
    return _follow(predict, latent, steps, lambda clean, reached: None)[0]


def denoise_with_clean(
    predict: NoisePredictor, latent: Latent, steps: Step, *, last: int
) -> tuple[Latent, Trajectory]:
    """`denoise`, which also returns the clean estimates of the `last` (at least 1) steps, in order.

    On a uniform inversion, with the uniform predictor, this is the auxiliary branch of an edit:
    started at level N it is replayed, started at level `last` it is anchored.
    """
    first = steps.index.shape[0] - last
    if first > 0:
        latent = denoise(predict, latent, jax.tree.map(lambda part: part[:first], steps))
    remaining = jax.tree.map(lambda part: part[first:], steps)
    return _follow(predict, latent, remaining, lambda clean, reached: clean)


def _follow(
    predict: NoisePredictor, latent: Latent, steps: Step, output: Callable[[Latent, Latent], Any]
) -> tuple[Latent, Any]:
    """Scans `steps`, stacking `output(clean estimate, latent reached)`."""

    def advance(latent: Latent, step: Step) -> tuple[Latent, Any]:
        noise = predict(latent, step)
        clean = clean_estimate(latent, noise, step.alpha_bar)
        reached = arrive(clean, noise, step)
        return reached, output(clean, reached)

    return jax.lax.scan(advance, latent, steps)
