"""Times and memory of a function, and the speed of a matrix product to compare with."""

import ctypes
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from uam_jax.runtime import backend


def timed(
    run: Callable[[], Any], repeats: int, devices: Any, say: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds of compilation, of the first run without it and of the repeats, and the peak memory."""
    import jax

    def seconds() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - began

    with backend.CompileClock() as clock:
        first = seconds()
    _forget_peak()
    times = []
    for number in range(repeats):
        say(f"{number + 1} of {repeats}")
        times.append(seconds())
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75])
    return {
        "compile_seconds": clock.seconds,
        "first_seconds": max(first - clock.seconds, 0.0),
        "seconds": {"median": median, "low": low, "high": high, "all": times},
        "memory": peak_memory(devices),
    }


def product_rate(dtype: str, platform: str) -> float:
    """FLOP/s of a large matrix product on this machine: a practical limit for chips whose peak is unknown."""
    import jax

    side, turns = (2048, 4) if platform == "cpu" else (8192, 20)

    @jax.jit
    def multiply(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, turns, lambda _, y: (y @ x).astype(x.dtype), x)

    # Scaled so that its powers neither grow nor vanish.
    x = jax.random.normal(jax.random.key(0), (side, side), dtype) / side**0.5
    multiply(x).block_until_ready()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        multiply(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * side**3 * turns / min(times)


def _forget_peak() -> None:
    """Resets the process's peak memory after compilation, where the system allows it (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(devices: Any) -> dict[str, Any]:
    """Peak memory: of one device, as its allocator reports it, or else of the process."""
    stats = devices.devices[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"gigabytes": stats["peak_bytes_in_use"] / 1e9, "of": "the device, since the start"}
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith("VmHWM"))
        return {"gigabytes": int(line.split()[1]) * 1024 / 1e9, "of": "the process, in the repeats"}
    try:
        import resource
    except ImportError:  # Windows
        return {"gigabytes": None, "of": "nothing, since this system does not report it"}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"gigabytes": peak / 1e9, "of": "the process, since the start"}
