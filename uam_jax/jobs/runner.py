"""The engine of a data-set job: batches go through a worker, and each result is written and entered exactly once.

It knows neither pictures nor networks, which are the worker's, so that evaluations run on it as well. A result's
files are written, each whole, before its row: after a kill at any moment, the job goes on with the results that have
no row.

An error that a worker raises stays with its batch: the batch is tried again picture by picture, and a picture that
fails alone becomes a failed row. Errors of the folder (a full disk) end the job, since no picture causes them.
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
from uam_jax.jobs.ledger import Ledger, Row

_WRITERS = 8

BATCHES_IN_A_ROW = 3
"""After so many batches in a row that fail at every picture, the cause is not in the pictures."""


@dataclass(frozen=True)
class Outcome:
    """A row of the ledger, and the files that belong to it."""

    row: Row
    files: dict[str, bytes] = field(default_factory=dict)


class _Splittable(Protocol):
    @property
    def bucket(self) -> Any: ...

    @property
    def batch_per_device(self) -> int: ...

    def halves(self) -> "tuple[Any, Any]": ...

    def singles(self) -> "Sequence[Any]":
        """A batch for every picture, of the same shape: the other slots are padding, so that nothing is compiled."""
        ...


B = TypeVar("B", bound=_Splittable, contravariant=True)


class Worker(Protocol[B]):
    """The work of a job on a batch."""

    def compute(self, batch: B) -> Callable[[], list[Outcome]]:
        """Computes on the devices, and returns the host's part, which runs while the next batch is computed."""
        ...

    def give_up(self, batch: B, reason: str) -> list[Outcome]:
        """Failed rows for the results of a batch that could not be computed."""
        ...


@dataclass
class Progress:
    """The state of a run; `Monitor.report` gets it after every batch.

    Attributes:
      total: rows that this run is to make.
      done: rows made, failed ones included.
      failed: rows that failed.
      seconds: since the run began.
      recent: rows per second over the last batches.
      reasons: of the failures, each with its row's id.
    """

    total: int
    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    recent: float = 0.0
    reasons: list[str] = field(default_factory=list)

    @property
    def left(self) -> float | None:
        """Seconds to go; None before the first batch is done."""
        return (self.total - self.done) / self.recent if self.recent else None


class TooManyFailures(JobFailed):
    """A job that its limit of failures has stopped."""


class NothingWorks(JobFailed):
    """A job that was stopped because several batches in a row failed at every picture."""


class Stop:
    """A request to end after the present batch: SIGTERM, which clouds send before they take a machine away."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Takes SIGTERM as the request; outside the main thread, where Python can't, nothing happens."""
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


@dataclass(frozen=True)
class Monitor:
    """The caller's view of a run, and its ways to end it.

    Attributes:
      report: called after every batch.
      say: called with a sentence for a person to read.
      max_failures: rows of this run that may fail; None sets no limit.
      stop: ends the run early.
    """

    report: Callable[[Progress], None] = lambda progress: None
    say: Callable[[str], None] = lambda message: None
    max_failures: int | None = None
    stop: Stop = field(default_factory=Stop)


def run(
    batches: Iterable[B],
    worker: Worker[B],
    ledger: Ledger,
    *,
    total: int,
    monitor: Monitor | None = None,
) -> Progress:
    """Runs batches until they end, a stop is requested, or too much fails.

    A batch for which device memory does not suffice is halved, and so are all later ones of its bucket.

    Args:
      batches: in the order in which they are to run.
      worker: turns them into outcomes.
      ledger: takes the rows; the files go to its folder.
      total: rows to expect.
      monitor: follows the run and may end it.

    Raises:
      TooManyFailures: after the results computed so far are safe.
      NothingWorks: likewise; the batches that failed have no rows, so that the next run tries them again.
    """
    if ledger.is_sole:
        ledger.folder.sweep()
    with ThreadPoolExecutor(_WRITERS) as writers:
        return _Run(worker, ledger, total, monitor or Monitor(), writers).through(batches)


