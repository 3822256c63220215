"""The world's objects as signed distances, for the ray marching of `render.trace`.

Every function returns the distance of points `x, y, z` to the object's surface, negative inside. In its own frame
an object stands on the plane `y = 0`, is about one unit tall and is centred on the `y` axis. Functions are
elementwise and take any broadcastable shapes.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

Distance = Callable[[Array, Array, Array], Array]
Points = Float[Array, "*points"]


def _length(*parts: Array) -> Array:
    return jnp.sqrt(sum(part * part for part in parts) + 1e-12)


def _turn(x: Array, z: Array, degrees: float) -> tuple[Array, Array]:
    """Rotates about the vertical axis, so that the depth of a flat object is visible."""
    angle = jnp.deg2rad(degrees)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return cosine * x + sine * z, cosine * z - sine * x


def _extrude(flat: Array, depth: Array) -> Array:
    """Combines a distance in a plane with a distance along its normal."""
    return jnp.minimum(jnp.maximum(flat, depth), 0.0) + _length(
        jnp.maximum(flat, 0.0), jnp.maximum(depth, 0.0)
    )


def _smooth_union(first: Array, second: Array, width: float) -> Array:
    mix = jnp.maximum(width - jnp.abs(first - second), 0.0) / width
    return jnp.minimum(first, second) - mix * mix * width * 0.25


def _upright(x: Array, y: Array, z: Array, radius: float, bottom: float, top: float, round_: float):
    """A cylinder from `bottom` to `top` with rounded rims."""
    half = (top - bottom) / 2
    flat = _length(x, z) - radius + round_
    return _extrude(flat, jnp.abs(y - (bottom + half)) - half + round_) - round_


def ball(x: Points, y: Points, z: Points) -> Points:
    """A ball."""
    return _length(x, y - 0.45, z) - 0.45


def cube(x: Points, y: Points, z: Points) -> Points:
    """A cube, turned to show two sides."""
    x, z = _turn(x, z, 32.0)
    half, round_ = 0.36, 0.035
    gaps = [jnp.abs(c) - half + round_ for c in (x, y - half, z)]
    outside = _length(*(jnp.maximum(gap, 0.0) for gap in gaps))
    inside = jnp.minimum(jnp.maximum(jnp.maximum(gaps[0], gaps[1]), gaps[2]), 0.0)
    return outside + inside - round_


def cone(x: Points, y: Points, z: Points) -> Points:
    """A cone with a rounded tip."""
    base, half, round_ = 0.42, 0.5, 0.03
    q, h = _length(x, z), y - half - round_
    cap_q = q - jnp.minimum(q, jnp.where(h < 0, base, 0.0))
    cap_h = jnp.abs(h) - half
    along = jnp.clip((q * base + (half - h) * 2 * half) / (base**2 + 4 * half**2), 0.0, 1.0)
    side_q, side_h = q - base * along, h - half + 2 * half * along
    sign = jnp.where((side_q < 0) & (cap_h < 0), -1.0, 1.0)
    nearest = jnp.minimum(cap_q**2 + cap_h**2, side_q**2 + side_h**2)
    return sign * jnp.sqrt(nearest + 1e-12) - round_


def cylinder(x: Points, y: Points, z: Points) -> Points:
    """A stout cylinder."""
    return _upright(x, y, z, 0.33, 0.0, 0.82, 0.03)


def ring(x: Points, y: Points, z: Points) -> Points:
    """A ring standing on its rim, turned a little."""
    x, z = _turn(x, z, 24.0)
    return _length(_length(x, y - 0.47) - 0.345, z) - 0.125


def bottle(x: Points, y: Points, z: Points) -> Points:
    """A bottle with a neck and a lip."""
    body = _upright(x, y, z, 0.25, 0.0, 0.62, 0.08)
    neck = _upright(x, y, z, 0.085, 0.4, 1.1, 0.02)
    lip = _upright(x, y, z, 0.115, 1.0, 1.12, 0.03)
    return jnp.minimum(_smooth_union(body, neck, 0.22), lip)


def star(x: Points, y: Points, z: Points) -> Points:
    """A thick five-pointed star standing on two tips."""
    x, z = _turn(x, z, 18.0)
    # The plane is folded onto one half of an arm; the two lower tips stand on the table.
    radius, inner = 0.48, 0.48
    c, s = 0.809016994, 0.587785252
    px, py = jnp.abs(x), y - 0.415
    fold = 2.0 * jnp.maximum(c * px - s * py, 0.0)
    px, py = px - fold * c, py + fold * s
    fold = 2.0 * jnp.maximum(-c * px - s * py, 0.0)
    px, py = jnp.abs(px + fold * c), py + fold * s - radius
    ax, ay = inner * s, inner * c - 1.0
    along = jnp.clip((px * ax + py * ay) / (ax * ax + ay * ay), 0.0, radius)
    flat = _length(px - ax * along, py - ay * along) * jnp.sign(py * ax - px * ay)
    return _extrude(flat, jnp.abs(z) - 0.10) - 0.035


def mushroom(x: Points, y: Points, z: Points) -> Points:
    """A domed cap on a stem."""
    q, h = _length(x, z), y - 0.5
    # A flattened ball without its lower half; the scale of the smaller axis keeps the marching steps safe.
    dome = (_length(q / 0.47, h / 0.42) - 1.0) * 0.40
    cap = _extrude(dome, -h) - 0.02
    stem = _upright(x, y, z, 0.15, 0.0, 0.6, 0.03)
    return _smooth_union(cap, stem, 0.06)


OBJECTS: dict[str, Distance] = {
    f.__name__: f for f in (ball, cube, cone, cylinder, ring, bottle, star, mushroom)
}
"""The distance function of each object, by its word in captions."""
