"""Trees of arrays whose leaves have a batch axis or are shared: their axes, split, padding and cut.

Axes are a prefix tree: a number where every leaf below has its batch along that axis, None where all are shared.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

AXIS = "data"
"""The name of the one axis of devices."""


def _is_none(x: Any) -> bool:
    return x is None


def specs(axes: Any) -> Any:
    """How a mesh of devices along `AXIS` splits the leaves."""

    def spec(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)

    return jax.tree.map(spec, axes, is_leaf=_is_none)


def map_batched(tree: Any, axes: Any, change: Callable[[Any, int], Any]) -> Any:
    """Applies `change(leaf, axis)` below every axis of the prefix tree `axes`."""

    def below(axis: int | None, subtree: Any) -> Any:
        return subtree if axis is None else jax.tree.map(lambda leaf: change(leaf, axis), subtree)

    return jax.tree.map(below, axes, tree, is_leaf=_is_none)


def leaf_axes(tree: Any, axes: Any) -> list[int | None]:
    """The axis of every leaf, in order."""
    found: list[int | None] = []

    def below(axis: int | None, subtree: Any) -> None:
        found.extend([axis] * len(jax.tree.leaves(subtree)))

    jax.tree.map(below, axes, tree, is_leaf=_is_none)
    return found


def batch_size(tree: Any, axes: Any) -> int:
    """The number of examples, of which all batched leaves have the same."""
    sizes: set[int] = set()
    map_batched(tree, axes, lambda leaf, axis: sizes.add(leaf.shape[axis]) or leaf)
    [size] = sizes
    return size


def pad(leaf: Any, axis: int, *, multiple: int) -> Any:
    """Repeats the last example until their number is a multiple."""
    missing = -leaf.shape[axis] % multiple
    if not missing:
        return leaf
    last = jnp.take(leaf, jnp.asarray([leaf.shape[axis] - 1] * missing), axis=axis)
    return jnp.concatenate([leaf, last], axis)


def cut(leaf: Any, axis: int, *, count: int) -> Any:
    """The first `count` examples."""
    return leaf if leaf.shape[axis] == count else jax.lax.slice_in_dim(leaf, 0, count, axis=axis)
