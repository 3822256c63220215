"""How well a picture agrees with its prompt, in the eyes of the network that made it.

Noise is added to the result, and the network estimates it under the target's prompt and under the null prompt. Where
the prompt describes the picture, it helps. Such errors are compared by the "diffusion classifier" of Li et al. 2023
(arXiv 2303.16203), here with the same noise for all pictures and at few timesteps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.runtime.loops import scan
from uam_jax.types import Latent, Step

SHARES = (0.45, 0.85)
"""The timesteps, as shares of the trained ones: of pairs among 0.25, 0.45, 0.65 and 0.85, the one that told right edits
from others best on Scenes-Bench's tune third."""

EVALUATIONS = 2 * len(SHARES)
"""Single-sample evaluations for one picture."""

NoiseOf = Callable[[Latent, Step], tuple[Latent, Latent]]
"""The noise in a latent as the network estimates it, under the null prompt and under the target's."""


def agreement(noise_of: NoiseOf, latents: Latent, steps: Step) -> Float[Array, "b"]:
    """The logarithm of the error under the null prompt over that under the target's, mean over the steps.

    Args:
      noise_of: the network.
      latents: of the results, scaled.
      steps: at which noise is added, of `Schedule.at(SHARES)`.

    Returns:
      A number per picture: above 0 where the prompt helps.
    """

    def compare(_: None, step: Step) -> tuple[None, Float[Array, "b"]]:
        key = jax.random.fold_in(jax.random.key(0), step.time)
        noise = jax.random.normal(key, latents.shape[1:])
        found = noise_of(step.signal * latents + step.sigma * noise, step)
        errors = [jnp.mean((each - noise) ** 2, axis=(1, 2, 3)) for each in found]
        null, target = (jnp.log(jnp.maximum(error, 1e-12)) for error in errors)
        return None, null - target

    return scan(compare, None, steps)[1].mean(axis=0)
