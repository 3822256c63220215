"""The world of the embedded model: random scenes and their captions.

A scene is one object (or none) on a table in front of a wall, given by a few attributes. `render` turns it into a
picture and `captions` into a prompt. An edit replaces attributes, so that its exact answer is known.
"""

import dataclasses
import re
from typing import Any, Literal, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from uam_jax.scenes.materials import PAINTS, TABLES, WALLS_OF
from uam_jax.scenes.objects import OBJECTS

SHAPES: tuple[str, ...] = tuple(OBJECTS)
COLOURS: tuple[str, ...] = tuple(PAINTS)
SURFACES: tuple[str, ...] = tuple(TABLES)
WALLS: tuple[str, ...] = tuple(WALLS_OF)
SIZES: tuple[str, ...] = ("small", "large")
PLACES: tuple[str, ...] = ("left", "centre", "right")
LIGHTS: tuple[str, ...] = ("left", "right")

EMPTY: int = len(SHAPES)
"""The value of `Scene.shape` for a table without an object."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "surface": SURFACES,
    "wall": WALLS,
    "size": SIZES,
    "place": PLACES,
    "light": LIGHTS,
}
"""The words for the values of every attribute, in order."""


# JAX also builds this pytree with leaves that are not arrays (None, shapes, axes), so that a check of its fields at
# run time would be wrong.
@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
    """The complete specification of a picture, or of a batch of pictures.

    Attributes:
        shape: Index into `SHAPES`, or `EMPTY`; then colour, size and place have no effect.
        colour: Index into `COLOURS`.
        surface: Index into `SURFACES`.
        wall: Index into `WALLS`.
        size: Index into `SIZES`.
        place: Index into `PLACES`.
        light: Index into `LIGHTS`: the side from which the light comes.
        jitter: Small shifts of position, scale and strength of light, each in [-1, 1].
    """

    shape: Int[Array | np.ndarray, "*batch"]
    colour: Int[Array | np.ndarray, "*batch"]
    surface: Int[Array | np.ndarray, "*batch"]
    wall: Int[Array | np.ndarray, "*batch"]
    size: Int[Array | np.ndarray, "*batch"]
    place: Int[Array | np.ndarray, "*batch"]
    light: Int[Array | np.ndarray, "*batch"]
    jitter: Float[Array | np.ndarray, "*batch 3"]

    def replace(self, **changes: Any) -> "Scene":
        """The scene with some attributes changed; a new value is an index, an array or a word."""
        new = {name: self._value(name, value) for name, value in changes.items()}
        return dataclasses.replace(self, **new)

    def _value(self, name: str, value: Any) -> Array:
        if isinstance(value, str):
            value = _index(name, value)
        like = getattr(self, name)
        return jnp.broadcast_to(jnp.asarray(value, like.dtype), like.shape)

    def __getitem__(self, item: Any) -> "Scene":
        return jax.tree.map(lambda leaf: leaf[item], self)

    def __len__(self) -> int:
        return self.shape.shape[0]


def make_scene(**words: str | int) -> Scene:
    """Builds one scene from words or indices; other attributes and the jitter are 0.

    Args:
        **words: Attributes by name, such as `shape="cube", colour="red"`.

    Returns:
        A batch of one scene.
    """
    zero = jnp.zeros((1,), jnp.int32)
    fields = dict.fromkeys(ATTRIBUTES, zero)
    return Scene(**fields, jitter=jnp.zeros((1, 3), jnp.float32)).replace(**words)


def _index(attribute: str, word: str) -> int:
    if attribute == "shape" and word == "empty":
        return EMPTY
    return ATTRIBUTES[attribute].index(word)


def sample(key: PRNGKeyArray | Array, n: int, *, empty: float = 0.04) -> Scene:
    """Draws scenes uniformly.

    Args:
        key: A JAX random key.
        n: The number of scenes.
        empty: The share of scenes without an object.

    Returns:
        A batch of `n` scenes.
    """
    keys = jax.random.split(key, len(ATTRIBUTES) + 2)
    fields = {
        name: jax.random.randint(k, (n,), 0, len(words), jnp.int32)
        for k, (name, words) in zip(keys[2:], ATTRIBUTES.items(), strict=True)
    }
    nothing = jax.random.uniform(keys[0], (n,)) < empty
    fields["shape"] = jnp.where(nothing, EMPTY, fields["shape"])
    jitter = jax.random.uniform(keys[1], (n, 3), jnp.float32, -1.0, 1.0)
    return Scene(**fields, jitter=jitter)


def concatenate(*scenes: Scene) -> Scene:
    """Joins batches of scenes."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *scenes)


