"""The whole way up by the sampler's own steps, and estimates of its error that take no further evaluation."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.method.sample import Trajectory
from uam_jax.method.samplers import Sampler, follow
from uam_jax.types import Latent, Predictor, Step

PerStep = Float[Array, "steps b"]
"""A number for every step and example."""


def whole_way(
    predict: Predictor, z0: Latent, steps: Step, *, sampler: Sampler
) -> tuple[Trajectory, Float[Array, "steps b h w c"]]:
    """The latents of every level, [0] is z0, and the noise that each step took."""
    reached: Any
    _, (reached, noise) = follow(
        predict,
        sampler.start(z0),
        steps,
        sampler=sampler,
        record=lambda prediction, latent: (latent, prediction.noise),
    )
    return jnp.concatenate([z0[None], reached]), noise


def estimated_residual(
    way: Trajectory, noise: Float[Array, "steps b h w c"], steps: Step
) -> PerStep:
    """The distance of each step's latent from where DDIM's step with the noise predicted there would lead.

    It is the residual of `fixed_point.implicit`, as root mean square over that of the latent below. The noise there is
    estimated by the next step's. The last step has none, and 0 stands for it.
    """
    per_step = jax.tree.map(lambda part: part[:-1, None], steps)
    factor = per_step.sigma_next - per_step.sigma * per_step.signal_next / per_step.signal
    error = jnp.abs(factor) * size(noise[1:] - noise[:-1]) / jnp.maximum(size(way[:-2]), 1e-6)
    return jnp.concatenate([error, jnp.zeros_like(size(noise[-1:]))])


def size(latents: Float[Array, "*n h w c"]) -> Float[Array, "*n"]:
    """Root mean square of every latent."""
    return jnp.sqrt(jnp.mean(latents**2, axis=(-3, -2, -1)))
