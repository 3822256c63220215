"""The arrays that pass between the host and the devices while a test runs."""

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.array import ArrayImpl

from uam_jax.engine.parallel import Program


class Transfers:
    """The shapes of the arrays of every call that brings some to the host or to the devices, in order.

    Calls within such a call don't count.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.to_host: list[list[tuple[int, ...]]] = []
        self.to_devices: list[list[tuple[int, ...]]] = []
        self._thread = threading.local()

        def watch(owner: Any, names: str, kept: list[Any], kind: type) -> None:
            for name in names.split():
                counted = self._counted(getattr(owner, name), kept, kind)
                monkeypatch.setattr(owner, name, counted)

        watch(jax, "device_get", self.to_host, jax.Array)
        watch(np, "asarray array stack", self.to_host, jax.Array)
        watch(jax, "device_put", self.to_devices, np.ndarray)
        watch(jnp, "asarray array stack", self.to_devices, np.ndarray)
        watch(Program, "__call__", self.to_devices, np.ndarray)
        value: Any = ArrayImpl._value  # of `float(x)`, `x.item()`, `x.tolist()`
        value = self._counted(value.fget, self.to_host, jax.Array)
        monkeypatch.setattr(ArrayImpl, "_value", property(value))

    def _counted(
        self, function: Callable[..., Any], kept: list[Any], kind: type
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            leaves = jax.tree.leaves((arguments, options))
            found = [leaf.shape for leaf in leaves if isinstance(leaf, kind)]
            if not found or getattr(self._thread, "inside", False):
                return function(*arguments, **options)
            kept.append(found)
            self._thread.inside = True
            try:
                return function(*arguments, **options)
            finally:
                self._thread.inside = False

        return call
