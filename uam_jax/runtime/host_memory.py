"""The host's memory for pictures at their own size: its free part, and a bound on the part that is used at a time."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHARE = 1 / 16
"""Share of the free memory that is the default bound. The rest is for the model, JAX and other programs."""

_UNKNOWN = 20_000_000_000
"""Bytes that are assumed to be free where the system does not report it."""


class Budget:
    """A bound on the bytes that threads use at the same time.

    A thread that needs more than the bound runs alone. A thread that holds bytes must not wait for more of them.
    """

    def __init__(self, total: int | None = None):
        """Sets the bound in bytes; by default it is a share of the free memory."""
        self.total = int(free_bytes() * SHARE) if total is None else total
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Waits until `count` bytes are free, and holds them inside the `with` block."""
        count = min(count, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._used + count <= self.total)
            self._used += count
        try:
            yield
        finally:
            with self._changed:
                self._used -= count
                self._changed.notify_all()


def free_bytes(root: Path = Path("/")) -> int:
    """Returns the bytes that this process may still use, within the system's memory and its container's limits.

    Args:
      root: root of the file system with the folders `proc` and `sys`.
    """
    found = [each for each in (_system_free(root), *_left_in_groups(root)) if each is not None]
    return max(min(found, default=_UNKNOWN), 0)


def resident_bytes(root: Path = Path("/")) -> int:
    """Returns the bytes that this process uses now; 0 where the system does not report it."""
    try:
        pages = (root / "proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


def _system_free(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:  # not Linux: half of the memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (OSError, ValueError, AttributeError):
        return None


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yields the bytes left in this process's control groups (version 1 or 2) and in their parent groups."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines or ["0::/"]:
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if kinds and "memory" not in kinds.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if kinds else "")
        limit, usage, cached = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if kinds
            else ("memory.max", "memory.current", "inactive_file")
        )
        # Inside a container, its own group is mounted as the root, although the path is that of the host.
        own = base / path.strip("/")
        for group in (own, *own.parents):
            if (most := _number(group / limit)) is not None:
                used = _number(group / usage) or 0
                yield most - used + _statistic(group / "memory.stat", cached)
            if group == base:
                break


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())  # "max" means no limit
    except (OSError, ValueError):
        return None


def _statistic(file: Path, name: str) -> int:
    try:
        return int(dict(line.split(maxsplit=1) for line in file.read_text().splitlines())[name])
    except (OSError, ValueError, KeyError):
        return 0
