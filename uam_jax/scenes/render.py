"""The renderer: turns a `Scene` into its picture, and an edit into its exact mask.

`trace` finds the points that the camera sees and the light that reaches them; `shade` computes their colours. Both
use the same coordinates for every size of picture, and process one picture at a time, so that a picture never
depends on the others of its batch.

Pictures are NHWC, float32, in [-1, 1].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from uam_jax.scenes.materials import PAINTS, TABLES, WALLS_OF, to_srgb
from uam_jax.scenes.objects import OBJECTS, Distance
from uam_jax.scenes.world import Scene

# The camera is far away (for little distortion) and looks down at an angle of PITCH. Its picture is 2 * REACH units
# wide at the object's distance. An object is about one unit tall.
PITCH = np.deg2rad(18.0)
DISTANCE, REACH, AIM = 7.0, 1.07, 0.43
WALL_Z = -0.9
SCALES = np.array([0.62, 1.0], np.float32)
OFFSETS = np.array([-0.46, 0.0, 0.46], np.float32)
# Jitter of 1 moves an object by 1.3 of 64 pixels, grows it by 4 % and brightens the light by 6 %.
SHIFT, GROWTH, GAIN = 0.045, 0.04, 0.06
SAMPLES = 2
MARCH_STEPS, SHADOW_STEPS = 22, 14
# Every object fits into a ball of RADIUS around the height MIDDLE, in units of its height.
MIDDLE, RADIUS = 0.52, 0.66

Plane = Float[Array, "h w"]
Vector = tuple[Array | float, Array | float, Array | float]


class Traced(NamedTuple):
    """Geometry and light per ray, independent of colour, surface and wall.

    Attributes:
        hit: Whether the ray meets the object.
        floor: Whether it meets the table rather than the wall behind the object.
        across: Position of the background along the picture.
        along: Position of the background on the table (depth) or on the wall (height).
        ambient: Light from all directions.
        key: Light from the lamp.
        gloss: The reflection of lamp and room.
    """

    hit: Bool[Array, "h w"]
    floor: Bool[Array, "h w"]
    across: Plane
    along: Plane
    ambient: Plane
    key: Plane
    gloss: Plane


def _dot(a: Vector, b: Vector) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _at(origin: Vector, direction: Vector, t: Array) -> Vector:
    return tuple(o + t * d for o, d in zip(origin, direction, strict=True))


def _unit(v: Vector) -> Vector:
    scale = lax.rsqrt(_dot(v, v) + 1e-12)
    return tuple(c * scale for c in v)


def _march(distance: Distance, origin: Vector, direction: Vector, start: Array) -> Array:
    def step(_: Array, t: Array) -> Array:
        return t + distance(*_at(origin, direction, t))

    return lax.fori_loop(0, MARCH_STEPS, step, start)


def _normal(distance: Distance, p: Vector) -> Vector:
    """The gradient of a distance, from the four corners of a tetrahedron."""
    corners = jnp.array([(1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)], jnp.float32)

    def add(i: Array, total: Vector) -> Vector:
        d = distance(*_at(p, tuple(corners[i]), jnp.float32(0.006)))
        return _at(total, tuple(corners[i]), d)

    # A loop, because each call in the code costs compile time for every object.
    return _unit(lax.fori_loop(0, 4, add, (jnp.zeros_like(p[0]),) * 3))


def _openness(distance: Distance, p: Vector, normal: Vector) -> Array:
    """The share of the room that nearby surfaces leave visible, from two steps outwards."""
    steps = jnp.array([0.12, 0.3], jnp.float32)

    def add(i: Array, total: Array) -> Array:
        return total + distance(*_at(p, normal, steps[i])) / (2 * steps[i])

    return jnp.clip(lax.fori_loop(0, 2, add, jnp.zeros_like(p[0])), 0.0, 1.0)


def _shadow(distance: Distance, origin: Vector, light: Vector) -> Array:
    """The visible share of the lamp: smaller if the ray towards it passes close to the object.

    Source: I. Quilez, "Soft shadows in raymarched SDFs" (2010).
    """

    def step(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        t, share = state
        d = distance(*_at(origin, light, t))
        return t + jnp.clip(d, 0.03, 0.25), jnp.minimum(share, 5.0 * d / t)

    start = jnp.full_like(origin[0], 0.03), jnp.ones_like(origin[0])
    share = jnp.clip(lax.fori_loop(0, SHADOW_STEPS, step, start)[1], 0.0, 1.0)
    return share * share * (3 - 2 * share)


def _rays(size: int) -> tuple[Array, Array, Vector, Vector]:
    """Screen coordinates, the eye and the unit directions of all rays."""
    n = size * SAMPLES
    ticks = (jnp.arange(n, dtype=jnp.float32) + 0.5) * (2.0 / n) - 1.0
    u, v = jnp.broadcast_to(ticks, (n, n)), jnp.broadcast_to(-ticks[:, None], (n, n))
    sine, cosine, spread = float(np.sin(PITCH)), float(np.cos(PITCH)), REACH / DISTANCE
    eye = (0.0, AIM + DISTANCE * sine, DISTANCE * cosine)
    direction = (spread * u, spread * cosine * v - sine, -spread * sine * v - cosine)
    return u, v, eye, _unit(direction)


def trace(
    shape: Int[Array, ""],
    size_index: Int[Array, ""],
    place: Int[Array, ""],
    light: Int[Array, ""],
    jitter: Float[Array, "3"],
    *,
    size: int,
) -> Traced:
    """Finds the visible points of one scene and their light."""
    u, v, eye, ray = _rays(size)
    scale = jnp.asarray(SCALES)[size_index] * (1 + GROWTH * jitter[1])
    # The object's frame scales with the object, so that the same ray marching suits every size.
    stand = jnp.asarray(OFFSETS)[place] + SHIFT * jitter[0]
    origin = ((eye[0] - stand) / scale, eye[1] / scale, eye[2] / scale)
    side = jnp.where(light == 0, -1.0, 1.0)
    lamp = _unit((0.80 * side, jnp.float32(1.0), jnp.float32(0.62)))

    t_floor = -eye[1] / ray[1]
    t_wall = (WALL_Z - eye[2]) / ray[2]
    floor = t_floor < t_wall
    t_back = jnp.where(floor, t_floor, t_wall)
    back = _at(eye, ray, t_back)
    back_normal = (jnp.zeros_like(u), floor * 1.0, ~floor * 1.0)
    middle = (origin[0], origin[1] - MIDDLE, origin[2])
    towards = -_dot(middle, ray)
    start = towards - RADIUS

    def with_object(distance: Distance) -> tuple[Array, Vector, Array, Array]:
        t = _march(distance, origin, ray, start)
        p = _at(origin, ray, t)
        hit = (jnp.abs(distance(*p)) < 0.004) & (t < towards + RADIUS)
        normal = _normal(distance, p)
        normal = tuple(jnp.where(hit, a, b) for a, b in zip(normal, back_normal, strict=True))
        p = tuple(
            jnp.where(hit, a, b) for a, b in zip(p, _at(origin, ray, t_back / scale), strict=True)
        )
        seen = _shadow(distance, _at(p, normal, jnp.float32(0.02)), lamp)
        # Points near the table or in folds of the object are darker, but never black.
        open_ = 0.3 + 0.7 * _openness(distance, p, normal)
        # At an object's foot, the table hides half of the room.
        open_ *= jnp.where(hit, 0.6 + 0.4 * jnp.clip(p[1] / 0.35, 0.0, 1.0), 1.0)
        return hit, normal, seen, open_

    def without() -> tuple[Array, Vector, Array, Array]:
        return jnp.zeros(u.shape, bool), back_normal, jnp.ones_like(u), jnp.ones_like(u)

    branches = [functools.partial(with_object, d) for d in OBJECTS.values()] + [without]
    hit, normal, seen, open_ = lax.switch(shape, branches)

    # Light that is brighter on the lamp's side, and a slight vignette.
    pool = 1.0 + 0.24 * side * u
    vignette = 1.0 - 0.13 * (u * u + v * v)
    fall = jnp.where(floor, 1.0, 0.92 - 0.16 * v)
    room = jnp.where(hit, 1.0, vignette * fall * (0.9 + 0.1 * pool))
    facing = jnp.maximum(_dot(normal, lamp), 0.0)
    ambient = room * open_ * (0.36 + 0.10 * normal[1])
    key = jnp.where(hit, 1.0, pool * vignette * fall) * seen * facing
    view = tuple(-c for c in ray)
    half = _unit(tuple(a + b for a, b in zip(lamp, view, strict=True)))
    shine = jnp.maximum(_dot(normal, half), 0.0) ** 28 * seen
    edge = (1.0 - jnp.maximum(_dot(normal, view), 0.0)) ** 3
    gloss = jnp.where(hit, 0.30 * shine + 0.06 * edge * open_, 0.0)
    gain = 1 + GAIN * jitter[2]
    along = jnp.where(floor, back[2], back[1])
    return Traced(hit, floor, back[0], along, gain * ambient, gain * key, gain * gloss)


def _shrink(rays: Float[Array, "H W c"]) -> Float[Array, "h w c"]:
    h, w, c = rays.shape
    return rays.reshape(h // SAMPLES, SAMPLES, w // SAMPLES, SAMPLES, c).mean((1, 3))


def shade(
    traced: Traced, colour: Int[Array, ""], surface: Int[Array, ""], wall: Int[Array, ""]
) -> Float[Array, "size size 3"]:
    """Computes the picture of one traced scene."""
    table = lax.switch(surface, list(TABLES.values()), traced.across, traced.along)
    behind = lax.switch(wall, list(WALLS_OF.values()), traced.across, traced.along)
    paint = jnp.asarray(np.stack(list(PAINTS.values())))[colour]
    reflectance = jnp.where(traced.floor[..., None], table, behind)
    reflectance = jnp.where(traced.hit[..., None], paint, reflectance)
    light = jnp.where(traced.hit, 1.0, jnp.where(traced.floor, 0.95, 1.22))
    light *= traced.ambient * 1.25 + traced.key * 0.80
    linear = reflectance * light[..., None] + traced.gloss[..., None]
    return 2.0 * to_srgb(_shrink(jnp.minimum(linear, 1.0))) - 1.0


def _trace_scene(scene: Scene, size: int) -> Traced:
    return trace(scene.shape, scene.size, scene.place, scene.light, scene.jitter, size=size)


@functools.partial(jax.jit, static_argnames="size")
def render(scene: Scene, *, size: int = 64) -> Float[Array, "b {size} {size} 3"]:
    """Renders a batch of scenes.

    Pictures are rendered one after the other (`lax.map`): memory does not grow with the batch, only one object
    is traced at a time, and a picture is the same in any batch.

    Args:
        scene: A batch of scenes.
        size: Height and width in pixels; the view is the same for all sizes.

    Returns:
        The pictures, in [-1, 1].
    """

    def one(single: Scene) -> Array:
        return shade(_trace_scene(single, size), single.colour, single.surface, single.wall)

    return lax.map(one, scene)


def render_in_chunks(scene: Scene, *, size: int = 64, chunk: int = 256) -> np.ndarray:
    """Renders many scenes into host memory with one compiled program.

    Args:
        scene: A batch of scenes.
        size: Height and width in pixels.
        chunk: The number of pictures per call.

    Returns:
        The pictures, float32 in [-1, 1].
    """
    n = len(scene)
    result = np.empty((n, size, size, 3), np.float32)
    for first in range(0, n, chunk):
        # The last chunk repeats its last scene, so that its size needs no second program.
        rows = np.minimum(np.arange(first, first + chunk), n - 1)
        part = np.asarray(render(scene[rows], size=size))
        result[first : first + chunk] = part[: n - first]
    return result


@functools.partial(jax.jit, static_argnames="size")
def object_mask(scene: Scene, *, size: int = 64) -> Bool[Array, "b {size} {size}"]:
    """Marks the pixels that the object, without its shadow, covers by half or more."""

    def one(single: Scene) -> Array:
        covered = _trace_scene(single, size).hit.astype(jnp.float32)[..., None]
        return _shrink(covered)[..., 0] >= 0.5

    return lax.map(one, scene)


def edit_mask(
    before: Scene, after: Scene, *, size: int = 64, threshold: float = 0.04
) -> Bool[Array, "b {size} {size}"]:
    """Marks the pixels that an edit changes visibly, shadows included.

    Args:
        before: A batch of scenes.
        after: The same scenes, edited.
        size: Height and width in pixels.
        threshold: The largest change of a channel in [-1, 1] that is ignored. The default is 5 of 255 levels,
            about the smallest visible difference in a flat area.

    Returns:
        Whether any channel of a pixel changes by more than the threshold.
    """
    change = jnp.abs(render(before, size=size) - render(after, size=size))
    return jnp.max(change, axis=-1) > threshold
