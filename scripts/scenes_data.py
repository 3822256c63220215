"""The training's data: rendered pictures, and several captions of each as token ids."""

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scenes_networks import CLASSES
from scenes_presets import PHRASES, Preset

from uam_jax import scenes
from uam_jax.checkpoints.tokenizer import Tokenizer
from uam_jax.runtime.platforms import default_device
from uam_jax.scenes.bpe import train_tokenizer
from uam_jax.scenes.render import shade, trace


@functools.partial(jax.jit, static_argnames=("shape", "size", "together"))
def _render(world: scenes.Scene, *, shape: int, size: int, together: int | None) -> jax.Array:
    """Pictures of scenes with one shape as bytes, so many at a time; None: one after the other."""

    def one(scene: scenes.Scene) -> jax.Array:
        # The shape is a constant, so that the compiler removes all other objects.
        traced = trace(
            jnp.int32(shape), scene.size, scene.place, scene.light, scene.jitter, size=size
        )
        picture = shade(traced, scene.colour, scene.surface, scene.wall)
        return jnp.round((picture + 1) * 127.5).astype(jnp.uint8)

    return lax.map(one, world, batch_size=together)


def render_all(world: scenes.Scene, size: int) -> np.ndarray:
    """All pictures as bytes (n, size, size, 3), shape by shape.

    An accelerator is busy only with many pictures at a time. A CPU is faster with one, which fits into its cache.
    """
    together = None if default_device().platform == "cpu" else 64
    world = jax.tree.map(np.asarray, world)
    pictures = np.empty((len(world), size, size, 3), np.uint8)

    def fill(shape: int) -> None:
        rows = np.flatnonzero(world.shape == shape)
        if len(rows):
            missing = -len(rows) % (together or 1)
            padded = np.append(rows, np.full(missing, rows[-1]))
            made = _render(world[padded], shape=shape, size=size, together=together)
            pictures[rows] = np.asarray(made)[: len(rows)]

    with ThreadPoolExecutor() as pool:  # The programs of all shapes are compiled at the same time.
        list(pool.map(fill, range(scenes.EMPTY + 1)))
    return pictures


class Texts(NamedTuple):
    """Captions as the training needs them.

    Attributes:
      ids: tokens, (pictures, phrases, 77).
      named: the value of every attribute that a caption names, (pictures, phrases, attributes); the last class
        of an attribute stands for a caption without it.
    """

    ids: np.ndarray
    named: np.ndarray


def draw_captions(preset: Preset, world: scenes.Scene) -> list[list[str]]:
    """Several captions of every scene; those of the first scenes do not depend on how many follow."""
    rngs = [np.random.default_rng((preset.seed, i)) for i in range(PHRASES)]
    return [scenes.captions(world, rng, keep=preset.caption_keep) for rng in rngs]


def learn_tokenizer(preset: Preset, world: scenes.Scene, folder: Path) -> Tokenizer:
    """The tokenizer of the first scenes' captions, which name every word; its files go to a folder."""
    phrases = draw_captions(preset, world[np.arange(min(4000, len(world)))])
    seen = [text for texts in phrases for text in texts]
    return train_tokenizer(seen, folder, vocab_size=1024)


def make_texts(preset: Preset, world: scenes.Scene, tokenizer: Tokenizer) -> Texts:
    """Draws several captions of every scene."""
    phrases = draw_captions(preset, world)
    named = np.array([[values_named(text) for text in texts] for texts in phrases], np.int32)
    ids = np.stack([tokenizer.encode(texts) for texts in phrases], axis=1)
    return Texts(ids, named.swapaxes(0, 1))


def values_named(caption: str) -> list[int]:
    """The value of every attribute that the caption names, and the last class of each other attribute."""
    named = scenes.read_caption(caption)
    return [
        named.get(name, count - 1) for name, count in zip(scenes.ATTRIBUTES, CLASSES, strict=True)
    ]
