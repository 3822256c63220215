"""Colours and textures of the world, as reflectances for `render.shade`.

Reflectances are linear (not sRGB) and in [0, 1]. Textures have few and wide features, so that a small
autoencoder can reproduce them.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

Plane = Float[Array, "h w"]
Texture = Callable[[Plane, Plane], Float[Array, "h w 3"]]


def to_linear(encoded: Array | np.ndarray) -> Array:
    """Decodes sRGB values in [0, 1] to linear light. Source: IEC 61966-2-1."""
    encoded = jnp.asarray(encoded)
    return jnp.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Array) -> Array:
    """Encodes linear light in [0, 1] to sRGB values. Source: IEC 61966-2-1."""
    linear = jnp.clip(linear, 0.0, 1.0)
    power = 1.055 * jnp.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.where(linear <= 0.0031308, 12.92 * linear, power)


def _paint(code: str) -> np.ndarray:
    encoded = np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(
        np.float32
    )


PAINTS: dict[str, np.ndarray] = {
    "red": _paint("cf2d2b"),
    "orange": _paint("f08322"),
    "yellow": _paint("f5cf38"),
    "green": _paint("3aa045"),
    "turquoise": _paint("35c0bb"),
    "blue": _paint("2a5fd0"),
    "purple": _paint("7f42b5"),
    "pink": _paint("f58fbc"),
    "white": _paint("f6f3ee"),
    "black": _paint("242429"),
}
"""The reflectance of each object colour."""


def _mix(first: str, second: str, amount: Plane) -> Float[Array, "h w 3"]:
    share = amount[..., None]
    return _paint(first) * (1 - share) + _paint(second) * share


def _waves(x: Plane, z: Plane) -> Plane:
    """Smooth mottling in [0, 1], from a few crossed waves instead of a table of noise."""
    total = jnp.sin(3.1 * x + 1.3 * z + 0.4) + jnp.sin(-2.3 * x + 2.9 * z + 1.9)
    total += jnp.sin(4.9 * x - 1.7 * z + 2.6 + jnp.sin(2.2 * z)) + jnp.sin(1.7 * x + 4.3 * z)
    return 0.5 + total / 8.0


def _steps(phase: Plane, sharpness: float) -> Plane:
    """A square wave in [0, 1] with soft flanks and period 2 pi."""
    return 0.5 + 0.5 * jnp.tanh(sharpness * jnp.sin(phase))


def wooden(x: Plane, z: Plane) -> Float[Array, "h w 3"]:
    """Brown boards that run away from the camera."""
    width = 0.62
    board = jnp.floor(x / width + 0.5)
    across = x / width + 0.5 - board
    tone = 0.5 + 0.5 * jnp.sin(board * 2.4 + 0.8)
    grain = 0.5 + 0.5 * jnp.sin(11.0 * x + 0.9 * jnp.sin(1.6 * z + board * 1.7))
    wood = _mix("8f5a33", "bf8a58", 0.15 + 0.5 * tone + 0.3 * grain)
    seam = jnp.exp(-((jnp.minimum(across, 1 - across) / 0.035) ** 2))
    return wood * (1 - 0.55 * seam[..., None])


def marble(x: Plane, z: Plane) -> Float[Array, "h w 3"]:
    """White with grey veins."""
    bend = 0.9 * jnp.sin(1.5 * z + 0.7) + 0.5 * jnp.sin(2.6 * x + 1.1 * z)
    vein = jnp.exp(-((jnp.sin(1.9 * x + 1.1 * z + bend) / 0.22) ** 2))
    cloud = _waves(0.6 * x, 0.6 * z)
    amount = jnp.clip(0.75 * vein * (0.4 + 0.6 * cloud) + 0.12 * cloud, 0, 1)
    return _mix("eeebe6", "9aa0a8", amount)


def slate(x: Plane, z: Plane) -> Float[Array, "h w 3"]:
    """Dark blue-grey, mottled."""
    return _mix("38424e", "5b6774", _waves(1.1 * x, 1.1 * z))


def mossy(x: Plane, z: Plane) -> Float[Array, "h w 3"]:
    """Green, mottled."""
    return _mix("49632f", "8ba04f", _waves(1.5 * x + 2.0, 1.5 * z))


def checkered(x: Plane, z: Plane) -> Float[Array, "h w 3"]:
    """Red and cream squares."""
    phase = np.pi / 0.6
    wave = jnp.sin(phase * x + np.pi / 2) * jnp.sin(phase * z * 0.75)
    return _mix("efe3cf", "b5574a", 0.5 + 0.5 * jnp.tanh(3.0 * wave))


def linen(x: Plane, z: Plane) -> Float[Array, "h w 3"]:
    """Beige with soft folds."""
    folds = 0.5 + 0.35 * jnp.sin(2.4 * x - 1.2 * z + 0.5) + 0.15 * jnp.sin(9.0 * x)
    return _mix("cdb48c", "e6d3b1", jnp.clip(folds, 0, 1))


def _plain(code: str) -> Texture:
    def wall(x: Plane, y: Plane) -> Float[Array, "h w 3"]:
        return jnp.broadcast_to(_paint(code), (*jnp.broadcast_shapes(x.shape, y.shape), 3))

    return wall


def _striped(x: Plane, y: Plane) -> Float[Array, "h w 3"]:
    return _mix("f0e6d2", "c9a55c", _steps(2 * np.pi / 0.42 * x + 0.6 + 0 * y, 2.2))


def _brick(x: Plane, y: Plane) -> Float[Array, "h w 3"]:
    tall, wide, joint = 0.27, 0.6, 0.022
    row = jnp.floor(y / tall)
    shifted = x / wide + 0.5 * (row % 2)
    column = jnp.floor(shifted)
    up, along = y / tall - row, shifted - column
    gap = jnp.minimum(jnp.minimum(up, 1 - up) * tall, jnp.minimum(along, 1 - along) * wide)
    mortar = jnp.exp(-((gap / joint) ** 2))
    tone = 0.5 + 0.5 * jnp.sin(row * 2.3 + column * 4.1)
    brick = _mix("a8604a", "bd7a60", tone)
    return brick * (1 - 0.75 * mortar[..., None]) + 0.75 * mortar[..., None] * _paint("cbb8a8")


TABLES: dict[str, Texture] = {
    f.__name__: f for f in (wooden, marble, slate, mossy, checkered, linen)
}
"""The reflectance of each table top, as a function of its coordinates."""

WALLS_OF: dict[str, Texture] = {
    "white": _plain("dcdbd7"),
    "blue": _plain("8fb0cf"),
    "green": _plain("9dbb98"),
    "pink": _plain("dfb3b3"),
    "striped": _striped,
    "brick": _brick,
}
"""The reflectance of each wall, as a function of its coordinates."""
