"""Classification of pictures by the nearest rendered scene, without learning.

`nearest_alternative` compares a picture with all values of one edited attribute. `nearest_attributes` compares it
with every object in every place, for generated pictures whose caption names few attributes. Distances are mean
squared differences of pixels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from uam_jax.scenes.render import render, shade, trace
from uam_jax.scenes.world import (
    COLOURS,
    EMPTY,
    LIGHTS,
    PLACES,
    SHAPES,
    SIZES,
    SURFACES,
    WALLS,
    Scene,
    alternatives,
    flatten,
)

Pictures = Float[Array | np.ndarray, "b h w 3"]


def nearest_alternative(pictures: Pictures, scene: Scene, attribute: str) -> Int[Array, "b"]:
    """Finds the value of one attribute that each picture shows, if all other attributes are known.

    Args:
        pictures: Square pictures in [-1, 1].
        scene: The scene of each picture; its `attribute` is ignored.
        attribute: A key of `ATTRIBUTES`.

    Returns:
        The index of the value with the nearest rendering.
    """
    options = alternatives(scene, attribute)
    b, values = options.shape.shape
    size = pictures.shape[1]
    rendered = render(flatten(options), size=size).reshape(b, values, size, size, 3)
    return jnp.argmin(jnp.mean((rendered - pictures[:, None]) ** 2, axis=(2, 3, 4)), axis=1)


def _grid(shifts: tuple[float, ...]) -> dict[str, np.ndarray]:
    """All candidates except for their colours: objects in every size, place and light, one trace each."""
    axes = [range(len(SHAPES)), range(len(SIZES)), range(len(PLACES)), range(len(LIGHTS)), shifts]
    full = [a.ravel() for a in np.meshgrid(*axes, indexing="ij")]
    # An empty table has neither outline nor place: one candidate for each light is enough.
    rows = [
        np.append(a, b)
        for a, b in zip(full, ([EMPTY] * 2, [0, 0], [0, 0], [0, 1], [0.0, 0.0]), strict=True)
    ]
    names = ("shape", "size", "place", "light")
    grid = {name: row.astype(np.int32) for name, row in zip(names, rows, strict=False)}
    shift = rows[4].astype(np.float32)
    return grid | {"jitter": np.stack([shift, 0 * shift, 0 * shift], axis=-1)}


@functools.partial(jax.jit, static_argnames=("size", "shifts"))
def _bank(
    surface: Int[Array, ""], wall: Int[Array, ""], *, size: int, shifts: tuple[float, ...]
) -> Float[Array, "outlines colours size size 3"]:
    """Renders all candidates in front of one background; an outline is traced once for all colours."""

    def one(row: dict[str, Array]) -> Array:
        traced = trace(
            row["shape"], row["size"], row["place"], row["light"], row["jitter"], size=size
        )
        return lax.map(lambda c: shade(traced, c, surface, wall), jnp.arange(len(COLOURS)))

    return lax.map(one, _grid(shifts))


@functools.partial(jax.jit, static_argnames="size")
def _empty_tables(
    surface: Int[Array, "n"], wall: Int[Array, "n"], light: Int[Array, "n"], *, size: int
) -> Float[Array, "n {size} {size} 3"]:
    def one(row: tuple[Array, Array, Array]) -> Array:
        # The shape is a constant, so that the compiler removes all objects.
        zero = jnp.int32(0)
        traced = trace(jnp.int32(EMPTY), zero, zero, row[2], jnp.zeros(3), size=size)
        return shade(traced, zero, row[0], row[1])

    return lax.map(one, (surface, wall, light))


def _backgrounds(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface and wall of the nearest empty table; differences are capped, to limit an object's influence."""
    axes = range(len(SURFACES)), range(len(WALLS)), range(len(LIGHTS))
    surface, wall, light = (a.ravel().astype(np.int32) for a in np.meshgrid(*axes, indexing="ij"))
    empty = np.asarray(_empty_tables(surface, wall, light, size=pictures.shape[1]))
    best = [np.argmin(np.minimum(np.abs(empty - p), 0.3).mean((1, 2, 3))) for p in pictures]
    return surface[best], wall[best]


def _halve_to(pictures: np.ndarray, size: int) -> np.ndarray:
    b, h, w, c = pictures.shape
    if h != w or h % size:
        raise ValueError(f"Pictures of {h}x{w} cannot be averaged down to {size}x{size}.")
    factor = h // size
    return pictures.reshape(b, size, factor, size, factor, c).mean((2, 4), dtype=np.float32)


def nearest_attributes(
    pictures: Pictures,
    known: Scene | None = None,
    *,
    size: int = 32,
    shifts: tuple[float, ...] = (-0.67, 0.0, 0.67),
) -> Scene:
    """Finds the scene that each picture shows: that of the nearest rendering of any object.

    The candidates are every shape in every colour, size, place and light (and the empty table), in front of
    the known background or the one that is found first. They are rendered once for each background, so that
    a call with many pictures is efficient.

    Args:
        pictures: Square pictures in [-1, 1].
        known: Scenes with the right `surface` and `wall`, for example those of the captions; None searches
            for the nearest empty table.
        size: Pictures are averaged down to this size before they are compared.
        shifts: The sideways jitters of the candidates.

    Returns:
        The nearest scenes; of their jitter, only the sideways shift is determined.

    Raises:
        ValueError: If the pictures are not square, or not a multiple of `size`.
    """
    small = _halve_to(np.asarray(pictures, np.float32), size)
    if known is None:
        surface, wall = _backgrounds(small)
    else:
        surface, wall = np.asarray(known.surface), np.asarray(known.wall)
    grid = _grid(shifts)
    flat = small.reshape(len(small), -1)
    best = np.zeros(len(small), np.int64)
    for background in sorted(set(zip(surface.tolist(), wall.tolist(), strict=True))):
        rows = np.flatnonzero((surface == background[0]) & (wall == background[1]))
        bank = np.asarray(_bank(*map(jnp.int32, background), size=size, shifts=shifts))
        bank = bank.reshape(-1, flat.shape[1])
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 is the same for every candidate c.
        distance = np.sum(bank * bank, axis=1) - 2.0 * flat[rows] @ bank.T
        best[rows] = np.argmin(distance, axis=1)
    outline, colour = np.divmod(best, len(COLOURS))
    fields = {name: jnp.asarray(values[outline]) for name, values in grid.items()}
    return Scene(
        colour=jnp.asarray(colour, jnp.int32),
        surface=jnp.asarray(surface, jnp.int32),
        wall=jnp.asarray(wall, jnp.int32),
        **fields,
    )
