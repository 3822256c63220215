"""The host's memory: limits of containers of both versions, and a bound that holds."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from uam_jax.runtime.host_memory import Budget, free_bytes, resident_bytes


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in {
        "proc/meminfo": "MemTotal: 64 kB\nMemAvailable: 32000 kB\n",
        **files,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 32_768_000),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "max\n"}, 32_768_000),
        (
            {"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "9000\n", f"{V2}/memory.current": "4000",
             f"{V2}/memory.stat": "anon 1\ninactive_file 500\n"},
            5500,
        ),
        (  # a limit around this process's own group
            {"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/memory.max": "9000", f"{V2}/a/memory.current": "1000",
             f"{V2}/a/b/memory.max": "max", f"{V2}/a/b/memory.current": "10"},
            8000,
        ),
        (
            {"proc/self/cgroup": "5:cpu:/x\n7:memory:/docker/1\n", f"{V1}/memory.limit_in_bytes": "7000",
             f"{V1}/memory.usage_in_bytes": "3000", f"{V1}/memory.stat": "total_inactive_file 100\n"},
            4100,
        ),
        (  # no limit, as version 1 says it
            {"proc/self/cgroup": "7:memory:/\n", f"{V1}/memory.limit_in_bytes": f"{2**63 - 4096}",
             f"{V1}/memory.usage_in_bytes": "3000"},
            32_768_000,
        ),
        (
            {"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "9000\n", f"{V2}/memory.current": "9500"},
            0,
        ),
    ],
)  # fmt: skip
def test_what_is_free_is_what_the_container_may_still_take(
    tmp_path: Path, files: dict[str, str], free: int
) -> None:
    assert free_bytes(machine(tmp_path, files)) == free


def test_a_system_that_tells_nothing_has_some(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 0 and resident_bytes(tmp_path) == 0
    assert free_bytes() > 0


def test_no_more_than_the_budget_is_held_and_what_is_larger_works_alone() -> None:
    budget, lock, held, most, alone = Budget(10), threading.Lock(), [0], [0], [True]

    def work(count: int) -> None:
        with budget.hold(count):
            with lock:
                held[0] += 1
                most[0] = max(most[0], held[0])
                alone[0] &= count <= 10 or held[0] == 1
            time.sleep(0.001)
            with lock:
                held[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [4, 5, 99, 4, 4, 11, 5, 3] * 5))
    assert most[0] <= 3 and alone[0] and held[0] == 0


def test_an_error_inside_gives_the_budget_back() -> None:
    budget = Budget(1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), budget.hold(1):
            raise ZeroDivisionError
