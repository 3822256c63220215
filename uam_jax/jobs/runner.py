"""The engine of a data-set job: batches through a worker, each result written and entered exactly once.

It knows neither pictures nor networks: what a batch becomes is the worker's business, so that evaluations
run on it as well. A result's files are written, each whole, before its row is; a job that was killed at any
moment therefore only has to run what has no row.

An error that a worker raises is its batch's own: the batch is tried again picture by picture, and what fails alone is
a failed row. Errors of the folder (a full disk) end the job, since they are no picture's.
"""

import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Protocol, TypeVar

from uam_jax.errors import InputError, JobFailed
from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import Ledger, Row

_WRITERS = 8

BATCHES_IN_A_ROW = 3
"""So many that fail at every picture are no pictures' fault."""


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

    def singles(self) -> "Sequence[Any]":
        """The same batch once for every picture, with padding in place of the others: no other program."""
        ...


B = TypeVar("B", bound=_Splittable, contravariant=True)


class Worker(Protocol[B]):
    """What a job does with a batch."""

    def compute(self, batch: B) -> Callable[[], list[Outcome]]:
        """Computes; what is left to do on the host is returned, to be done while the next batch is computed."""
        ...

    def give_up(self, batch: B, reason: str) -> list[Outcome]:
        """Failed rows for what was to be made of a batch that could not be computed."""
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


class TooManyFailures(JobFailed):
    """The job was stopped by its limit of failures."""


class NothingWorks(JobFailed):
    """The job was stopped since several batches in a row failed at every picture."""


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
      NothingWorks: after what was computed is safe; the batches that failed have no rows, so that the next run
        does them.
    """
    if ledger.is_sole:
        folder.sweep()
    progress, began, memory = Progress(total), time.perf_counter(), _Memory(worker, say)
    times = [began]
    stop = stop or Stop()
    failing = _Failing()

    def enter(outcomes: Sequence[Outcome]) -> list[Row]:
        files = [item for outcome in outcomes for item in outcome.files.items()]
        list(writers.map(lambda item: folder.write(*item), files))
        rows = [outcome.row for outcome in outcomes]
        ledger.add(rows)
        return rows

    def settle(finish: Callable[[], list[Outcome]]) -> list[Row] | Exception:
        try:
            outcomes = finish()
        except Exception as error:
            return error
        return enter(outcomes)

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

    def collect(part: B, result: Future[list[Row] | Exception]) -> None:
        found = result.result()
        if isinstance(found, Exception):
            told = _reason(found)
            traceback.clear_frames(found.__traceback__)  # they hold the batch's arrays
            say(f"a batch of {part.bucket} failed: its pictures are tried one by one ({told})")
            outcomes, error = _one_by_one(part, worker, memory)
            if error is not None and not _any_ok([outcome.row for outcome in outcomes]):
                failing.hold(outcomes, error)
                return
            found = enter(outcomes)
        if _any_ok(found):  # so what failed before was those pictures' fault
            release()
        account(found)

    def release() -> None:
        if held := failing.release():
            account(enter(held))

    pending: tuple[B, Future[list[Row] | Exception]] | None = None
    with ThreadPoolExecutor(_WRITERS) as writers, ThreadPoolExecutor(1) as host:
        for batch in batches:
            for part, finish in memory.compute(batch):
                if pending is not None:
                    collect(*pending)
                pending = part, host.submit(settle, finish)
            if stop.requested:
                break
            if max_failures is not None and progress.failed > max_failures:
                break
        if pending is not None:
            collect(*pending)
        if not stop.requested:
            release()
    if max_failures is not None and progress.failed > max_failures:
        raise TooManyFailures(
            f"{progress.failed} results failed, {max_failures} may; the last: {progress.reasons[-1]}"
        )
    return progress


class _Failing:
    """Batches in a row that failed at every picture; their rows are held back until another one works."""

    def __init__(self) -> None:
        self._held: list[list[Outcome]] = []

    def hold(self, outcomes: list[Outcome], error: Exception) -> None:
        """Takes a batch's failed rows.

        Raises:
          NothingWorks: it is one too many.
        """
        self._held.append(outcomes)
        if len(self._held) == BATCHES_IN_A_ROW:
            raise NothingWorks(
                f"{BATCHES_IN_A_ROW} batches in a row failed at every picture, the last with {_reason(error)}. "
                "They have no rows: mend the cause and start the same command again (--debug shows where)"
            ) from error

    def release(self) -> list[Outcome]:
        """The rows that are held back; they are no more."""
        held, self._held = self._held, []
        return [outcome for outcomes in held for outcome in outcomes]


def _one_by_one(
    batch: Any, worker: Worker[Any], memory: "_Memory"
) -> tuple[list[Outcome], Exception | None]:
    """A batch's outcomes, each picture computed alone, and the last error that was not a picture's own."""
    outcomes: list[Outcome] = []
    last = None
    for single in batch.singles():
        if not worker.give_up(single, ""):  # nothing is to be made of it
            continue
        for part, finish in memory.compute(single):
            try:
                outcomes += finish()
            except Exception as error:
                outcomes += worker.give_up(part, _reason(error))
                traceback.clear_frames(error.__traceback__)
                if not isinstance(error, InputError):
                    last = error
    return outcomes, last


def _any_ok(rows: Iterable[Row]) -> bool:
    return any(row["status"] == "ok" for row in rows)


def _reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


class _Memory:
    """Halves the batches of a bucket that do not fit into the device's memory."""

    def __init__(self, worker: Worker[Any], say: Callable[[str], None]):
        self._worker, self._say = worker, say
        self._fits: dict[Any, int] = {}

    def compute(self, batch: Any) -> Iterator[tuple[Any, Callable[[], list[Outcome]]]]:
        """The batch, or its parts, each with what is left to do; that raises what computing it has raised."""
        if batch.micro > self._fits.get(batch.bucket, batch.micro):
            yield from self._in_halves(batch)
            return
        try:
            finish = self._worker.compute(batch)
        except Exception as error:
            if not _is_out_of_memory(error):
                yield batch, partial(_raise, error)
                return
            reason = str(error).splitlines()[0]
        else:
            yield batch, finish
            return
        if batch.micro == 1:
            failed = self._worker.give_up(
                batch, f"out of memory at {batch.bucket}: try a smaller --size ({reason})"
            )
            yield batch, lambda: failed
            return
        self._fits[batch.bucket] = batch.micro // 2
        self._say(
            f"out of memory with {batch.micro} pictures of {batch.bucket} per device: "
            f"going on with {batch.micro // 2}"
        )
        yield from self._in_halves(batch)

    def _in_halves(self, batch: Any) -> Iterator[tuple[Any, Callable[[], list[Outcome]]]]:
        for half in batch.halves():
            yield from self.compute(half)


def _raise(error: Exception) -> list[Outcome]:
    raise error


def _is_out_of_memory(error: Exception) -> bool:
    """JAX has no class of its own for it."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
