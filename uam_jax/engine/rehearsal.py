"""The host's part of some work alone, which names the programs of that work and computes none of them.

Within `rehearsing` the flow runs as ever, but a program's call is only noted down, and zeros of its result's shapes
are handed back. So the very code that will do the work says which programs it takes, of which shapes and how often:
for a machine that isn't there, or to compile them all before the first picture. Weights may be shapes (`shapes_of`).

What an editor computes once and keeps (the null prompt's condition) would stay zeros: rehearse with a copy of it.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from uam_jax.engine.batch_axes import batch_size, cut, leaf_axes, map_batched, pad, specs
from uam_jax.engine.parallel import (
    Devices,
    Program,
    Static,
    instead_of_running,
    place_of,
    platform_at,
)
from uam_jax.errors import InputError
from uam_jax.runtime.platforms import Platform


@dataclass(frozen=True)
class Call:
    """A program with its static arguments and the shapes of its arrays; equal calls run the same compiled program.

    Attributes:
      program: the function.
      static: its static arguments, by name.
      shapes: of the leaves of its arrays, padded and placed as they run.
      tree: in which these leaves lie.
      on: the devices that split the batch.
      platform: for which the program is made.
    """

    program: Program
    static: Static
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    tree: Any
    on: Devices | None
    platform: Platform

    @property
    def name(self) -> str:
        """The function's name."""
        return self.program.name

    @functools.cached_property
    def traced(self) -> Any:
        """The traced program, to look into or to lower."""
        jitted = self.program.jitted(self.on, self.platform, self.static)
        return jitted.trace(*self.tree.unflatten(self.shapes))

    def lower(self) -> Any:
        """The program lowered for its platform, of which no device is needed; `.compile()` follows."""
        return self.traced.lower(lowering_platforms=(self.platform.lowering,))


@contextmanager
def rehearsing(platform: Platform | None = None) -> Iterator[Counter[Call]]:
    """Runs no program in the `with` block, and counts the calls of each, in the order of their first.

    Args:
      platform: for which the programs are made, if not that of the devices on which they would run.

    Raises:
      InputError: a program is to run under `jax.pmap`, whose programs can't be traced.
    """
    calls: Counter[Call] = Counter()

    def note(program: Program, static: Static, arrays: Any, on: Devices | None) -> Any:
        call, count = _call(program, static, arrays, on, platform)
        calls[call] += 1
        # The first of equal calls keeps its trace.
        call = next(each for each in calls if each == call)
        made = call.traced.out_info
        if count is not None:
            made = map_batched(made, program.out, functools.partial(_shortened, count=count))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made)

    with instead_of_running(note):
        yield calls


def shapes_of(tree: Any, devices: Devices | None = None) -> Any:
    """The shapes of arrays, in place of them; with devices, as if each held all of them."""
    place = None if devices is None else NamedSharding(devices.mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def _call(
    program: Program, static: Static, arrays: Any, on: Devices | None, platform: Platform | None
) -> tuple[Call, int | None]:
    """The call as `Program.__call__` would do it, and where its batch is padded the number of examples."""
    leaves, tree = jax.tree.flatten(arrays)
    axes = tuple(leaf_axes(arrays, program.axes))
    shapes, count = jax.eval_shape(lambda *each: each, *leaves), None
    if on is None:
        own = place_of(arrays, program.axes)
        places = [own if isinstance(own, NamedSharding) else None] * len(axes)
        platform = platform or platform_at(own)
    elif on.mode == "pmap":
        raise InputError("programs under pmap can't be rehearsed: choose shard_map")
    else:
        count, whole = batch_size(shapes, axes), functools.partial(pad, multiple=len(on))
        shapes = jax.eval_shape(lambda given: map_batched(given, axes, whole), shapes)
        places = [NamedSharding(on.mesh, specs(axis)) for axis in axes]
        platform = platform or on.platform
    placed = tuple(
        jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=place, weak_type=each.weak_type)
        for each, place in zip(shapes, places, strict=True)
    )
    return Call(program, static, placed, tree, on, platform), count


def _shortened(leaf: Any, axis: int, *, count: int) -> Any:
    return jax.eval_shape(functools.partial(cut, axis=axis, count=count), leaf)
