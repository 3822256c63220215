"""One program over several devices: the batch is split, weights are replicated, and nothing is exchanged."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from uam_jax.engine.batch_axes import AXIS, batch_size, cut, leaf_axes, map_batched, pad, specs
from uam_jax.errors import InputError
from uam_jax.runtime.platforms import Platform, default_device, tracing_for

Mode = Literal["shard_map", "pmap"]
Static = tuple[tuple[str, Any], ...]
"""Static arguments by name."""


@dataclass(frozen=True)
class Devices:
    """Where programs run, each device on its part of the batch.

    Attributes:
      devices: of one platform; on several hosts, this process's own.
      mode: "shard_map", or the older "pmap", with equal results.
    """

    devices: tuple[Any, ...]
    mode: Mode = "shard_map"

    @classmethod
    def local(cls, count: int | None = None, mode: str = "shard_map") -> "Devices":
        """The first `count` of this process's devices, or all.

        Raises:
          InputError: there are not so many, or no such mode.
        """
        if mode not in get_args(Mode):
            raise InputError(f"parallel is {mode!r}: choose {' or '.join(get_args(Mode))}")
        found = jax.local_devices(backend=default_device().platform)
        if count is not None and not 1 <= count <= len(found):
            raise InputError(f"{count} devices asked for, and JAX finds {len(found)} here")
        return cls(tuple(found[:count]), mode)

    def __len__(self) -> int:
        return len(self.devices)

    @property
    def mesh(self) -> Mesh:
        """All devices along one axis."""
        return Mesh(np.asarray(self.devices), (AXIS,), axis_types=(AxisType.Auto,))

    @property
    def platform(self) -> Platform:
        """The kind of the devices."""
        return Platform.of(self.devices[0])

    def replicate(self, tree: Any) -> Any:
        """Copies arrays to every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))


def gather(tree: Any) -> Any:
    """Arrays that were put anywhere on JAX's default device, the others as they are."""
    place = SingleDeviceSharding(default_device())
    return jax.tree.map(functools.partial(_bring, place=place), tree)


def platform_of(shared: Any, on: Devices | None = None) -> Platform:
    """The kind of device that programs with these weights run on."""
    return on.platform if on else platform_at(place_of([shared], [None]))


_instead: ContextVar[Callable[..., Any] | None] = ContextVar("instead", default=None)


@contextmanager
def instead_of_running(
    take: Callable[["Program", Static, tuple[Any, ...], Devices | None], Any],
) -> Iterator[None]:
    """Hands every call of a program in the `with` block to `take`, whose result is the call's."""
    before = _instead.set(take)
    try:
        yield
    finally:
        _instead.reset(before)


