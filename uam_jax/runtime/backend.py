"""Sets up and describes JAX: its device, its precision and its cache of compiled programs."""

import contextlib
import os
import platform
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from uam_jax.errors import InputError, shortened
from uam_jax.files import at_home, local_path

_PLATFORMS = "JAX_PLATFORMS"
_PATIENCE_SECONDS = 7 * 24 * 3600

Device = Literal["cpu", "gpu", "tpu"]
Precision = Literal["default", "high", "highest"]


def configure(
    *,
    device: Device | None = None,
    devices: int | None = None,
    precision: Precision | None = None,
    cache: Path | None = None,
) -> None:
    """Sets up JAX. An argument that is None leaves the setting of JAX and its environment variables.

    A cache folder that cannot be written gives only a warning, because everything works without a cache.

    Args:
      device: kind of device to compute on.
      devices: least number of virtual devices of a CPU; they share its cores and each takes a part of the batch.
      precision: precision of matrix products.
      cache: folder for compiled programs.

    Raises:
      InputError: JAX has no such device, or cannot use the platforms in JAX_PLATFORMS.
    """
    import jax

    if devices and devices > jax.config.jax_num_cpu_devices:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_num_cpu_devices", devices)
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # leaves the accelerator's memory alone
    elif device:
        try:
            jax.config.update("jax_default_device", jax.local_devices(backend=device)[0])
        except (RuntimeError, AssertionError):
            chosen = os.environ.get(_PLATFORMS)
            reason = f" ({_PLATFORMS}={chosen} is set: unset it)" if chosen else ""
            raise InputError(
                f"--device {device}: JAX finds none{reason}; install the extra `cuda` or `tpu`, or leave the option out"
            ) from None
    check_platforms()
    if precision:
        jax.config.update("jax_default_matmul_precision", precision)
    if cache:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache):
                pass
        except OSError as error:
            message = (
                f"compiling without a cache, since {cache} cannot be written: {error.strerror}"
            )
            warnings.warn(message, UserWarning, stacklevel=2)
        else:
            jax.config.update("jax_compilation_cache_dir", str(cache))
            # JAX's own threshold of a second would leave out most of a small model's programs.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def check_platforms() -> None:
    """Makes JAX look for its devices.

    Raises:
      InputError: JAX finds no device, or cannot use the platforms in JAX_PLATFORMS.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a platform is not installed
        chosen = os.environ.get(_PLATFORMS)
        first = shortened(next(iter(str(error).splitlines()), "it is not installed"), 200)
        if chosen:
            raise InputError(
                f"{_PLATFORMS}={chosen}: JAX can't use it ({first}); install the extra `cuda` or `tpu`, or unset "
                f"{_PLATFORMS}"
            ) from None
        raise InputError(f"JAX can't use its devices ({first}): try --device cpu") from None


def cache_folder() -> Path | None:
    """Returns the default folder for compiled programs.

    It is None if JAX_COMPILATION_CACHE_DIR is a URL, which JAX reads by itself, and if the user has no home folder, so
    that nothing is kept.
    """
    if own := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        path = local_path(own)
        return None if path is None else Path(at_home(path))
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    # A user without an entry and without HOME, as in some containers, has no home.
    return Path(base) / "uam_jax" / "xla" if os.path.isabs(base) else None


def join_processes(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> tuple[int, int]:
    """Joins the processes of several hosts, each of which computes on its own devices.

    JAX finds an argument that is None by itself, for example on TPU VMs and under SLURM.

    Args:
      coordinator: "HOST:PORT" of the first process.
      processes: number of processes.
      process: number of this process, from 0.

    Returns:
      The number of this process, and the number of processes.

    Raises:
      InputError: there are no other processes, or the coordinator cannot be reached.
    """
    import jax

    try:
        # At the end the processes wait for each other. If one of them gave up, JAX would end all the others.
        jax.distributed.initialize(
            coordinator, processes, process, shutdown_timeout_seconds=_PATIENCE_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"--distributed: {first}; give --coordinator, --processes and --process, or use --shard"
        ) from None
    return jax.process_index(), jax.process_count()


class CompileClock:
    """Measures the seconds in which JAX traces or compiles inside a `with` block, several programs at once or not."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        """Seconds of tracing and compiling so far."""
        # A program may be traced within another or compiled beside it: no second counts twice.
        total = last = 0.0
        for start, end in sorted(self._spans):
            total += max(end, last) - max(start, last)
            last = max(end, last)
        return total

    def __enter__(self) -> Self:
        import jax.monitoring

        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import jax.monitoring

        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            self._spans.append((end - duration_secs, end))


def version() -> str:
    """Returns the version of this package."""
    return versions("uam_jax")["uam_jax"]


def describe_machine() -> dict[str, Any]:
    """Describes the versions of the libraries and the devices, for a summary."""
    import jax

    from uam_jax.runtime.platforms import default_device

    device = default_device()
    return {
        "versions": versions("uam_jax", "jax", "jaxlib", "flax"),
        "device": f"{device.platform}: {device.device_kind}",
        "devices": len(jax.devices(device.platform)),
    }


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_host() -> dict[str, Any]:
    """Describes the processor, the cores that this process may use, the system and Python, for a summary."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(": ")[2] for line in lines if "model name" in line), name)
    return {
        "processor": name,
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Returns the installed version of each package, or "not installed"."""

    def installed(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {package: installed(package) for package in packages}
