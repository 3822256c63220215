"""The kind of device that a program is made for, which decides between forms of the same computation.

It is a plain value that travels with a trace, so that a program can be made for a TPU on a machine without one.
"""

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Platform:
    """A kind of device.

    Attributes:
      name: as JAX has it, "cpu", "gpu" or "tpu".
      capability: the compute capability of NVIDIA's GPUs, (8, 0) is Ampere; None for all others.
    """

    name: str
    capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, device: Any) -> "Platform":
        """The kind of one of JAX's devices."""
        # "8.0" on NVIDIA's GPUs, "gfx90a" and the like on others, nothing on a CPU or TPU.
        found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
        return cls(device.platform, (int(found[1]), int(found[2])) if found else None)

    @property
    def lowering(self) -> str:
        """The name by which JAX lowers programs for it."""
        if self.name != "gpu":
            return self.name
        return "cuda" if self.capability else "rocm"


def default_device() -> Any:
    """The device that JAX runs on where nothing says otherwise."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return chosen if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[0]


# A part of the key of all of JAX's caches: what was traced for one platform is never taken for another.
_traced_for = jax.make_user_context(None)


def tracing_for(platform: Platform) -> AbstractContextManager[None]:
    """Makes what is traced inside for `platform`."""
    return _traced_for(platform)


def current() -> Platform:
    """The platform that is being traced for; outside of `tracing_for`, the default device's."""
    return _traced_for.value or Platform.of(default_device())
