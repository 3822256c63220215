"""One program over several devices: the batch is split, weights are replicated, and nothing is exchanged."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from uam_jax.errors import InputError

Mode = Literal["shard_map", "pmap"]
_AXIS = "data"


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
        [first] = jnp.zeros(()).devices()  # the default device's platform, however that was chosen
        found = jax.local_devices(backend=first.platform)
        if count is not None and not 1 <= count <= len(found):
            raise InputError(f"{count} devices asked for, and JAX finds {len(found)} here")
        return cls(tuple(found[:count]), mode)

    def __len__(self) -> int:
        return len(self.devices)

    @property
    def mesh(self) -> Mesh:
        """All devices along one axis."""
        return Mesh(np.asarray(self.devices), (_AXIS,), axis_types=(AxisType.Auto,))

    def replicate(self, tree: Any) -> Any:
        """Copies arrays to every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))


class Program:
    """A pure function, compiled once for each set of shapes, static arguments and devices.

    Calling it with `on=None` runs it where its arguments are. With devices, every argument with a batch
    axis is padded to a multiple of their number by repeating its last example, and split; the padding
    is cut off the results.
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
        self._axes, self._out = tuple(batched.get(name) for name in self._arrays), out

    def __call__(self, *args: Any, on: Devices | None = None, **kwargs: Any) -> Any:
        """Runs the function."""
        static, arrays = self._split(args, kwargs)
        run = self.compiled(on, static)
        if on is None:
            return run(*arrays)
        count = _batch(arrays, self._axes)
        arrays = _map(arrays, self._axes, functools.partial(_pad, multiple=len(on)))
        result = run(*arrays)
        return _map(result, self._out, functools.partial(_cut, count=count))

    def lower(self, *args: Any, on: Devices | None = None, **kwargs: Any) -> Any:
        """The lowered program for these arguments, to look into."""
        static, arrays = self._split(args, kwargs)
        return self.compiled(on, static).lower(*arrays)

    def _split(self, args: Any, kwargs: Any) -> tuple[tuple[tuple[str, Any], ...], tuple[Any, ...]]:
        given = self._signature.bind(*args, **kwargs)
        given.apply_defaults()
        static = tuple((name, given.arguments[name]) for name in sorted(self._static))
        return static, tuple(given.arguments[name] for name in self._arrays)

    def compiled(self, on: Devices | None, static: tuple[tuple[str, Any], ...]) -> Any:
        """The jitted function of the array arguments, in order."""
        if (on, static) not in self._jitted:
            self._jitted[on, static] = self._jit(on, static)
        return self._jitted[on, static]

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far."""
        return sum(jitted._cache_size() for jitted in self._jitted.values())

    def clear_cache(self) -> None:
        """Forgets all compiled programs."""
        self._jitted.clear()

    def _jit(self, on: Devices | None, static: tuple[tuple[str, Any], ...]) -> Any:
        def bound(*arrays: Any) -> Any:
            return self._function(**dict(zip(self._arrays, arrays, strict=True)), **dict(static))

        bound.__name__ = self._function.__name__
        donate = [index for index, name in enumerate(self._arrays) if name in self._donated]
        if on is None:
            return jax.jit(bound, donate_argnums=donate)
        if on.mode == "pmap":
            return _Mapped(bound, self._axes, self._out, on)
        split = jax.shard_map(
            bound, mesh=on.mesh, in_specs=_specs(self._axes), out_specs=_specs(self._out)
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
        axes: list[int | None] = []
        jax.tree.map(
            lambda axis, part: axes.extend([axis] * len(jax.tree.leaves(part))),
            self._axes,
            arrays,
            is_leaf=_is_none,
        )
        if tree not in self._mapped:
            self._mapped[tree] = jax.pmap(
                lambda *leaves: self._function(*tree.unflatten(leaves)),
                _AXIS,
                in_axes=tuple(axes),
                out_axes=self._out,
                devices=self._on.devices,
            )
        parts = [
            leaf if axis is None else _fold(leaf, axis, self._on)
            for leaf, axis in zip(leaves, axes, strict=True)
        ]
        return _map(self._mapped[tree](*parts), self._out, _unfold)

    def _cache_size(self) -> int:
        return sum(mapped._cache_size() for mapped in self._mapped.values())


def program(
    *, static: Sequence[str], batched: Mapping[str, Any], out: Any, donated: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Program]:
    """Makes a `Program` of the function below it."""
    return functools.partial(Program, static=static, batched=batched, out=out, donated=donated)


def _is_none(x: Any) -> bool:
    return x is None


def _specs(axes: Any) -> Any:
    def spec(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, _AXIS)

    return jax.tree.map(spec, axes, is_leaf=_is_none)


def _map(tree: Any, axes: Any, change: Callable[[Any, int], Any]) -> Any:
    """Applies `change(leaf, axis)` below every axis of the prefix tree `axes`."""

    def below(axis: int | None, subtree: Any) -> Any:
        return subtree if axis is None else jax.tree.map(lambda leaf: change(leaf, axis), subtree)

    return jax.tree.map(below, axes, tree, is_leaf=_is_none)


def _batch(tree: Any, axes: Any) -> int:
    sizes: set[int] = set()
    _map(tree, axes, lambda leaf, axis: sizes.add(leaf.shape[axis]) or leaf)
    [size] = sizes
    return size


def _pad(leaf: Any, axis: int, *, multiple: int) -> Any:
    missing = -leaf.shape[axis] % multiple
    if not missing:
        return leaf
    last = jnp.take(leaf, jnp.asarray([leaf.shape[axis] - 1] * missing), axis=axis)
    return jnp.concatenate([leaf, last], axis)


def _cut(leaf: Any, axis: int, *, count: int) -> Any:
    return leaf if leaf.shape[axis] == count else jax.lax.slice_in_dim(leaf, 0, count, axis=axis)


def _fold(leaf: Any, axis: int, on: Devices) -> Any:
    """An axis of devices before the batch, laid out as `pmap` wants to find it."""
    shape = leaf.shape
    parts = jnp.reshape(leaf, (*shape[:axis], len(on), shape[axis] // len(on), *shape[axis + 1 :]))
    return jax.device_put(parts, NamedSharding(on.mesh, _specs(axis)))


def _unfold(leaf: Any, axis: int) -> Any:
    shape = leaf.shape
    return jnp.reshape(leaf, (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]))
