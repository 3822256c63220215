"""A control and an inversion of a user: with settings, state, a tap and data for every step."""

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from uam_jax.method.controls import Control, Moment
from uam_jax.method.inversions import InversionMethod
from uam_jax.method.sample import invert
from uam_jax.method.section import Between
from uam_jax.types import Rules, plain_attention


@jax.tree_util.register_static
@dataclass(frozen=True)
class Watched:
    def __call__(self, site: Any, x: Any, context: Any) -> Any:
        out = plain_attention(site, x, context)
        return out, {"size": jnp.abs(out).mean(axis=(1, 2))}


@dataclass(frozen=True)
class MyControl(Control):
    """Draws the target towards the source, the less the more its cross-attention has put out so far."""

    strength: Annotated[float, Between(0, 1), "share of the source"] = 0.5

    def windows(self, steps: int) -> dict[str, range]:
        return {"draw": range(steps)}

    def rules(self, rows: Any, batch: int, data: Any, moment: Moment) -> Rules:
        return Rules(cross=Watched()) if moment.active else Rules()

    def start(self, latents: Any) -> Any:
        return jnp.zeros_like(latents["target"][:, 0, 0, 0])

    def after(self, taps: Any, latents: Any, moment: Moment) -> Any:
        state = moment.state
        if "size" not in taps:
            return state, latents
        state = state + taps["size"][-len(state) :]
        share = (self.strength / (1 + 0.1 * state))[:, None, None, None]
        return state, {
            **latents,
            "target": (1 - share) * latents["target"] + share * latents["source"],
        }


@dataclass(frozen=True)
class MyInversion(InversionMethod):
    """Keeps the whole way up, and leads the source back along it."""

    def run(self, predict: Any, z0: Any, steps: Any, *, sampler: Any, keep: Any) -> Any:
        way, _ = invert(predict, z0, steps, sampler=sampler, keep="all")
        return {"latents": way[jnp.asarray(keep)], "way": way[:-1]}

    def figures(self, data: Any) -> Any:
        return {"length": jnp.abs(jnp.diff(data["way"], axis=0)).sum(axis=(0, 2, 3, 4))}

    def per_step(self, data: Any) -> Any:
        return {"below": data["way"][::-1]}

    def after(self, latents: Any, data: Any, step: Any) -> Any:
        return {**latents, "source": data["below"]} if "source" in latents else latents