def alternatives(scene: Scene, attribute: str) -> Scene:
    """Builds each scene with every value of one attribute, including its own.

    Args:
        scene: A batch of `b` scenes.
        attribute: A key of `ATTRIBUTES`.

    Returns:
        Scenes of shape `(b, values)`; `flatten` turns them into one batch.
    """
    values = jnp.arange(len(ATTRIBUTES[attribute]), dtype=jnp.int32)
    spread = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], len(values), axis=1), scene)
    return spread.replace(**{attribute: values})


def flatten(scene: Scene) -> Scene:
    """Turns scenes with several leading axes into one batch."""
    depth = scene.shape.ndim
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[depth:]), scene)


_OF = {"left": "on the left of", "centre": "in the centre of", "right": "on the right of"}

Detail = Literal["short", "full"]


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _words(scene: Scene) -> dict[str, str]:
    """The words for a single scene's attributes; without a shape if it is empty."""
    values = {name: int(np.asarray(getattr(scene, name)).reshape(())) for name in ATTRIBUTES}
    if values["shape"] == EMPTY:
        values = {name: values[name] for name in ("surface", "wall", "light")}
    return {name: ATTRIBUTES[name][value] for name, value in values.items()}


def _phrase(words: dict[str, str], template: int) -> str:
    table = f"{words['surface']} table"
    wall = _article(f"{words['wall']} wall")
    if "shape" in words:
        size = f"{words['size']} " if "size" in words else ""
        thing = _article(f"{size}{words['colour']} {words['shape']}")
        where = _OF[words["place"]] if "place" in words else "on"
        subject = f"{thing} {where} {_article(table)}"
    else:
        subject = _article(f"empty {table}")
    light = f", lit from the {words['light']}" if "light" in words else ""
    match template:
        case 0:
            return f"{subject} in front of {wall}{light}"
        case 1:
            return f"a photo of {subject} before {wall}{light}"
        case _:
            return f"{subject}, with {wall} behind it{light}"


_TEMPLATES = 3


def caption(scene: Scene, *, detail: Detail = "full") -> str:
    """Describes one scene.

    Args:
        scene: A single scene, such as `scenes[i]`.
        detail: "full" names every attribute; "short" omits size, place and light.

    Returns:
        A caption such as "a large red cube on the left of a wooden table in front of a blue wall,
        lit from the left", unique among those of the same detail.
    """
    words = _words(scene)
    if detail == "short":
        words = {k: v for k, v in words.items() if k not in ("size", "place", "light")}
    return _phrase(words, 0)


def captions(
    scene: Scene,
    rng: np.random.Generator | int | None = None,
    *,
    detail: Detail = "full",
    keep: float = 0.5,
) -> list[str]:
    """Describes a batch of scenes.

    Args:
        scene: A batch of scenes.
        rng: A generator (or its seed) that omits size, place and light at random and varies the phrase; None
            gives the fixed phrase of `caption`.
        detail: The detail of captions without a generator.
        keep: The probability with which a generator keeps each of size, place and light.

    Returns:
        One caption per scene. Each names shape, colour, surface and wall.
    """
    scene = jax.tree.map(np.asarray, scene)
    if rng is None:
        return [caption(scene[i], detail=detail) for i in range(len(scene))]
    rng = np.random.default_rng(rng)
    result = []
    for i in range(len(scene)):
        words = _words(scene[i])
        for name in ("size", "place", "light"):
            if rng.random() >= keep:
                words.pop(name, None)
        result.append(_phrase(words, rng.choice(_TEMPLATES, p=(0.6, 0.2, 0.2))))
    return result


_PATTERNS = {
    "shape": rf"\b(?:{'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b",
    "colour": rf"\b({'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})\b",
    "surface": rf"\b({'|'.join(SURFACES)}) table\b",
    "wall": rf"\b({'|'.join(WALLS)}) wall\b",
    "size": rf"\b({'|'.join(SIZES)}) (?:{'|'.join(COLOURS)})\b",
    "place": rf"\b({'|'.join(PLACES)}) of\b",
    "light": rf"\blit from the ({'|'.join(LIGHTS)})\b",
}


def read_caption(text: str) -> dict[str, int]:
    """Parses a caption.

    Args:
        text: A caption in any phrase of this module.

    Returns:
        The values of the attributes that the caption names; `shape` is `EMPTY` for an empty table.
    """
    found = {name: re.search(pattern, text) for name, pattern in _PATTERNS.items()}
    values = {name: _index(name, match[1]) for name, match in found.items() if match}
    return values | {"shape": EMPTY} if re.search(r"\bempty\b", text) else values


_GLUE = "a an photo of on in the table wall front before with behind it lit from empty"

VOCABULARY: frozenset[str] = frozenset(_GLUE.split()).union(*ATTRIBUTES.values())
"""Every word that a caption can contain; a comma may follow a word."""
