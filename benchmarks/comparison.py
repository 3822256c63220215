"""Timed cells, their ratios, and the record that `vs_torch.py` writes."""

import dataclasses
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uam_jax.evaluation.metrics import psnr

OURS, AS_RELEASED = "uam_jax", "as released"
EVALUATION = "evaluation"
"""The settings of cells that only call the U-Net: their batch is the rows of a call, see `one_call`."""


@dataclass
class Cell:
    """An implementation with settings and a batch, and its times.

    Attributes:
      who: `OURS`, or a form of PyTorch.
      settings: name of the edit's settings.
      batch: images per call.
      evaluations: single-sample U-Net evaluations per image.
      run: edits the batch and returns pictures, (batch, h, w, 3) in [-1, 1], or None if there are none.
      programs: U-Nets to compile, for the estimate of what the first run takes.
      first: seconds of the first run, including loading and compilation; None before it.
      seconds: of the run in every round.
      pictures: of the first run.
      failed: the reason why it could not run.
      dropped: the reason why there was no time for it.
    """

    who: str
    settings: str
    batch: int
    evaluations: int
    run: Callable[[], np.ndarray | None] = field(repr=False)
    programs: int = 1
    first: float | None = None
    seconds: list[float] = field(default_factory=list)
    pictures: np.ndarray | None = field(default=None, repr=False)
    failed: str = ""
    dropped: str = ""

    @property
    def name(self) -> str:
        return f"{self.who}, {self.settings}, batch {self.batch}"

    def start(self) -> None:
        """Runs the cell once; a failure is kept, and the other cells continue."""
        began = time.perf_counter()
        try:
            self.pictures = self.run()
        except Exception as error:  # Compilers raise any exception.
            self.failed = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        self.first = time.perf_counter() - began
        print(f"  {self.name}: {self.failed or f'first run {self.first:.1f} s'}", flush=True)

    def time(self) -> None:
        """Runs the cell once more, timed."""
        gc.collect()
        began = time.perf_counter()
        self.run()
        self.seconds.append(time.perf_counter() - began)

    def each(self) -> np.ndarray:
        """Seconds per image in every round."""
        return np.asarray(self.seconds) / self.batch

    @property
    def work(self) -> int:
        """Single-sample evaluations of a run."""
        return self.evaluations * self.batch


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """The cells by their importance, so that the rows that fit into a budget can be compared with each other.

    Evaluations alone come first, then the settings as given, large batches first, and ours before the others. The
    reference of all ratios follows our first whole edit.
    """
    settings = [EVALUATION, *dict.fromkeys(cell.settings for cell in cells)]

    def group(cell: Cell) -> tuple[int, int]:
        return settings.index(cell.settings), -cell.batch

    whole = [group(cell) for cell in cells if cell.settings != EVALUATION]

    def key(cell: Cell) -> tuple[tuple[int, int], int]:
        if is_reference(cell):
            return min(whole), 1
        ranks = [cell.who == OURS, cell.who.startswith(OURS), AS_RELEASED not in cell.who]
        rank = ranks.index(True) * 2 if True in ranks else 6
        return group(cell), rank + ("eager" in cell.who)

    return sorted(cells, key=key)


def is_reference(cell: Cell) -> bool:
    """Whether this is the released loop as diffusers loads it."""
    return AS_RELEASED in cell.who and cell.who.endswith("eager")


def quartiles(values: np.ndarray) -> dict[str, float]:
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "q1": float(q1), "q3": float(q3)}


def likeness(cell: Cell, cells: Sequence[Cell]) -> dict[str, float]:
    """Similarity of a cell's pictures to ours of the same settings: PSNR in dB, largest difference in [0, 2]."""
    for other in cells:
        same = other.settings == cell.settings and other.batch == cell.batch
        if (
            same
            and other.who == OURS != cell.who
            and cell.pictures is not None is not other.pictures
        ):
            each = psnr(cell.pictures, other.pictures)
            largest = np.abs(cell.pictures - other.pictures).max()
            return {"psnr": float(each.mean()), "worst": float(each.min()), "max": float(largest)}
    return {}


