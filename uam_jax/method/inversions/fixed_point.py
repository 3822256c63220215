"""Fixed-point inversion: DDIM's step solved for the latent that it leads to.

Denoising from z' uses the noise at (z', t). Plain inversion takes the noise at (z, t) for it, the latent below.
The exact inverse is the fixed point of z' = f(z'), where f inverts the step with the noise at z'.

Source: Pan et al., AIDI, ICCV 2023 (arXiv 2309.04907), §3; Anderson 1965 for the acceleration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.method.inversions.method import InversionMethod
from uam_jax.method.sample import invert
from uam_jax.method.samplers import SAMPLERS, Sampler
from uam_jax.method.schedule import split, turned
from uam_jax.method.section import Between
from uam_jax.runtime.loops import scan
from uam_jax.types import Latent, Prediction, Predictor, Step

WINDOW = 3
"""Iterates that Anderson's mixing combines."""


@dataclass(frozen=True)
class FixedPointInversion(InversionMethod):
    """Each step takes the noise that is predicted at the latent that it leads to, found by iteration."""

    samplers: ClassVar[tuple[str, ...]] = ("ddim",)
    iterations: Annotated[
        int,
        Between(0, 20),
        "number of corrections of a step, one evaluation each; with 0 it is DDIM",
    ] = 1
    anderson: Annotated[bool, "Anderson acceleration over the last three iterates"] = False

    @property
    def cost(self) -> int:
        return 1 + self.iterations

    def run(
        self,
        predict: Predictor,
        z0: Latent,
        steps: Step,
        *,
        sampler: Sampler,
        keep: Sequence[int],
    ) -> dict[str, Array]:
        """The implicit steps upwards; "latents", and with iterations "residual" (steps, b), see `implicit`."""
        solve = implicit(predict, self.iterations, anderson=self.anderson)
        latents, taps = invert(solve, z0, steps, sampler=sampler, keep=keep)
        return {"latents": latents, **taps}

    def figures(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """`residual`: the largest of all steps, see `implicit`; nothing without iterations, where none is known."""
        return {"residual": data["residual"].max(axis=0)} if self.iterations else {}


class _Search(NamedTuple):
    """State of the iteration: iterate, best noise and its residual, and the last iterates' images and errors."""

    latent: Latent
    noise: Latent
    residual: Float[Array, "b"]
    images: Float[Array, "window b h w c"]
    errors: Float[Array, "window b h w c"]


def implicit(predict: Predictor, iterations: int, *, anderson: bool = False) -> Predictor:
    """The predictor of an implicit step up, for a sampler whose step is DDIM's.

    The noise of every example is that at the iterate z' whose residual |f(z') - z'| is least, so the step leads to
    f(z'): the map is no contraction everywhere, and an iteration may lead away.

    Args:
      predict: the predictor at given latents; each step evaluates it `1 + iterations` times.
      iterations: how often the step is corrected; 0 returns `predict` itself, which is plain inversion.
      anderson: combine the last three iterates so that their residuals cancel, instead of taking the last one.

    Returns:
      A predictor with the tap "residual": the root mean square of that least residual over that of the latent. The
      first iterate is the latent below, whose residual is the length of the plain step.
    """
    if iterations == 0:
        return predict

    def solve(latent: Latent, step: Step) -> Prediction:
        from_above = turned(step)

        def iterate(search: _Search, number: Array) -> tuple[_Search, None]:
            # The first evaluation is the plain one, at the latent and level below.
            own = jax.tree.map(
                lambda low, high: jnp.where(number == 0, low, high), step, from_above
            )
            noise = predict(search.latent, own).noise
            image = SAMPLERS["ddim"].advance(latent, split(noise, latent, step, "epsilon"), step)
            error = image - search.latent
            residual = jnp.sqrt(jnp.mean(error**2, axis=(1, 2, 3)))
            # The first is taken as it is: where the network gives no number, neither does the inversion.
            better = (number == 0) | (residual < search.residual)
            images = jnp.concatenate([search.images[1:], image[None]])
            errors = jnp.concatenate([search.errors[1:], error[None]])
            return (
                _Search(
                    latent=_mixed(images, errors, number) if anderson else image,
                    noise=jnp.where(better[:, None, None, None], noise, search.noise),
                    residual=jnp.where(better, residual, search.residual),
                    images=images,
                    errors=errors,
                ),
                None,
            )

        # Made from the latent: under shard_map the state must vary over devices as it does.
        none = jnp.zeros_like(latent, shape=(WINDOW, *latent.shape))
        unknown = jnp.full_like(latent[:, 0, 0, 0], jnp.inf)
        start = _Search(latent, jnp.zeros_like(latent), unknown, none, none)
        found: Any = scan(iterate, start, jnp.arange(iterations + 1))[0]
        size = jnp.sqrt(jnp.mean(latent**2, axis=(1, 2, 3)))
        taps = {"residual": found.residual / jnp.maximum(size, 1e-6)}
        return split(found.noise, latent, step, "epsilon")._replace(taps=taps)

    return solve


def _mixed(
    images: Float[Array, "window b h w c"], errors: Float[Array, "window b h w c"], number: Array
) -> Latent:
    """The combination of the last images, with weights of sum 1, whose combined residual is least; per example."""
    flat = errors.reshape(*errors.shape[:2], -1)
    gram = jnp.einsum("ibn,jbn->bij", flat, flat)
    # The first image belongs to the level below, and what is not there yet has no part either.
    missing = jnp.arange(WINDOW) < WINDOW - number
    missing = missing.at[-1].set(False)
    gram = jnp.where(missing[:, None] | missing[None, :], 0.0, gram)
    scale = jnp.maximum(jnp.trace(gram, axis1=1, axis2=2), jnp.finfo(jnp.float32).tiny)
    system = gram / scale[:, None, None] + jnp.diag(jnp.where(missing, 1.0, 1e-6))
    weights = jnp.linalg.solve(system, jnp.where(missing, 0.0, 1.0)[None, :, None])[..., 0]
    weights = weights / weights.sum(axis=1, keepdims=True)
    return jnp.einsum("bi,ibhwc->bhwc", weights, images)
