"""The part of an edit that does not depend on its target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Array, Float

from uam_jax.engine.inversion import Inversion
from uam_jax.method.config import EditConfig
from uam_jax.method.plan import Plan
from uam_jax.types import Condition, Image, Latent


@dataclass(frozen=True)
class Prepared:
    """The part that all edits of some pictures share, whatever their targets.

    Attributes:
      config: the edits' settings.
      plan: their evaluations.
      z0: (b, h/f, w/f, c), the pictures' latents.
      start: the source's latent at which the edit starts.
      below: further latents of the source, of the levels below, for a sampler that starts from them too.
      anchors: the source's latents of every level, most noise first, if it is anchored on them.
      inverted: the inversion's data of every step, most noise first.
      sources: the source prompts, one for all pictures or one each.
      condition: the source's, a row per picture.
      auxiliary: the uniform reconstruction; None where nothing is blended.
      auxiliary_clean: (m, b, h/f, w/f, c), the auxiliary branch's clean estimates of the blended steps.
      masks: (b, h/f, w/f, 1), the user's.
      images: (b, h, w, 3), the originals, or if they were not given what the VAE makes of `z0`.
      rebuilt: (b, h, w, 3), the uniform reconstruction's pictures; of `z0` where nothing is blended.
      error_map: (b, h, w), how far `rebuilt` is from each pixel of `images` (`confidence.error_map`).
      inversions: those that were used.
      figures: of these inversions, (b,) each, by name (`Keys.figures`).
      evaluations: single-sample U-Net evaluations spent.
    """

    config: EditConfig
    plan: Plan
    z0: Latent
    start: Latent
    below: tuple[Latent, ...]
    anchors: Float[Array, "levels b h w c"] | None
    inverted: Mapping[str, Float[Array, "n b *rest"]]
    sources: Sequence[str]
    condition: Condition
    auxiliary: Latent | None
    auxiliary_clean: Float[Array, "m b h w c"] | None
    masks: Float[Array, "b h w 1"] | None
    images: Image
    rebuilt: Image
    error_map: Float[Array, "b height width"]
    inversions: Sequence[Inversion]
    figures: Mapping[str, Float[Array, "b"]]
    evaluations: int
