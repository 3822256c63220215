"""What a caller may ask of an `Editor`, checked and brought into one form."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uam_jax.config import EditConfig
from uam_jax.errors import InputError
from uam_jax.inversion import Inversion
from uam_jax.types import Conditioning, MaskLike

Prompts = str | Sequence[str]
Targets = Sequence[str] | Sequence[Sequence[str]]


def source_prompts(source: Prompts | None, config: EditConfig) -> Prompts:
    """What the source branch and its inversion are told."""
    if config.source_context == "null":
        if source is not None:
            warnings.warn(
                'the source prompt is ignored: source_context is "null"; set it to "prompt" to use it',
                UserWarning,
                stacklevel=4,
            )
        return ""
    if source is None:
        raise InputError('source_context is "prompt": give the source prompt, or set it to "null"')
    return source


def per_image(condition: Conditioning, count: int) -> Conditioning:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), condition)


def listed(inversions: Inversion | Sequence[Inversion] | None) -> Sequence[Inversion]:
    if inversions is None:
        return []
    return [inversions] if isinstance(inversions, Inversion) else inversions


def flatten_targets(target: Targets, count: int) -> tuple[list[str], np.ndarray]:
    """All targets in one list, and the image that each belongs to."""
    if isinstance(target, str) or len(target) != count:
        raise InputError(
            f"target has {1 if isinstance(target, str) else len(target)} entries for {count} images: "
            "give a list with a prompt, or a list of prompts, per image"
        )
    nested = [[entry] if isinstance(entry, str) else list(entry) for entry in target]
    texts = [text for entry in nested for text in entry]
    if not all(nested) or not all(text.strip() for text in texts):
        raise InputError("a target prompt is empty: say what the edited image shows")
    return texts, np.repeat(np.arange(count), [len(entry) for entry in nested])


def latent_masks(masks: MaskLike, shape: Sequence[int]) -> Float[Array, "b h w 1"]:
    """A picture's mask as shares of latent pixels."""
    masks = jnp.asarray(masks, jnp.float32)
    b, h, w, _ = shape
    if masks.ndim != 3 or masks.shape[0] != b or masks.shape[1] % h or masks.shape[2] % w:
        raise InputError(f"masks have shape {masks.shape}: (b, h, w) of the images is needed")
    if not bool(((masks >= 0) & (masks <= 1)).all()):
        raise InputError("masks have values outside [0, 1]: 1 may change, 0 may not")
    return masks.reshape(b, h, masks.shape[1] // h, w, masks.shape[2] // w).mean(axis=(2, 4))[
        ..., None
    ]


def checked_regions(
    regions: Any, shape: Sequence[int]
) -> Float[np.ndarray, "blocks images rows columns"]:
    """Uniformity of every block, image and pixel, for latents of a shape."""
    regions = np.asarray(regions, np.float32)
    b, h, w, _ = shape
    if (
        regions.ndim != 4
        or regions.shape[1] not in (1, b)
        or regions.shape[2:] not in ((h, w), (1, 1))
    ):
        raise InputError(
            f"regions have shape {regions.shape}: (blocks, {b}, {h}, {w}) is needed, or 1 in place of "
            "blocks, of images, or of both sides"
        )
    if not ((regions >= 0) & (regions <= 1)).all():
        raise InputError("regions have values outside [0, 1]: 0 is the text's maps, 1 uniform ones")
    return np.broadcast_to(regions, (*regions.shape[:2], h, w))


def inversion_regions(
    allowed: Float[Array, "b h w 1"] | None, config: EditConfig
) -> Float[np.ndarray, "1 b h w"] | None:
    """Where the source's inversion is uniform, by `config.region.inversion` and the user's mask."""
    if not config.region.inversion:
        return None
    if allowed is None:
        raise InputError("region.inversion needs to know the region before the edit: give a mask")
    inside = np.asarray(allowed)[None, ..., 0]
    return inside * config.inversion.uniformity + (1 - inside) * config.region.inversion
