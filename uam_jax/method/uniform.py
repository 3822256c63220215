"""Uniform attention maps, and maps between the text's and uniform ones, as rules of cross-attention.

With the map 1/S in place of softmax(QKᵀ/√d), S tokens, every pixel of a layer gets the mean over the tokens of V.
The value projection is linear, so this is the value of the mean token: one row serves all pixels, without queries,
keys, logits or softmax.

Source: §3.3.1 of arXiv 2411.19652.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.types import AttentionRule, AttentionSite, Taps, plain_attention


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UniformMaps:
    """Every pixel attends to all tokens alike.

    Attributes:
      context: states of another text than the layer's own, a row for each example or one for all.
    """

    context: Float[Array, "#b s e"] | None = None

    def __call__(
        self, site: AttentionSite, x: Float[Array, "b n c"], context: Float[Array, "#b s e"]
    ) -> Float[Array, "#b 1 c"]:
        states = context if self.context is None else self.context
        # In float32 up to here: what one row is rounded by, every pixel is.
        mean = states.astype(jnp.float32).mean(axis=1, keepdims=True)
        return site.project(site.value(mean)).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixedMaps:
    """Maps between the text's (0) and uniform ones (1): `(1 - u) softmax(QKᵀ/√d) + u / S`.

    The output projection is affine, so mixing its outputs is mixing the maps.

    Attributes:
      uniformity: u, in [0, 1]: one for all; or one for every transformer block, example and pixel of the
        latent (any of the four axes may be 1), averaged over what a pixel of a coarser level covers.
      context: of the uniform maps, see `UniformMaps`.
      inner: the rule in place of the text's maps; its taps are kept.
    """

    uniformity: float | Float[Array, ""] | Float[Array, "#blocks #b h w"]
    context: Float[Array, "#b s e"] | None = None
    inner: AttentionRule | None = None

    def __call__(
        self, site: AttentionSite, x: Float[Array, "b n c"], context: Float[Array, "#b s e"]
    ) -> Float[Array, "b n c"] | tuple[Float[Array, "b n c"], Taps]:
        text: Any = (self.inner or plain_attention)(site, x, context)
        text, taps = text if isinstance(text, tuple) else (text, None)
        uniform = UniformMaps(self.context)(site, x, context)
        share: Any = self.uniformity
        if jnp.ndim(share):
            own = share[min(site.number, share.shape[0] - 1)]
            share = at_level(own, site.level).astype(text.dtype)
        mixed = (1 - share) * text + share * uniform
        return mixed if taps is None else (mixed, taps)


def at_level(share: Float[Array, "#b h w"], level: int) -> Float[Array, "#b #n 1"]:
    """A latent's map at a level, row by row."""
    if share.shape[1:] != (1, 1):
        # Every level halves both sides; an odd one is filled up with its border.
        for _ in range(level):
            odd = [(0, 0), (0, share.shape[1] % 2), (0, share.shape[2] % 2)]
            share = jnp.pad(share, odd, mode="edge")
            rows, columns = share.shape[1] // 2, share.shape[2] // 2
            share = share.reshape(share.shape[0], rows, 2, columns, 2).mean(axis=(2, 4))
    return share.reshape(share.shape[0], -1, 1)