def ratios(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Ratios of speed per image between cells: median and quartiles over the rounds."""
    rows: list[dict[str, Any]] = []

    def add(what: Cell, against: Cell, note: str = "") -> None:
        rounds = min(len(what.seconds), len(against.seconds))
        ratio = quartiles(against.each()[:rounds] / what.each()[:rounds])
        rows.append({"what": what.name, "against": against.name, "note": note, **ratio})

    ours = [cell for cell in cells if cell.who.startswith(OURS)]
    theirs = [cell for cell in cells if not cell.who.startswith(OURS)]
    released = [cell for cell in theirs if AS_RELEASED in cell.who]
    for reference in filter(is_reference, released):
        for cell in ours:
            if cell.settings != EVALUATION:
                add(cell, reference, "the released loop, one image")
    for cell in ours:
        equal = [
            other
            for other in theirs
            if other not in released
            and (other.settings, other.batch) == (cell.settings, cell.batch)
        ]
        strongest = min(equal, key=lambda other: np.median(other.each()), default=None)
        for other in equal:
            add(cell, other, "equal evaluations" + ", the strongest" * (other is strongest))
        for other in released:
            if not is_reference(other) and (other.settings, other.batch) == (
                cell.settings,
                cell.batch,
            ):
                add(cell, other, "the released loop")
        for one in theirs:
            if one not in released and one.settings == cell.settings and one.batch < cell.batch:
                add(cell, one, "batch against PyTorch's one by one")
    for cell in cells:
        for one in cells:
            same = cell.who.startswith(one.who) and cell.settings == one.settings != EVALUATION
            if same and one.batch == 1 < cell.batch:
                add(cell, one, "batch against one by one")
    return rows


def write(out: Path, command: str, facts: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Writes `summary.json` and `summary.md` for what has run so far."""
    done = [cell for cell in cells if cell.seconds]
    table = [
        {
            **{f.name: getattr(cell, f.name) for f in dataclasses.fields(cell) if f.repr},
            "image": quartiles(cell.each()) if cell.seconds else None,
            "rate": cell.evaluations / float(np.median(cell.each())) if cell.seconds else None,
            "likeness": likeness(cell, done),
        }
        for cell in cells
        if cell.first is not None and not cell.failed
    ]
    compared, failed = ratios(done), {cell.name: cell.failed for cell in cells if cell.failed}
    dropped = {cell.name: cell.dropped for cell in cells if cell.dropped}
    summary = {
        "command": command,
        "facts": facts,
        "cells": table,
        "ratios": compared,
        "failed": failed,
        "dropped": dropped,
    }
    known = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"`{command}`",
        "",
        f"Model {facts['model']} (weights `{facts['weights']}`), {facts['picture']} pixels, {facts['dtype']}; "
        f"{facts['device']}, {facts['threads']} threads; {known}; "
        f"{' '.join(f'{n}={v}' for n, v in facts['environment'].items())}. Times are medians [quartiles] over the "
        "rounds. PSNR (mean, worst) and the error (largest difference of values in [-1, 1]) are "
        "relative to our pictures of the same settings. The first run includes all loading and compilation that no "
        f"earlier cell had done. With the settings `{EVALUATION}` only the U-Net runs, the batch is the number of rows "
        "of a call, and an image stands for a row.",
        "",
        "| Implementation | Settings | Batch | Evaluations | First run, s | Rounds | Seconds per image | "
        "Evaluations/s | PSNR, dB | Error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table:
        like = row["likeness"]
        near = f"{like['psnr']:.1f}, {like['worst']:.1f} | {like['max']:.1e}" if like else " | "
        times = f"{three(row['image'], 4)} | {row['rate']:.1f}" if row["seconds"] else " | "
        lines.append(
            f"| {row['who']} | {row['settings']} | {row['batch']} | {row['evaluations']} | "
            f"{row['first']:.1f} | {len(row['seconds'])} | {times} | {near} |"
        )
    lines += [
        "",
        "| Cell | Reference | Speed per image relative to the reference | Comparison |",
        "| --- | --- | --- | --- |",
        *(f"| {r['what']} | {r['against']} | {three(r, 2)} | {r['note']} |" for r in compared),
        *(f"\n{name} could not run: {reason}" for name, reason in failed.items()),
        *(f"\n{name} was dropped: {reason}" for name, reason in dropped.items()),
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    (out / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def three(of: dict[str, float], digits: int) -> str:
    return f"{of['median']:.{digits}f} [{of['q1']:.{digits}f}, {of['q3']:.{digits}f}]"
