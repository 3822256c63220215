"""The VAE in tiles: the whole picture's result up to rounding, in memory that its fine layers do not fill.

A stage of the VAE (all layers of one resolution) is run tile by tile. Convolutions see no seam, because a window
is wider than its tile by as much as they reach. Group norms need the whole picture's statistics: the stage is run
over all tiles once for each of its norms, up to that norm, and once more for its output. Held whole are a stage's
input and output, one of which has half the sides, and the stage at the latent's size, where the pixels attend to
each other.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from uam_jax.models.layers import GroupNorm
from uam_jax.models.vae import VAE
from uam_jax.types import Params

TILE = 256
"""A side that needs little memory and to which the margins (of at most 8 pixels in SD) add little work."""

_Moments = tuple[Float[Array, "b 1 _"], Float[Array, "b 1 _"]]
_Measured = tuple[Float[Array, ""], Float[Array, "b 1 _"], Float[Array, "b 1 _"]]
_Stage = Callable[[Float[Array, "b h w _"]], Float[Array, "b h2 w2 _"]]


def encode_in_tiles(
    vae: VAE, params: Params, images: Float[Array, "b h w 3"], *, tile: int = TILE
) -> tuple[Float[Array, "b h2 w2 c"], Float[Array, "b h2 w2 c"]]:
    """`VAE.encode`, one picture after the other, each in tiles.

    Args:
      vae: the autoencoder.
      params: its weights.
      images: in [-1, 1]; sides are multiples of `config.factor`.
      tile: a tile's side, even, in pixels of the resolution that it is cut from; what is hardly
        larger is run whole.

    Raises:
      ValueError: `tile` is odd or not positive.
    """
    apply = functools.partial(vae.apply, {"params": params})
    last = len(vae.config.channels) - 1
    reach = _reach(vae.config.layers_per_block)

    def encode(image: Array) -> tuple[Array, Array]:
        x = image[None]
        for index in range(last):
            stage = functools.partial(apply, stage=index, method="encode_stage")
            x = _run(stage, x, step=(1, 2), tile=tile, reach=reach)
        x = apply(x, stage=last, method="encode_stage")
        mean, log_variance = apply(x, method="posterior")
        return mean[0], log_variance[0]

    return lax.map(encode, images)


def decode_in_tiles(
    vae: VAE, params: Params, latents: Float[Array, "b h2 w2 c"], *, tile: int = TILE
) -> Float[Array, "b h w 3"]:
    """`VAE.decode`, one latent after the other, each in tiles; see `encode_in_tiles`."""
    apply = functools.partial(vae.apply, {"params": params})
    last = len(vae.config.channels) - 1
    reach = _reach(vae.config.layers_per_block + 1)

    def decode(latent: Array) -> Array:
        x = apply(latent[None], stage=0, method="decode_stage")
        for index in range(1, last + 1):
            stage = functools.partial(apply, stage=index, method="decode_stage")
            x = _run(stage, x, step=(2, 1), tile=tile, reach=reach)
        return x[0].astype(jnp.float32)

    return lax.map(decode, latents)


def _reach(blocks: int) -> int:
    """Pixels that a stage's convolutions reach: two of each ResNet block, one before and one after."""
    return 2 * blocks + 2


@dataclass(frozen=True)
class _Grid:
    """A picture cut into tiles; a window is a tile with its margins, moved to lie inside the picture.

    All of it is even, so that a window is also one of a picture of half the sides.
    """

    sides: tuple[int, int]
    tile: int
    reach: int

    def __post_init__(self):
        if self.tile < 2 or self.tile % 2:
            raise ValueError(f"tile is {self.tile}: it must be even and positive")

    @property
    def tiles(self) -> tuple[int, int]:
        return tuple(min(self.tile, side) for side in self.sides)

    @property
    def windows(self) -> tuple[int, int]:
        return tuple(min(self.tile + 2 * self.reach, side) for side in self.sides)

    def corners(self) -> Int[Array, "tiles 2"]:
        rows, columns = (np.arange(0, side, self.tile) for side in self.sides)
        return jnp.asarray(np.stack(np.meshgrid(rows, columns), axis=-1).reshape(-1, 2))

    def window_of(self, corner: Int[Array, "2"]) -> Int[Array, "2"]:
        """The window's corner; where the picture ends, the window ends, and convolutions pad."""
        most = np.subtract(self.sides, self.windows)
        return jnp.clip(corner - self.reach, 0, most)

    def tile_of(self, corner: Int[Array, "2"]) -> Int[Array, "2"]:
        """The corner of the full tile that is written; the last ones overlap those before."""
        return jnp.minimum(corner, np.subtract(self.sides, self.tiles))

    def counted(self, corner: Int[Array, "2"]) -> Bool[Array, " pixels"]:
        """The window's pixels that are this tile's alone: each one of the picture counts once."""
        first = corner - self.window_of(corner)
        rows, columns = (
            (at <= np.arange(size)) & (np.arange(size) < at + self.tile)
            for size, at in zip(self.windows, first, strict=True)
        )
        return (rows[:, None] & columns).reshape(-1)