class _Run:
    """One run: the batch that the host still works on, the rows that are held back, and the progress."""

    def __init__(
        self,
        worker: Worker[Any],
        ledger: Ledger,
        total: int,
        monitor: Monitor,
        writers: ThreadPoolExecutor,
    ):
        self._worker, self._ledger, self._monitor, self._writers = worker, ledger, monitor, writers
        self._memory, self._failing = _Memory(worker, monitor.say), _Failing()
        self._progress, self._times = Progress(total), [time.perf_counter()]

    def through(self, batches: Iterable[Any]) -> Progress:
        """Computes batch after batch, each while the host finishes the one before."""
        progress, limit, stop = self._progress, self._monitor.max_failures, self._monitor.stop
        pending: tuple[Any, Future[list[Row] | Exception]] | None = None
        with ThreadPoolExecutor(1) as host:
            for batch in batches:
                for part, finish in self._memory.compute(batch):
                    if pending is not None:
                        self._collect(*pending)
                    pending = part, host.submit(self._settle, finish)
                if stop.requested or (limit is not None and progress.failed > limit):
                    break
            if pending is not None:
                self._collect(*pending)
        if not stop.requested:
            self._release()
        if limit is not None and progress.failed > limit:
            raise TooManyFailures(
                f"{progress.failed} results failed, {limit} may; the last: {progress.reasons[-1]}"
            )
        return progress

    def _settle(self, finish: Callable[[], list[Outcome]]) -> list[Row] | Exception:
        """The host's part of a batch: its rows, once they and their files are written; or the worker's error."""
        try:
            outcomes = finish()
        except Exception as error:
            return error
        return self._enter(outcomes)

    def _enter(self, outcomes: Sequence[Outcome]) -> list[Row]:
        """Writes files, then rows."""
        files = [item for outcome in outcomes for item in outcome.files.items()]
        list(self._writers.map(lambda item: self._ledger.folder.write(*item), files))
        rows = [outcome.row for outcome in outcomes]
        self._ledger.add(rows)
        return rows

    def _collect(self, part: Any, result: Future[list[Row] | Exception]) -> None:
        """Waits for a batch's rows; where it failed, tries its pictures one by one."""
        rows = result.result()
        if isinstance(rows, Exception):
            reason = _reason(rows)
            traceback.clear_frames(rows.__traceback__)  # they hold the batch's arrays
            self._monitor.say(
                f"a batch of {part.bucket} failed: its pictures are tried one by one ({reason})"
            )
            outcomes, error = _one_by_one(part, self._worker, self._memory)
            if error is not None and not _any_ok([outcome.row for outcome in outcomes]):
                self._failing.hold(outcomes, error)
                return
            rows = self._enter(outcomes)
        if _any_ok(rows):  # so the failures before it had their causes in the pictures
            self._release()
        self._account(rows)

    def _release(self) -> None:
        if held := self._failing.release():
            self._account(self._enter(held))

    def _account(self, rows: Sequence[Row]) -> None:
        """Counts rows, and reports."""
        progress, times = self._progress, self._times
        failures = [row for row in rows if row["status"] != "ok"]
        progress.done += len(rows)
        progress.failed += len(failures)
        progress.reasons += [f"{row['id']}: {row['reason']}" for row in failures]
        times.append(time.perf_counter())
        progress.seconds = times[-1] - times[0]
        recent = times[-6:]
        progress.recent = progress.done / progress.seconds
        if len(times) > 6:  # the first batches compile
            progress.recent = len(rows) * (len(recent) - 1) / (recent[-1] - recent[0])
        self._monitor.report(progress)


class _Failing:
    """Batches in a row that failed at every picture; their rows are held back until a batch succeeds."""

    def __init__(self) -> None:
        self._held: list[list[Outcome]] = []

    def hold(self, outcomes: list[Outcome], error: Exception) -> None:
        """Takes a batch's failed rows.

        Raises:
          NothingWorks: it is the last batch that may fail in a row.
        """
        self._held.append(outcomes)
        if len(self._held) == BATCHES_IN_A_ROW:
            raise NothingWorks(
                f"{BATCHES_IN_A_ROW} batches in a row failed at every picture, the last with {_reason(error)}. "
                "They have no rows: mend the cause and start the same command again (--debug shows where)"
            ) from error

    def release(self) -> list[Outcome]:
        """Returns the rows that were held back, and holds none any more."""
        held, self._held = self._held, []
        return [outcome for outcomes in held for outcome in outcomes]


def _one_by_one(
    batch: Any, worker: Worker[Any], memory: "_Memory"
) -> tuple[list[Outcome], Exception | None]:
    """A batch's outcomes, each picture computed alone, and the last error that is not the user's."""
    outcomes: list[Outcome] = []
    last = None
    for single in batch.singles():
        if not worker.give_up(single, ""):  # no result of it is wanted
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
        """Yields the batch, or its parts, each with the host's part, which raises the error of the computation."""
        per_device = batch.batch_per_device
        if per_device > self._fits.get(batch.bucket, per_device):
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
        if per_device == 1:
            failed = self._worker.give_up(
                batch, f"out of memory at {batch.bucket}: try a smaller --size ({reason})"
            )
            yield batch, lambda: failed
            return
        self._fits[batch.bucket] = per_device // 2
        self._say(
            f"out of memory with {per_device} pictures of {batch.bucket} per device: "
            f"going on with {per_device // 2}"
        )
        yield from self._in_halves(batch)

    def _in_halves(self, batch: Any) -> Iterator[tuple[Any, Callable[[], list[Outcome]]]]:
        for half in batch.halves():
            yield from self.compute(half)


def _raise(error: Exception) -> list[Outcome]:
    raise error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory did not suffice; JAX has no class of its own for it."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
