"""Fixed-point inversion: DDIM's step solved for the latent that it leads to.

Denoising from z' uses the noise at (z', t). Plain inversion takes the noise at (z, t) for it, the latent below.
The exact inverse is the fixed point of z' = f(z'), where f inverts the step with the noise at z'.

Three ways lead there. "iteration" repeats f and keeps the iterate with the least residual |f(z') - z'|, since f is no
contraction everywhere. "average" repeats f and takes the mean noise of the last iterates. "gradient" descends the
squared residual, through the network.

Source: Pan et al., AIDI, ICCV 2023 (arXiv 2309.04907), §3, and Anderson 1965 for the acceleration; the rule of the
least residual is ours. Garibi et al., ReNoise, ECCV 2024 (arXiv 2403.14602), and Li et al., SPDInv, ECCV 2024 (arXiv
2403.11105), with the numbers of their code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from uam_jax.errors import InputError
from uam_jax.method.inversions.ddim import DDIMInversion
from uam_jax.method.inversions.way_up import size
from uam_jax.method.sample import invert
from uam_jax.method.samplers import SAMPLERS, Sampler
from uam_jax.method.schedule import split, turned
from uam_jax.method.section import Between
from uam_jax.runtime.loops import scan
from uam_jax.types import Latent, Prediction, Predictor, Step

WINDOW = 3
"""Iterates that Anderson's mixing combines."""
EARLY = 250
"""The timestep below which "average" takes the first `AVERAGED` predictions, in place of the last two."""
AVERAGED = 5
RATE, DECAY, ENOUGH = 1e-3, 1e-2, 5e-6
"""AdamW's learning rate and weight decay, and the mean squared residual below which "gradient" stops."""