class _Norms:
    """Gives the group norms of a stage, while it runs on a window, their statistics in order.

    Those of the first ones are known. The next one's are measured in the window. What comes after
    that is not used, and the compiler leaves it out.
    """

    def __init__(self, known: Sequence[_Moments], counted: Bool[Array, " pixels"]):
        self.known = iter(known)
        self.counted = counted
        self.measured: _Measured | None = None

    def __call__(self, call: Callable, given: Any, options: Any, context: Any) -> Any:
        if not isinstance(context.module, GroupNorm) or context.method_name != "moments":
            return call(*given, **options)
        if (moments := next(self.known, None)) is not None:
            return moments
        if self.measured is None:
            self.measured = _measure(context.module, given[0], self.counted)
        return call(*given)


def _measure(
    norm: GroupNorm, pixels: Float[Array, "b n c"], counted: Bool[Array, " n"]
) -> _Measured:
    """Number of counted pixels, their mean, and their number times their variance."""
    wide, weight = pixels.astype(jnp.float32), counted.astype(jnp.float32)[:, None]

    def total(x: Array) -> Array:
        return norm.over_groups((x * weight).sum(axis=1, keepdims=True))

    mean = total(wide) / weight.sum()
    return weight.sum(), mean, total(jnp.square(wide - mean))


def _merge(
    count: Float[Array, " tiles"],
    mean: Float[Array, "tiles b 1 c"],
    squares: Float[Array, "tiles b 1 c"],
) -> _Moments:
    """Mean and variance of all tiles together; squares of small differences lose no digits."""
    share = (count / count.sum()).reshape(-1, 1, 1, 1)
    whole = (share * mean).sum(axis=0)
    between = (share * jnp.square(mean - whole)).sum(axis=0)
    return whole, squares.sum(axis=0) / count.sum() + between


def _run(
    stage: _Stage, x: Float[Array, "b h w _"], *, step: tuple[int, int], tile: int, reach: int
) -> Float[Array, "b h2 w2 _"]:
    """`stage(x)` in tiles.

    Args:
      stage: layers of one resolution, and a resampling from or to half of it.
      x: input of any size.
      step: how many pixels of that resolution make one, per side, of the input and of the output.
      tile: side of a tile.
      reach: of the stage's convolutions, even.
    """
    grid = _Grid((x.shape[1] * step[0], x.shape[2] * step[0]), tile, reach)
    if grid.windows == grid.sides:
        return stage(x)
    sizes = tuple(size // step[0] for size in grid.windows)

    def run(corner: Array, known: Sequence[_Moments]) -> tuple[Array, _Measured | None]:
        row, column = grid.window_of(corner) // step[0]
        window = lax.dynamic_slice(x, (0, row, column, 0), (x.shape[0], *sizes, x.shape[3]))
        norms = _Norms(known, grid.counted(corner))
        with nn.intercept_methods(norms):
            return stage(window), norms.measured

    def measure(known: Sequence[_Moments], corner: Array) -> _Measured | None:
        return run(corner, known)[1]

    def write(image: Array, corner: Array) -> tuple[Array, None]:
        window, to = run(corner, known)[0], grid.tile_of(corner)
        row, column = (to - grid.window_of(corner)) // step[1]
        size = (image.shape[0], *(side // step[1] for side in grid.tiles), image.shape[3])
        part = lax.dynamic_slice(window, (0, row, column, 0), size)
        row, column = to // step[1]
        return lax.dynamic_update_slice(image, part, (0, row, column, 0)), None

    corners, known = grid.corners(), []
    while (measured := lax.map(functools.partial(measure, tuple(known)), corners)) is not None:
        known.append(_merge(*measured))
    output = jax.eval_shape(lambda: run(corners[0], known)[0])
    shape = (x.shape[0], *(side // step[1] for side in grid.sides), output.shape[3])
    # Made from the input: under shard_map the carry must vary over devices as the tiles do.
    image = jnp.zeros_like(x, output.dtype, shape=shape)
    return lax.scan(write, image, corners)[0]
