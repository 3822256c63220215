"""Negative-prompt inversion: DDIM's, and an edit whose null prompt is the source's prompt.

Null-text inversion learns a null condition with which the guided source returns. Where the inversion is good this is
nearly the source's own condition: between it and itself there is no guidance, so the source goes down at scale 1.

Source: Miyake et al. 2023 (arXiv 2305.16807); the interpolation from Han et al. 2023 (arXiv 2306.05414).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.method.inversions.ddim import DDIMInversion
from uam_jax.method.inversions.method import InversionMethod
from uam_jax.method.plan import Row
from uam_jax.method.section import Share
from uam_jax.types import Condition, Step


@dataclass(frozen=True)
class NegativePromptInversion(DDIMInversion):
    """The unguided halves of both branches are under the source's prompt."""

    replaces_null: ClassVar[bool] = True
    interpolation: Annotated[
        Share,
        "place of the unguided halves' condition, on the arc from the source's prompt (0) to the null prompt (1)",
    ] = 0.0

    def of_branch(self, branch: str) -> InversionMethod:
        return DDIMInversion() if branch == "alone" else self

    def branches(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        """Without interpolation the source's two halves are the same, and one is evaluated."""
        twice = Row("source", "null", "unguided")
        return tuple(row for row in rows if self.interpolation or row != twice)

    def conditions(
        self, conditions: Mapping[str, Condition], data: Mapping[str, Array], step: Step
    ) -> Mapping[str, Condition]:
        """The condition between the source's and the null prompt's, for both unguided halves."""
        source, null = conditions["source"], conditions["null"]
        if self.interpolation:
            share = self.interpolation
            source = jax.tree.map(lambda a, b: _on_the_arc(share, a, b), source, null)
        return {**conditions, "null": source, "negative": source}


def _on_the_arc(
    share: float, start: Float[Array, "b *rest"], end: Float[Array, "#b *rest"]
) -> Float[Array, "b *rest"]:
    """Spherical interpolation of each example's array as one vector; linear where the two are parallel."""
    end = jnp.broadcast_to(end, start.shape)
    axes = tuple(range(1, start.ndim))
    norms = jnp.sqrt((start**2).sum(axes, keepdims=True) * (end**2).sum(axes, keepdims=True))
    cosine = (start * end).sum(axes, keepdims=True) / jnp.maximum(norms, 1e-12)
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    sine = jnp.sin(angle)
    curved = sine > 1e-4
    sine = jnp.where(curved, sine, 1.0)
    from_start = jnp.where(curved, jnp.sin((1 - share) * angle) / sine, 1 - share)
    from_end = jnp.where(curved, jnp.sin(share * angle) / sine, share)
    return from_start * start + from_end * end
