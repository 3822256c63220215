"""The kind of device that a program is compiled for; it decides between forms of the same computation.

It is a plain value that belongs to a trace, so that a program can be lowered for a TPU on a machine without one.
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
      name: JAX's name: "cpu", "gpu" or "tpu".
      capability: the compute capability of NVIDIA's GPUs, such as (8, 0) for Ampere; None for all others.
    """

    name: str
    capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, device: Any) -> "Platform":
        """Returns the platform of one of JAX's devices."""
        # "8.0" on NVIDIA's GPUs, "gfx90a" and the like on others, nothing on a CPU or TPU.
        found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
        return cls(device.platform, (int(found[1]), int(found[2])) if found else None)

    @property
    def lowering(self) -> str:
        """The name under which JAX lowers programs for this platform."""
        if self.name != "gpu":
            return self.name
        return "cuda" if self.capability else "rocm"


def usual_dtype(platform: Platform) -> str:
    """Returns the number format in which networks are fast on a platform and come close to their float32 results.

    bfloat16 on TPUs and on GPUs that multiply it (AMD's, and NVIDIA's from Ampere on), float16 on NVIDIA's older GPUs,
    such as the T4, and float32 on CPUs.
    """
    if platform.name == "cpu":
        return "float32"
    return "float16" if platform.capability and platform.capability < (8, 0) else "bfloat16"


def default_device() -> Any:
    """Returns the device that JAX uses by default."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return chosen if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[0]


# It is part of the key of all of JAX's caches: a trace for one platform is never used for another.
_traced_for = jax.make_user_context(None)


def tracing_for(platform: Platform) -> AbstractContextManager[None]:
    """Makes every trace inside the `with` block a trace for `platform`."""
    return _traced_for(platform)


def current() -> Platform:
    """Returns the platform of the current trace; outside of `tracing_for`, that of the default device."""
    return _traced_for.value or Platform.of(default_device())
