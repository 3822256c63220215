"""Shape aliases and the protocols that the flow's parts meet at: predictors, attention rules, text conditions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

Params = dict[str, Any]
"""Nested dict of arrays under flax names (`down_blocks_0`, `to_q`, `kernel`)."""

Latent = Float[Array, "b h w c"]
Image = Float[Array, "b height width 3"]
ImageLike = Shaped[Array | np.ndarray, "..."]
"""Pictures as a caller gives them, (b, height, width, 3) in [-1, 1]; `requests.checked_images` holds them to it."""
LatentLike = Shaped[Array | np.ndarray, "..."]
"""Scaled latents as a caller gives them, (b, h, w, c); see `requests.checked_latents`."""
MaskLike = Shaped[Array | np.ndarray, "..."]
"""Masks as a caller gives them, (b, height, width) in [0, 1] or bool; see `requests.latent_masks`."""
Scalar = float | Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioning:
    """What a text tells the network.

    Attributes:
      states: (b, s, d) hidden states of the text encoder, one row per token.
      pooled: (b, p) pooled text vector, for models that add it to the time embedding; else None.
      extra: further named arrays with a leading batch axis (SDXL's size and crop numbers, say).
    """

    states: Float[Array, "b s d"]
    pooled: Float[Array, "b p"] | None = None
    extra: Mapping[str, Array] = field(default_factory=dict)


class Regions(NamedTuple):
    """Cross-attention maps that are uniform in one place and the text's in another.

    Attributes:
      uniformity: u in [0, 1] of every transformer block, example and pixel of the latent; one block's
        may serve all.
      null: the null prompt's condition (one row), whose uniform maps they are mixed with.
    """

    uniformity: Float[Array, "#blocks b h w"]
    null: Conditioning


class Step(NamedTuple):
    """One step between two noise levels, down (denoising) or up (inverting); stacked, a scan's input.

    Attributes:
      index: the noise interval, counted from the start of denoising (0 = most noise).
      timestep: the train timestep that the network is told.
      alpha_bar: cumulative alpha at the latent's own level.
      alpha_bar_next: cumulative alpha at the level that the step leads to.
    """

    index: Int[Array, "*n"]
    timestep: Int[Array, "*n"]
    alpha_bar: Float[Array, "*n"]
    alpha_bar_next: Float[Array, "*n"]


class NoisePredictor(Protocol):
    """`epsilon(z, t, c)` with weights, context and guidance bound."""

    def __call__(self, latent: Latent, step: Step) -> Latent: ...


class AttentionSite(Protocol):
    """One attention layer as an attention rule sees it; what a rule does not call is not computed."""

    def query(self, x: Float[Array, "b n c"]) -> Float[Array, "b n heads d"]: ...

    def key(self, context: Float[Array, "b s e"]) -> Float[Array, "b s heads d"]: ...

    def value(self, context: Float[Array, "b s e"]) -> Float[Array, "b s heads d"]: ...

    def attend(
        self,
        q: Float[Array, "b n heads d"],
        k: Float[Array, "b s heads d"],
        v: Float[Array, "b s heads d"],
    ) -> Float[Array, "b n heads d"]: ...

    def project(self, out: Float[Array, "b n heads d"]) -> Float[Array, "b n c"]: ...


class AttentionRule(Protocol):
    """How one layer turns its input into its output; `block` counts transformer blocks in execution order."""

    def __call__(
        self, site: AttentionSite, x: Float[Array, "b n c"], block: int
    ) -> Float[Array, "#b #n c"]: ...
