"""A job of the real engine with a stand-in for the network, to be killed: python job_stand_in.py DIR COUNT [I N]."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import Ledger, read_rows
from uam_jax.jobs.runner import Monitor, Outcome, Progress, Stop, run


@dataclass(frozen=True)
class Numbers:
    """A batch; None is padding."""

    values: tuple[int | None, ...]
    bucket: str = "numbers"

    @property
    def batch_per_device(self) -> int:
        return len(self.values)

    def halves(self) -> "tuple[Numbers, Numbers]":
        middle = len(self.values) // 2
        return replace(self, values=self.values[:middle]), replace(
            self, values=self.values[middle:]
        )

    def singles(self) -> "list[Numbers]":
        padding = [None] * self.batch_per_device
        return [
            replace(self, values=(*padding[:slot], value, *padding[slot + 1 :]))
            for slot, value in enumerate(self.values)
            if value is not None
        ]

    @property
    def valid(self) -> list[int]:
        return [value for value in self.values if value is not None]


@dataclass
class Squares:
    """A worker: every number's square, as a file."""

    pause: float = 0.0
    fits: int = 1000
    wanted: frozenset[str] | None = None

    def compute(self, batch: Numbers) -> Callable[[], list[Outcome]]:
        if batch.batch_per_device > self.fits:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.\nmore")
        time.sleep(self.pause)
        return lambda: [
            self.outcome(value, batch.batch_per_device)
            for value in batch.valid
            if self.wants(value)
        ]

    def wants(self, value: int) -> bool:
        return self.wanted is None or f"{value:03d}" in self.wanted

    def give_up(self, batch: Numbers, reason: str) -> list[Outcome]:
        return [
            Outcome({"id": f"{value:03d}", "status": "failed", "reason": reason})
            for value in batch.valid
            if self.wants(value)
        ]

    def outcome(self, value: int, batch_per_device: int) -> Outcome:
        if value % 10 == 9:
            return Outcome({"id": f"{value:03d}", "status": "failed", "reason": "ends with 9"})
        name = f"images/{value:03d}.txt"
        row = {
            "id": f"{value:03d}",
            "status": "ok",
            "reason": None,
            "output": name,
            "batch": batch_per_device,
        }
        return Outcome(row, {name: str(value**2).encode() * 1000})


def numbers(count: int, batch_per_device: int = 4) -> Iterator[Numbers]:
    for first in range(0, count, batch_per_device):
        yield Numbers(tuple(range(first, min(first + batch_per_device, count))))


def main(out: str, count: int, index: int = 0, shards: int = 1, pause: float = 0.02) -> Progress:
    """Like `run_job`, with numbers for pictures."""
    folder = Folder(out)
    with Ledger(folder, (index, shards)) as ledger, Stop().listening() as stop:
        done = set(read_rows(folder))
        wanted = frozenset(f"{value:03d}" for value in range(count)) - done
        left = [
            batch
            for batch in list(numbers(count))[index::shards]
            if any(f"{value:03d}" in wanted for value in batch.valid)
        ]
        worker = Squares(pause, wanted=wanted)
        return run(left, worker, ledger, total=len(wanted), monitor=Monitor(stop=stop))


if __name__ == "__main__":
    print("started", flush=True)
    progress = main(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:]))
    print(f"made {progress.done}", flush=True)
