"""Null-text inversion: for every step a null condition is learned with which the guided source returns.

Source: Mokady et al., CVPR 2023 (arXiv 2211.09794), §3.3, with the learning rate and the stopping rule of its code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from uam_jax.method.inversions.ddim import DDIMInversion
from uam_jax.method.inversions.method import InversionMethod, SourceBranch
from uam_jax.method.inversions.way_up import size, whole_way
from uam_jax.method.samplers import Sampler
from uam_jax.method.schedule import reverse, split
from uam_jax.runtime.loops import scan
from uam_jax.types import Condition, Latent, Predictor, Step

UPDATES = 10
"""The most updates of a step."""


class _Learned(NamedTuple):
    """State of the inner loop.

    Attributes:
      states: the null condition's.
      moments: of Adam.
      active: whether an example is still learning.
    """

    states: Float[Array, "b s d"]
    moments: Any
    active: Bool[Array, "b"]


@dataclass(frozen=True)
class NullTextInversion(InversionMethod):
    """DDIM's way up, then Adam on the null condition's states, from the noisiest step down.

    Step i has the learning rate 0.01·(1 - i/100), and an example stops after the update whose loss was below
    1e-5 + 2e-5·i before it. A step begins with what the one before has learned. An update takes an evaluation and its
    gradient, which costs about two more, and counts as one.
    """

    samplers: ClassVar[tuple[str, ...]] = ("ddim",)
    needs_source: ClassVar[bool] = True
    replaces_null: ClassVar[bool] = True

    def source_cost(self, rows: int) -> int:
        """At most: the source's prompt once, each update, and the step; nothing without guidance."""
        return UPDATES + 2 if rows == 2 else 0

    def of_branch(self, branch: str) -> InversionMethod:
        return DDIMInversion() if branch == "alone" else self

    def run(
        self,
        predict: Predictor,
        z0: Latent,
        steps: Step,
        *,
        sampler: Sampler,
        keep: Sequence[int],
        source: SourceBranch,
    ) -> dict[str, Array]:
        """DDIM's steps upwards, and the way down; "latents", "null_states" (steps, b, s, d) and "error" (steps, b).

        The error is the root mean square of the distance between the latent that the guided source reaches by a step
        and that of the way up, over that of the latter.
        """
        way, _ = whole_way(predict, z0, steps, sampler=sampler)
        kept = {"latents": way[jnp.asarray(keep)]}
        if source.null is None:
            return kept
        null, adam = source.null, optax.scale_by_adam()

        def reached(
            states: Float[Array, "b s d"], latent: Latent, prompted: Latent, step: Step
        ) -> Latent:
            noise = source.under(replace(null, states=states))(latent, step).noise
            noise = noise + source.guidance * (prompted - noise)
            return sampler.advance(latent, split(noise, latent, step, "epsilon"), step)

        def descend(carried: Any, given: tuple[Step, Latent]) -> tuple[Any, Any]:
            (latent, states), (step, below) = carried, given
            prompted = source.under(source.condition)(latent, step).noise
            rate, enough = 1e-2 * (1 - step.index / 100), 1e-5 + 2e-5 * step.index

            def losses(states: Float[Array, "b s d"]) -> tuple[Array, Float[Array, "b"]]:
                missed = reached(states, latent, prompted, step) - below
                each = jnp.mean(missed**2, axis=(1, 2, 3))
                return each.sum(), each  # an example's gradient is that of its own loss

            def update(learned: _Learned) -> _Learned:
                (_, each), slopes = jax.value_and_grad(losses, has_aux=True)(learned.states)
                found: Any = adam.update(slopes, learned.moments)
                change, moments = found
                moved = learned.states - rate * change
                states = jnp.where(learned.active[:, None, None], moved, learned.states)
                return _Learned(states, moments, learned.active & (each >= enough))

            def turn(learned: _Learned, _: Array) -> tuple[_Learned, None]:
                return jax.lax.cond(learned.active.any(), update, lambda same: same, learned), None

            begun = _Learned(
                states, _varying(adam.init(states), z0), jnp.ones_like(z0[:, 0, 0, 0], bool)
            )
            learned: Any = scan(turn, begun, jnp.arange(UPDATES))[0]
            latent = reached(learned.states, latent, prompted, step)
            error = size(latent - below) / jnp.maximum(size(below), 1e-6)
            return (latent, learned.states), (learned.states, error)

        start = way[-1], _varying(null.states.astype(jnp.float32), z0)
        _, (states, error) = scan(descend, start, (reverse(steps), way[-2::-1]))
        return {**kept, "null_states": states, "error": error}

    def per_step(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        return {name: data[name] for name in ("null_states",) if name in data}

    def figures(self, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """`step_error`: the largest of all steps, see `run`; nothing where the edit is not guided."""
        return {"step_error": data["error"].max(axis=0)} if "error" in data else {}

    def conditions(
        self, conditions: Mapping[str, Condition], data: Mapping[str, Array], step: Step
    ) -> Mapping[str, Condition]:
        """The step's null condition for both unguided halves."""
        if "null_states" not in data:
            return conditions
        null = replace(conditions["null"], states=data["null_states"])
        return {**conditions, "null": null, "negative": null}


def _varying(tree: Any, like: Array) -> Any:
    """The same arrays, which under shard_map vary over devices as `like` does."""
    return jax.tree.map(lambda x: x + jnp.zeros_like(like, shape=x.shape, dtype=x.dtype), tree)