@dataclass(frozen=True)
class FixedPointInversion(DDIMInversion):
    """Each step takes the noise that is predicted at the latent that it leads to.

    A step of the solver "gradient" takes an evaluation and its gradient, which costs about two more, and counts as one.
    """

    samplers: ClassVar[tuple[str, ...]] = ("ddim",)
    iterations: Annotated[
        int,
        Between(0, 50),
        "number of corrections of a step, one evaluation each, and for gradient the most; with 0 it is DDIM",
    ] = 1
    solver: Annotated[
        Literal["iteration", "average", "gradient"],
        "iteration to the least residual, ReNoise's average (published with 9 iterations) or SPDInv's gradient "
        "descent (with 25)",
    ] = "iteration"
    anderson: Annotated[bool, "Anderson acceleration over the last three iterates"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anderson and self.solver != "iteration":
            raise InputError(
                f"inversion.anderson is true, and inversion.solver is {self.solver}: set anderson to false, or "
                "solver=iteration"
            )

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
        """The implicit steps upwards; "latents", and "residual" (steps, b), see `implicit`; without any, DDIM's."""
        if not self.iterations:
            return super().run(predict, z0, steps, sampler=sampler, keep=keep)
        if self.solver == "average":
            solve = averaged(predict, self.iterations)
        elif self.solver == "gradient":
            solve = descended(predict, self.iterations)
        else:
            solve = implicit(predict, self.iterations, anderson=self.anderson)
        latents, taps = invert(solve, z0, steps, sampler=sampler, keep=keep)
        return {"latents": latents, **taps}

    def figures(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """`residual`: the largest of all steps, see `implicit`; without iterations DDIM's."""
        if not self.iterations:
            return super().figures(data)
        return {"residual": data["residual"].max(axis=0)}


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
      iterations: how often the step is corrected, at least once.
      anderson: combine the last three iterates so that their residuals cancel, instead of taking the last one.

    Returns:
      A predictor with the tap "residual": the root mean square of that least residual over that of the latent. The
      first iterate is the latent below, whose residual is the length of the plain step.
    """

    def solve(latent: Latent, step: Step) -> Prediction:
        from_above = turned(step)

        def iterate(search: _Search, number: Array) -> tuple[_Search, None]:
            # The first evaluation is the plain one, at the latent and level below.
            own = jax.tree.map(
                lambda low, high: jnp.where(number == 0, low, high), step, from_above
            )
            noise = predict(search.latent, own).noise
            image = _image(noise, latent, step)
            error = image - search.latent
            residual = size(error)
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
        return _solved(found.noise, found.residual, latent, step)

    return solve


def averaged(predict: Predictor, iterations: int) -> Predictor:
    """The predictor of ReNoise's step up: the mean noise of several iterates of f, whatever their residuals.

    Args:
      predict: the predictor at given latents; each step evaluates it `1 + iterations` times.
      iterations: how often f is repeated, at least once.

    Returns:
      A predictor with the tap "residual", see `implicit`: of the last iterate.
    """
    late = jnp.arange(iterations + 1) >= iterations - 1
    early = jnp.arange(iterations + 1) < AVERAGED

    def solve(latent: Latent, step: Step) -> Prediction:
        from_above = turned(step)
        taken = jnp.where(step.time < EARLY, early, late)
        share = taken / taken.sum()

        def iterate(carried: Any, given: tuple[Array, Array]) -> tuple[Any, Float[Array, "b"]]:
            (reached, mean), (number, share) = carried, given
            own = jax.tree.map(
                lambda low, high: jnp.where(number == 0, low, high), step, from_above
            )
            noise = predict(reached, own).noise
            image = _image(noise, latent, step)
            return (image, mean + share * noise), size(image - reached)

        start = latent, jnp.zeros_like(latent)
        numbered = jnp.arange(iterations + 1), share
        (_, mean), residuals = scan(iterate, start, numbered)
        return _solved(mean, residuals[-1], latent, step)

    return solve


class _Descent(NamedTuple):
    """State of the descent: iterate, AdamW's moments, the last residual, and whether an example still moves."""

    latent: Latent
    moments: Any
    residual: Float[Array, "b"]
    active: Bool[Array, "b"]


def descended(predict: Predictor, updates: int) -> Predictor:
    """The predictor of SPDInv's step up: AdamW on the squared residual, from DDIM's step.

    An example stops after the update before which its mean squared residual was small enough.

    Args:
      predict: the predictor at given latents; each step evaluates it at most `1 + updates` times.
      updates: the most, at least 1.

    Returns:
      A predictor whose step leads to the last iterate, with the tap "residual", see `implicit`: of the iterate before
      the last update.
    """
    optimiser = optax.adamw(RATE, weight_decay=DECAY)

    def solve(latent: Latent, step: Step) -> Prediction:
        from_above = turned(step)

        def losses(reached: Latent) -> tuple[Array, Float[Array, "b"]]:
            image = _image(predict(reached, from_above).noise, latent, step)
            each = jnp.mean((image - reached) ** 2, axis=(1, 2, 3))
            return each.sum(), each  # an example's gradient is that of its own loss

        def update(search: _Descent) -> _Descent:
            (_, each), slope = jax.value_and_grad(losses, has_aux=True)(search.latent)
            found: Any = optimiser.update(slope, search.moments, search.latent)
            change, moments = found
            active = search.active
            return _Descent(
                search.latent + jnp.where(active[:, None, None, None], change, 0.0),
                moments,
                jnp.where(active, jnp.sqrt(each), search.residual),
                active & (each >= ENOUGH),
            )

        def turn(search: _Descent, _: Array) -> tuple[_Descent, None]:
            return jax.lax.cond(search.active.any(), update, lambda same: same, search), None

        plain = predict(latent, step).noise
        start = _image(plain, latent, step)
        moments = jax.tree.map(
            lambda x: x + jnp.zeros_like(latent, shape=x.shape, dtype=x.dtype),
            optimiser.init(start),
        )
        every = jnp.ones_like(latent[:, 0, 0, 0], bool)
        begun = _Descent(start, moments, jnp.zeros_like(latent[:, 0, 0, 0]), every)
        found: Any = scan(turn, begun, jnp.arange(updates))[0]
        # The noise with which DDIM's step leads to the latent found.
        ratio = step.signal_next / step.signal
        factor = step.sigma_next - step.sigma * ratio
        noise = (found.latent - ratio * latent) / jnp.where(factor == 0, 1.0, factor)
        return _solved(jnp.where(factor == 0, plain, noise), found.residual, latent, step)

    return solve


def _image(noise: Latent, latent: Latent, step: Step) -> Latent:
    """f: the latent that DDIM's step from `latent` leads to with this noise."""
    return SAMPLERS["ddim"].advance(latent, split(noise, latent, step, "epsilon"), step)


def _solved(noise: Latent, residual: Float[Array, "b"], latent: Latent, step: Step) -> Prediction:
    """The prediction of an implicit step, with its residual over the size of the latent below."""
    taps = {"residual": residual / jnp.maximum(size(latent), 1e-6)}
    return split(noise, latent, step, "epsilon")._replace(taps=taps)


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