class Program:
    """A pure function, compiled once for each set of shapes, static arguments and devices.

    Calling it with `on=None` runs it where its shared arguments (the weights) were put, or else its batch,
    or else on JAX's default device. With devices, every argument with a batch axis is padded to a multiple
    of their number by repeating its last example, and split; the padding is cut off the results. Wherever
    the caller's arrays are, they are brought there.

    Attributes:
      axes: batch axes of the array arguments, in order.
      out: those of the result.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        static: Sequence[str],
        batched: Mapping[str, Any],
        out: Any,
        donated: Sequence[str] = (),
    ):
        """Declares the function's arguments.

        Args:
          function: of arrays and static arguments.
          static: arguments that decide the program; hashable.
          batched: batch axes of array arguments, where not all of an argument's leaves are shared; a
            tree of axes for a tree, None for a shared part.
          out: batch axes of the result, likewise.
          donated: arguments whose memory the result may take.
        """
        functools.update_wrapper(self, function)
        self._function, self._static, self._donated = function, frozenset(static), donated
        self._jitted: dict[Any, Any] = {}
        self._signature = inspect.signature(function)
        self._arrays = [name for name in self._signature.parameters if name not in self._static]
        self.axes, self.out = tuple(batched.get(name) for name in self._arrays), out

    def __call__(self, *args: Any, on: Devices | None = None, **kwargs: Any) -> Any:
        """Runs the function, or within a rehearsal takes part in that."""
        static, arrays = self._split(args, kwargs)
        if instead := _instead.get():
            return instead(self, static, arrays, on)
        placed, platform = self.placed(arrays, on)
        result = self.jitted(on, platform, static)(*placed)
        return result if on is None else self.cut(result, arrays)

    def placed(self, arrays: Any, on: Devices | None) -> tuple[Any, Platform]:
        """The arrays as the jitted function takes them: padded and where it runs; and its platform."""
        if on is None:
            place = place_of(arrays, self.axes)
            return jax.tree.map(functools.partial(_bring, place=place), arrays), platform_at(place)
        arrays = map_batched(arrays, self.axes, functools.partial(pad, multiple=len(on)))
        return _spread(arrays, self.axes, on), on.platform

    def cut(self, result: Any, arrays: Any) -> Any:
        """The result for the examples of `arrays`, without the padding's."""
        count = batch_size(arrays, self.axes)
        return map_batched(result, self.out, functools.partial(cut, count=count))

    def trace(
        self,
        *args: Any,
        on: Devices | None = None,
        platform: Platform | None = None,
        **kwargs: Any,
    ) -> Any:
        """The traced program for these arguments, to look into or to lower.

        Args:
          *args: the function's.
          on: devices; not in the mode "pmap".
          platform: that it is made for, if not that on which it would run here.
          **kwargs: the function's.
        """
        static, arrays = self._split(args, kwargs)
        if platform is None:
            platform = on.platform if on else platform_at(place_of(arrays, self.axes))
        return self.jitted(on, platform, static).trace(*arrays)

    def lower(
        self,
        *args: Any,
        on: Devices | None = None,
        platform: Platform | None = None,
        **kwargs: Any,
    ) -> Any:
        """`trace`, lowered; for another platform also where there is no device of it."""
        traced = self.trace(*args, on=on, platform=platform, **kwargs)
        return traced.lower(lowering_platforms=platform and (platform.lowering,))

    def _split(self, args: Any, kwargs: Any) -> tuple[Static, tuple[Any, ...]]:
        given = self._signature.bind(*args, **kwargs)
        given.apply_defaults()
        static = tuple((name, given.arguments[name]) for name in sorted(self._static))
        return static, tuple(given.arguments[name] for name in self._arrays)

    def jitted(self, on: Devices | None, platform: Platform, static: Static) -> Any:
        """The jitted function of the array arguments, in order."""
        key = on, platform, static
        if key not in self._jitted:
            self._jitted[key] = self._jit(*key)
        return self._jitted[key]

    @property
    def name(self) -> str:
        """The function's."""
        return self._function.__name__

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far."""
        return sum(jitted._cache_size() for jitted in self._jitted.values())

    def clear_cache(self) -> None:
        """Forgets all compiled programs."""
        self._jitted.clear()

    def _jit(self, on: Devices | None, platform: Platform, static: Static) -> Any:
        def bound(*arrays: Any) -> Any:
            given = dict(zip(self._arrays, arrays, strict=True))
            with tracing_for(platform):
                return self._function(**given, **dict(static))

        bound.__name__ = self.name
        donate = [index for index, name in enumerate(self._arrays) if name in self._donated]
        if on is None:
            return jax.jit(bound, donate_argnums=donate)
        if on.mode == "pmap":
            return _Mapped(bound, self.axes, self.out, on)
        split = jax.shard_map(
            bound,
            mesh=on.mesh,
            in_specs=specs(self.axes),
            out_specs=specs(self.out),
            # JAX's attention kernel for TPUs does not declare that its result varies over devices.
            check_vma=platform.name != "tpu",
        )
        return jax.jit(split, donate_argnums=donate)


class _Mapped:
    """`jax.pmap` in the shape of `jax.jit`: an axis of devices comes and goes on either side of it."""

    def __init__(self, function: Callable[..., Any], axes: Any, out: Any, on: Devices):
        self._function, self._axes, self._out, self._on = function, axes, out, on
        self._mapped: dict[Any, Any] = {}

    def __call__(self, *arrays: Any) -> Any:
        # Leaf by leaf: trees may check the shapes that they are built with.
        leaves, tree = jax.tree.flatten(arrays)
        axes = leaf_axes(arrays, self._axes)
        if tree not in self._mapped:
            self._mapped[tree] = jax.pmap(
                lambda *leaves: self._function(*tree.unflatten(leaves)),
                AXIS,
                in_axes=tuple(axes),
                out_axes=self._out,
                devices=self._on.devices,
            )
        parts = [
            leaf if axis is None else _fold(leaf, axis, self._on)
            for leaf, axis in zip(leaves, axes, strict=True)
        ]
        return map_batched(self._mapped[tree](*parts), self._out, _unfold)

    def _cache_size(self) -> int:
        return sum(mapped._cache_size() for mapped in self._mapped.values())


def program(
    *, static: Sequence[str], batched: Mapping[str, Any], out: Any, donated: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Program]:
    """Makes a `Program` of the function below it."""
    return functools.partial(Program, static=static, batched=batched, out=out, donated=donated)


def is_placed(leaf: Any) -> bool:
    """Whether somebody has put an array where it is; others JAX takes along by itself."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding is not None
    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return concrete and leaf.committed


def place_of(arrays: Any, axes: Any) -> Sharding:
    """Where a program without devices runs: one device, or weights' mesh, all of it doing the same."""
    leaves = list(zip(jax.tree.leaves(arrays), leaf_axes(arrays, axes), strict=True))
    for leaf, axis in sorted(leaves, key=lambda each: each[1] is not None):
        if not is_placed(leaf):
            continue
        if len(leaf.sharding.device_set) == 1:
            return SingleDeviceSharding(*leaf.sharding.device_set)
        if axis is None and isinstance(leaf.sharding, NamedSharding):
            return NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return SingleDeviceSharding(default_device())


def platform_at(place: Sharding) -> Platform:
    return Platform.of(next(iter(place.device_set)))


def _bring(leaf: Any, place: Sharding) -> Any:
    elsewhere = is_placed(leaf) and leaf.sharding.device_set != place.device_set
    return jax.device_put(leaf, place) if elsewhere else leaf


def _spread(arrays: Any, axes: Any, on: Devices) -> Any:
    """Every array that has a place on its part of the devices."""
    leaves, tree = jax.tree.flatten(arrays)
    along = leaf_axes(arrays, axes)
    places = {axis: NamedSharding(on.mesh, specs(axis)) for axis in set(along)}

    def spread(leaf: Any, place: Sharding) -> Any:
        elsewhere = is_placed(leaf) and leaf.sharding != place
        return jax.device_put(leaf, place) if elsewhere else leaf

    return tree.unflatten(
        spread(leaf, places[axis]) for leaf, axis in zip(leaves, along, strict=True)
    )


def _fold(leaf: Any, axis: int, on: Devices) -> Any:
    """An axis of devices before the batch, laid out as `pmap` wants to find it."""
    shape = leaf.shape
    parts = jnp.reshape(leaf, (*shape[:axis], len(on), shape[axis] // len(on), *shape[axis + 1 :]))
    return jax.device_put(parts, NamedSharding(on.mesh, specs(axis)))


def _unfold(leaf: Any, axis: int) -> Any:
    shape = leaf.shape
    return jnp.reshape(leaf, (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]))
