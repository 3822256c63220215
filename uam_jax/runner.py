"""The engine of a data-set job: batches through a worker, each result written and entered exactly once.

It knows neither pictures nor networks: what a batch becomes is the worker's business, so that evaluations
run on it as well. A result's files are written, each whole, before its row is; a job that was killed at any
moment therefore only has to run what has no row.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol, TypeVar

from uam_jax.ledger import Ledger, Row
from uam_jax.storage import Folder

_WRITERS = 8


@dataclass(frozen=True)
class Outcome:
    """A row of the ledger, and the files that belong to it."""

    row: Row
    files: dict[str, bytes] = field(default_factory=dict)


class _Splittable(Protocol):
    @property
    def bucket(self) -> Any: ...

    @property
    def micro(self) -> int: ...

    def halves(self) -> "tuple[Any, Any]": ...


B = TypeVar("B", bound=_Splittable, contravariant=True)


class Worker(Protocol[B]):
    """What a job does with a batch."""

    def compute(self, batch: B) -> Callable[[], list[Outcome]]:
        """Computes; what is left to do on the host is returned, to be done while the next batch is computed."""
        ...

    def give_up(self, batch: B, reason: str) -> list[Outcome]:
        """Failed rows for a batch that could not be computed."""
        ...


@dataclass
class Progress:
    """How far a job is; given to `report` after every batch.

    Attributes:
      total: rows that this run is to make.
      done: rows made, failed ones among them.
      failed: rows that failed.
      seconds: since the run began.
      recent: rows per second over the last batches.
    """

    total: int
    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    recent: float = 0.0
    reasons: list[str] = field(default_factory=list)

    @property
    def left(self) -> float | None:
        """Seconds to go, if that can be told."""
        return (self.total - self.done) / self.recent if self.recent else None


class TooManyFailures(Exception):
    """The job was stopped by its limit of failures."""


class Stop:
    """A request to end after the batch in hand: SIGTERM, as clouds send it before they take a machine away."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Takes over SIGTERM, where that can be done (in the main thread)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGTERM, self._hear)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def run(
    batches: Iterable[B],
    worker: Worker[B],
    folder: Folder,
    ledger: Ledger,
    *,
    total: int,
    report: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda message: None,
    max_failures: int | None = None,
    stop: Stop | None = None,
) -> Progress:
    """Runs batches until they end or a stop is requested.

    A batch for which device memory does not suffice is halved, and so are all later ones of its bucket.

    Args:
      batches: in the order in which they are to run.
      worker: makes them into outcomes.
      folder: where files go.
      ledger: where rows go.
      total: rows to expect.
      report: told after every batch.
      say: told what else a person should know.
      max_failures: how many rows of this run may fail.
      stop: ends the run early.

    Raises:
      TooManyFailures: after what was computed is safe.
    """
    if ledger.is_sole:
        folder.sweep()
    progress, began, memory = Progress(total), time.perf_counter(), _Memory(worker, say)
    times = [began]
    stop = stop or Stop()

    def settle(finish: Callable[[], list[Outcome]]) -> list[Row]:
        outcomes = finish()
        files = [item for outcome in outcomes for item in outcome.files.items()]
        list(writers.map(lambda item: folder.write(*item), files))
        rows = [outcome.row for outcome in outcomes]
        ledger.add(rows)
        return rows

    def account(rows: Sequence[Row]) -> None:
        failures = [row for row in rows if row["status"] != "ok"]
        progress.done += len(rows)
        progress.failed += len(failures)
        progress.reasons += [f"{row['id']}: {row['reason']}" for row in failures]
        times.append(time.perf_counter())
        progress.seconds = times[-1] - began
        recent = times[-6:]
        progress.recent = progress.done / progress.seconds
        if len(times) > 6:  # the first batches compile
            progress.recent = len(rows) * (len(recent) - 1) / (recent[-1] - recent[0])
        report(progress)

    pending: Future[list[Row]] | None = None
    with ThreadPoolExecutor(_WRITERS) as writers, ThreadPoolExecutor(1) as host:
        for batch in batches:
            for finish in memory.compute(batch):
                if pending is not None:
                    account(pending.result())
                pending = host.submit(settle, finish)
            if stop.requested:
                break
            if max_failures is not None and progress.failed > max_failures:
                break
        if pending is not None:
            account(pending.result())
    if max_failures is not None and progress.failed > max_failures:
        raise TooManyFailures(
            f"{progress.failed} results failed, {max_failures} may; the last: {progress.reasons[-1]}"
        )
    return progress


class _Memory:
    """Halves the batches of a bucket that do not fit into the device's memory."""

    def __init__(self, worker: Worker[Any], say: Callable[[str], None]):
        self._worker, self._say = worker, say
        self._fits: dict[Any, int] = {}

    def compute(self, batch: Any) -> Iterator[Callable[[], list[Outcome]]]:
        if batch.micro > self._fits.get(batch.bucket, batch.micro):
            yield from self._in_halves(batch)
            return
        try:
            finish = self._worker.compute(batch)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        else:
            yield finish
            return
        if batch.micro == 1:
            failed = self._worker.give_up(
                batch, f"out of memory at {batch.bucket}: try a smaller --size ({reason})"
            )
            yield lambda: failed
            return
        self._fits[batch.bucket] = batch.micro // 2
        self._say(
            f"out of memory with {batch.micro} pictures of {batch.bucket} per device: "
            f"going on with {batch.micro // 2}"
        )
        yield from self._in_halves(batch)

    def _in_halves(self, batch: Any) -> Iterator[Callable[[], list[Outcome]]]:
        for half in batch.halves():
            yield from self.compute(half)


def _is_out_of_memory(error: Exception) -> bool:
    """JAX has no class of its own for it."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
