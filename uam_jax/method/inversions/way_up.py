"""The whole way up of an inversion that takes the sampler's own steps, and an estimate of their error."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.method.sample import Trajectory
from uam_jax.method.samplers import Sampler, follow
from uam_jax.types import Latent, Predictor, Step


def whole_way(
    predict: Predictor, z0: Latent, steps: Step, *, sampler: Sampler
) -> tuple[Trajectory, Float[Array, "steps b"]]:
    """The latents of every level, [0] is z0, and an estimate of every step's residual.

    The residual of a step is the distance between the latent reached and the latent that DDIM's step would reach with
    the noise predicted there (see `fixed_point.implicit`), as root mean square over that of the latent below. That
    noise is estimated by the next step's, so it takes no evaluation. The last step has none, and 0 stands for it.
    """
    reached: Any
    _, (reached, noise) = follow(
        predict,
        sampler.start(z0),
        steps,
        sampler=sampler,
        record=lambda prediction, latent: (latent, prediction.noise),
    )
    way = jnp.concatenate([z0[None], reached])
    factor = (steps.sigma_next - steps.sigma * steps.signal_next / steps.signal)[:-1, None]
    error = jnp.abs(factor) * _size(noise[1:] - noise[:-1]) / jnp.maximum(_size(way[:-2]), 1e-6)
    return way, jnp.concatenate([error, jnp.zeros_like(_size(noise[-1:]))])


def _size(latents: Float[Array, "n b h w c"]) -> Float[Array, "n b"]:
    return jnp.sqrt(jnp.mean(latents**2, axis=(2, 3, 4)))
