"""LocalBlend: the target may differ from the source only where the attention to some words lies.

Source: Hertz et al., Prompt-to-Prompt (arXiv 2208.01626), "Local Editing" in §3, and the authors' code for what the
paper leaves open.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from uam_jax.method.controls.cross_maps import WordMaps


def region(
    maps: WordMaps, size: tuple[int, int], *, threshold: float, subtract_threshold: float
) -> Bool[Array, "b h w 1"]:
    """Where the target may differ: where either branch attends to a word to blend, and neither to one to subtract.

    A map is compared with its threshold times its own maximum, that of the words to blend after a maximum over 3 x 3
    pixels.

    Args:
      maps: of the words to blend and of those to subtract, summed over steps and layers; only their ratios matter.
      size: height and width of the latent.
      threshold: of the words to blend.
      subtract_threshold: of the words to subtract.
    """
    blend, subtract = maps[:, 0], maps[:, 1]
    pooled = lax.reduce_window(blend, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 1, 1), "SAME")
    inside = _above(pooled, threshold) & ~_above(subtract, subtract_threshold)
    factor = -(-size[0] // inside.shape[1])
    resized = jnp.repeat(jnp.repeat(inside, factor, axis=1), factor, axis=2)
    return resized[:, : size[0], : size[1], None]


def _above(
    maps: Float[Array, "b branches rows columns"], threshold: float
) -> Bool[Array, "b rows columns"]:
    """Where either branch's map is above the threshold; nowhere for a map of nothing."""
    most = maps.max(axis=(2, 3), keepdims=True)
    return (maps > threshold * most).any(axis=1)
