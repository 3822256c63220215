"""How well a prompt describes a picture, and how well the network knows such pictures.

Noise is added to the picture, and the network estimates it under the prompt and under the null prompt. Where the prompt
describes the picture, it helps. Such errors are compared by the "diffusion classifier" of Li et al. 2023 (arXiv
2303.16203), here with the same noise for all pictures and at few timesteps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.runtime.loops import scan
from uam_jax.types import Latent, Step

CAPTION, RESULT = (0.45, 0.65), (0.45, 0.85)
"""Timesteps, as shares of the trained ones, at which a picture is compared with its caption, and a result with its
target prompt: of pairs among 0.25, 0.45, 0.65 and 0.85, those that parted right from wrong best on Scenes-Bench's tune
third. The sign alone does so for captions, which may err in a detail; an edit that fails is wrong as a whole."""

EVALUATIONS = 2 * 2
"""Single-sample evaluations for one picture and prompt."""

NoiseOf = Callable[[Latent, Step], tuple[Latent, Latent]]
"""The noise in a latent as the network estimates it, under the null prompt and under the text."""


def agreement(noise_of: NoiseOf, latents: Latent, steps: Step) -> dict[str, Float[Array, "b"]]:
    """The errors of the network's estimates under both prompts, as logarithms, mean over the steps.

    Args:
      noise_of: the network.
      latents: of the pictures, scaled.
      steps: at which noise is added, of `Schedule.at`.

    Returns:
      `agreement`, the error under the null prompt over that under the text, is above 0 where the prompt helps. `loss`
      is the error under the text: the higher, the less the picture is like those that the network was trained on.
    """

    def compare(_: None, step: Step) -> tuple[None, dict[str, Float[Array, "b"]]]:
        key = jax.random.fold_in(jax.random.key(0), step.time)
        noise = jax.random.normal(key, latents.shape[1:])
        found = noise_of(step.signal * latents + step.sigma * noise, step)
        errors = [jnp.mean((each - noise) ** 2, axis=(1, 2, 3)) for each in found]
        null, text = (jnp.log(jnp.maximum(error, 1e-12)) for error in errors)
        return None, {"agreement": null - text, "loss": text}

    return jax.tree.map(lambda each: each.mean(axis=0), scan(compare, None, steps)[1])
