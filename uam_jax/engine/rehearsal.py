"""The host's part of some work alone, which names the programs of that work and computes none of them.

Within `rehearsing` the flow runs as ever, but a program's call is only noted down, and zeros of its result's shapes
are handed back. So the very code that will do the work says which programs it takes, of which shapes and how often:
for a machine that isn't there (`rehearsing`, where weights may be shapes), or for this one, to compile them together
before the first picture (`compile_together`).

What an editor computes once and keeps (the null prompt's condition) would stay zeros: rehearse with a copy of it.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from uam_jax.engine.batch_axes import batch_size, cut, leaf_axes, map_batched, pad, specs
from uam_jax.engine.parallel import (
    Devices,
    Program,
    Static,
    instead_of_running,
    is_placed,
    place_of,
    platform_at,
)
from uam_jax.errors import InputError
from uam_jax.runtime import backend
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


def compile_together(work: Callable[[], Any]) -> None:
    """Compiles the programs that some work will run, as many at a time as there are processor cores.

    Afterwards the work finds them compiled. The arrays that it begins with are those of a real call, on their devices.

    Args:
      work: what will be done; its result is of zeros, and it is called once.
    """
    with rehearsing(here=True) as calls:
        work()
    with ThreadPoolExecutor(backend.cores()) as pool:
        # Lowering holds Python's lock, the compiler doesn't.
        futures = [pool.submit(call.lower().compile) for call in calls]
    for future in futures:
        future.result()


@contextmanager
def rehearsing(platform: Platform | None = None, *, here: bool = False) -> Iterator[Counter[Call]]:
    """Runs no program in the `with` block, and counts the calls of each, in the order of their first.

    Args:
      platform: for which the programs are made, if not that of the devices on which they would run.
      here: the devices are this process's and hold the arrays; a shape has a place just where its array was put on one,
        as JAX tells compiled programs apart. Otherwise devices may be absent, and weights may be shapes.

    Raises:
      InputError: a program is to run under `jax.pmap`, whose programs can't be traced.
    """
    calls: Counter[Call] = Counter()

    def note(program: Program, static: Static, arrays: Any, on: Devices | None) -> Any:
        if on is not None and on.mode == "pmap":
            raise InputError("programs under pmap can't be rehearsed: choose shard_map")
        if here:
            call, count = _call_here(program, static, arrays, on), None
        else:
            call, count = _call(program, static, arrays, on, platform)
        calls[call] += 1
        # The first of equal calls keeps its trace.
        call = next(each for each in calls if each == call)
        if here:
            return _zeros(call, arrays)
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


def _call_here(program: Program, static: Static, arrays: Any, on: Devices | None) -> Call:
    """The call as `Program.__call__` does it."""
    placed, platform = program.placed(arrays, on)
    leaves, tree = jax.tree.flatten(placed)
    shapes = (
        jax.ShapeDtypeStruct(
            np.shape(leaf),
            jax.typeof(leaf).dtype,
            sharding=leaf.sharding if is_placed(leaf) else None,
            weak_type=jax.typeof(leaf).weak_type,
        )
        for leaf in leaves
    )
    return Call(program, static, tuple(shapes), tree, on, platform)


def _zeros(call: Call, arrays: Any) -> Any:
    """Zeros in place of the result, where the program would leave it."""
    program, on = call.program, call.on
    zeros, tree = jax.tree.flatten(
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), call.traced.out_info)
    )
    if on is not None:
        axes = leaf_axes(tree.unflatten(zeros), program.out)
        places = [NamedSharding(on.mesh, specs(axis)) for axis in axes]
        made = tree.unflatten(jax.device_put(zeros, places))
        return program.cut(made, arrays)
    if any(each.sharding for each in call.shapes):
        zeros = jax.device_put(zeros, place_of(arrays, program.axes))
    return tree.unflatten(zeros)


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
