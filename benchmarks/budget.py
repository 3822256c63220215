"""Measurement of cells within a time budget: cells are dropped rather than that the time is overrun."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from comparison import Cell


class Measurement:
    """The cells of a table, measured in the given order as far as the time goes.

    Without a budget all cells run once, and are then timed in turns, round by round, alternately forwards and
    backwards. With a budget each cell's first round follows its first run, and a cell for which the time that is left
    will not do, by the estimate of `needed`, is dropped.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        repeats: int,
        record: Callable[[], None],
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
          cells: the most important first; they may be added until `run`.
          repeats: rounds.
          record: writes what has been measured; called after every cell.
          seconds: the budget; None for none.
          clock: in seconds.
        """
        self.cells, self.repeats = cells, repeats
        self._record, self._lock, self._clock = record, threading.Lock(), clock
        self._end = None if seconds is None else clock() + seconds

    @property
    def left(self) -> float:
        """Seconds left; infinitely many without a budget."""
        return float("inf") if self._end is None else self._end - self._clock()

    def run(self) -> None:
        """Measures all cells."""
        for cell in self.cells:
            if (needed := self.needed(cell)) > (left := self.left):
                cell.dropped = f"it needs about {needed:.0f} s, and {max(left, 0):.0f} s were left"
                print(f"  {cell.name}: dropped, {cell.dropped}", flush=True)
            else:
                cell.start()
                if self._end is not None and not cell.failed:
                    cell.time()
            self.record()
        running = [cell for cell in self.cells if not cell.failed and not cell.dropped]
        for number in range(self.repeats):
            for cell in running if number % 2 == 0 else reversed(running):
                if len(cell.seconds) > number:
                    continue
                if max(cell.seconds, default=0.0) > self.left:
                    return
                cell.time()
                self.record()
            print(f"round {number + 1} of {self.repeats}", flush=True)

    def needed(self, cell: Cell) -> float:
        """Estimated seconds of a cell's first run and rounds, and of the rounds that earlier cells still wait for."""
        seen = [each for each in self.cells if each.seconds]
        alike = [each for each in seen if each.who == cell.who] or seen
        waiting = sum(
            (self.repeats - len(each.seconds)) * float(np.median(each.seconds)) for each in seen
        )
        if not alike:
            return 0.0
        per_evaluation = max(float(np.median(each.seconds)) / each.work for each in alike)
        preparing = max(
            max((each.first or 0.0) - float(np.median(each.seconds)), 0.0) / each.programs
            for each in alike
        )
        return waiting + preparing * cell.programs + (1 + self.repeats) * per_evaluation * cell.work

    def record(self) -> None:
        """Writes what has been measured, one thread at a time."""
        with self._lock:
            self._record()

    def give_up(self) -> None:
        """Marks the cells without times as dropped and writes the last record: nothing is written after it."""
        self._lock.acquire()
        for cell in self.cells:
            if not (cell.seconds or cell.failed or cell.dropped):
                cell.dropped = "the time was over before it had run and been timed"
        self._record()
