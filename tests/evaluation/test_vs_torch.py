"""The comparison with PyTorch: its ratios and differences, from invented times and pictures."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.long

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def vs() -> ModuleType:
    return load("comparison")


def cells(vs: ModuleType) -> list:
    grey = np.zeros((8, 4, 4, 3), np.float32)
    made = [
        ("uam_jax", "released", 1, [2.0, 4.0, 3.0]),
        ("uam_jax", "released", 8, [8.0, 8.0, 8.0]),
        ("uam_jax, 2 devices", "released", 8, [4.0, 4.0, 4.0]),
        ("PyTorch as released, eager", "released", 1, [8.0, 8.0, 12.0]),
        ("PyTorch, eager", "released", 1, [6.0, 4.0, 6.0]),
        ("PyTorch, compiled (default)", "released", 1, [2.0, 2.0, 4.5]),
        ("PyTorch, compiled (default)", "released", 8, [16.0, 16.0, 16.0]),
    ]
    return [
        vs.Cell(
            who, settings, batch, 300, run=lambda: grey, first=9.0, seconds=seconds,
            pictures=grey[:batch] + 0.01 * i,
        )
        for i, (who, settings, batch, seconds) in enumerate(made)
    ]  # fmt: skip


def test_ratios_are_taken_within_a_round_and_an_image(vs: ModuleType) -> None:
    found = {(row["what"], row["against"]): row for row in vs.ratios(cells(vs))}
    ours, released = "uam_jax, released, batch 1", "PyTorch as released, eager, released, batch 1"
    row = found[ours, released]
    assert (row["median"], row["note"]) == (4, "the released loop, one image")  # 4, 2, 4
    assert found["uam_jax, released, batch 8", released]["median"] == 8
    eager = found[ours, "PyTorch, eager, released, batch 1"]
    assert (eager["median"], eager["note"]) == (2, "equal evaluations")  # 3, 1, 2
    compiled = found[ours, "PyTorch, compiled (default), released, batch 1"]
    assert (compiled["median"], compiled["note"]) == (1, "equal evaluations, the strongest")
    devices = "uam_jax, 2 devices, released, batch 8"
    assert found[devices, "PyTorch, compiled (default), released, batch 8"]["median"] == 4
    one = found[devices, "PyTorch, compiled (default), released, batch 1"]
    assert (one["median"], one["note"]) == (4, "batch against PyTorch's one by one")  # 4, 4, 9
    assert found[devices, ours]["note"] == "batch against one by one"
    assert ("PyTorch, compiled (default), released, batch 8", ours) not in found


def test_pictures_are_compared_with_ours_of_the_same_settings(vs: ModuleType) -> None:
    made = cells(vs)
    assert vs.likeness(made[0], made) == {}
    like = vs.likeness(made[4], made)
    assert like["max"] == pytest.approx(0.04)
    assert like["worst"] == pytest.approx(20 * np.log10(2 / 0.04))


FACTS = {
    "versions": {"jax": "0.10.2"}, "model": "scenes", "weights": "w", "picture": "64x64",
    "dtype": "float32", "device": "P", "threads": 2, "environment": {"A": "1"},
}  # fmt: skip


def test_a_record_names_the_forms_that_failed(vs: ModuleType, tmp_path: Path) -> None:
    made = cells(vs)
    made.append(
        vs.Cell("PyTorch, compiled (max)", "anchored", 1, 153, run=made[0].run, failed="no gcc")
    )
    vs.write(tmp_path, "python benchmarks/vs_torch.py", FACTS, made)
    text = (tmp_path / "summary.md").read_text()
    assert "PyTorch, compiled (max), anchored, batch 1 could not run: no gcc" in text
    row = "| uam_jax, 2 devices | released | 8 | 300 | 9.0 | 3 | 0.5000 [0.5000, 0.5000] | 600.0 |"
    assert row in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["cells"]) == 7 and summary["ratios"] == vs.ratios(made[:-1])


def test_the_most_important_cells_run_first(vs: ModuleType) -> None:
    eager, compiled = "PyTorch, eager", "PyTorch, compiled (default)"
    reference = "PyTorch as released, eager"
    expected = [
        ("uam_jax", "evaluation", 24), (compiled, "evaluation", 24), (eager, "evaluation", 24),
        ("uam_jax", "evaluation", 3), (compiled, "evaluation", 3),
        ("uam_jax", "default", 8), (reference, "released", 1), ("uam_jax, 2 devices", "default", 8),
        (compiled, "default", 8), (eager, "default", 8), ("uam_jax", "default", 1),
        ("uam_jax", "released", 8), ("PyTorch as released, compiled (default)", "released", 8),
    ]  # fmt: skip
    mixed = [
        vs.Cell(*expected[at], 1, lambda: None) for at in (5, 11, 12, 0, 3, 4, 6, 2, 1, 9, 8, 10, 7)
    ]
    assert [(cell.who, cell.settings, cell.batch) for cell in vs.in_order(mixed)] == expected


class Times:
    """A clock that cells advance: by the given seconds in their first run, and in the others."""

    def __init__(self, vs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.cell = 0.0, vs.Cell
        monkeypatch.setattr(vs.time, "perf_counter", lambda: self.now)

    def make(self, who: str, first: float, later: float, **options: Any) -> Any:
        runs = iter([first])

        def run() -> None:
            self.now += next(runs, later)

        return self.cell(who, "evaluation", 1, options.pop("evaluations", 1), run, **options)


@pytest.fixture
def times(vs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Times:
    return Times(vs, monkeypatch)


def run_all(cells: list, times: Times, repeats: int, seconds: float | None) -> list[list[int]]:
    """The rounds of every cell that each record shows."""
    records: list[list[int]] = []
    measurement = load("budget").Measurement(
        cells,
        repeats,
        lambda: records.append([len(cell.seconds) for cell in cells]),
        seconds,
        clock=lambda: times.now,
    )
    measurement.run()
    return records


def test_without_a_budget_all_run_and_are_then_timed_in_turns(times: Times) -> None:
    made = [times.make("a", 10, 1), times.make("b", 1000, 2)]
    records = run_all(made, times, 2, None)
    assert records == [[0, 0], [0, 0], [1, 0], [1, 1], [1, 2], [2, 2]]
    assert [cell.first for cell in made] == [10, 1000]
    assert [cell.seconds for cell in made] == [[1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("seconds", "dropped", "rounds"),
    [
        # After 11 s the second cell is thought to need 9 s for each of 4 programs, 3 s for its first run and for each
        # of 3 rounds, and the 2 rounds that the first cell waits for: 50 s.
        (60.9, [False, True, False], [3, 0, 3]),
        (61, [False, False, True], [3, 3, 0]),
    ],
)
def test_a_cell_for_which_there_is_no_time_is_dropped(
    times: Times, seconds: float, dropped: list[bool], rounds: list[int]
) -> None:
    made = [
        times.make("a", 10, 1),
        times.make("a", 30, 3, programs=4, evaluations=3),
        times.make("b", 13, 2, programs=2),  # Nothing is known of "b"; by "a" it needs 22 s.
    ]
    records = run_all(made, times, 3, seconds)
    assert [bool(cell.dropped) for cell in made] == dropped
    assert [len(cell.seconds) for cell in made] == rounds == records[-1]
    assert records[0] == [1, 0, 0]  # The first round follows the first run.
    assert times.now <= seconds
    if dropped[1]:
        assert made[1].dropped == "it needs about 50 s, and 50 s were left"


def test_rounds_end_before_the_time_is_over(times: Times) -> None:
    made = [times.make("a", 1, 10)]
    run_all(made, times, 100, 50)
    assert len(made[0].seconds) == 4 and times.now == 41


def test_when_the_time_is_over_the_rest_is_dropped_and_recorded(vs: ModuleType) -> None:
    made = cells(vs)[:3]
    made[1].seconds = []
    made[2].seconds, made[2].failed = [], "no gcc"
    records = []
    load("budget").Measurement(
        made, 3, lambda: records.append([cell.dropped for cell in made]), 1.0
    ).give_up()
    assert records == [["", "the time was over before it had run and been timed", ""]]


def test_ratios_take_the_rounds_that_both_have(vs: ModuleType) -> None:
    made = [cell for cell in cells(vs) if cell.who != "uam_jax, 2 devices"]
    made[0].seconds = [2.0]
    found = {(row["what"], row["against"]): row for row in vs.ratios([made[0], made[2]])}
    row = found["uam_jax, released, batch 1", "PyTorch as released, eager, released, batch 1"]
    assert row["median"] == 4


def test_a_record_shows_first_runs_and_what_was_dropped(vs: ModuleType, tmp_path: Path) -> None:
    made = cells(vs)[:2]
    made[0].seconds = []
    made[1].first, made[1].seconds, made[1].dropped = (
        None,
        [],
        "it needs about 9 s, and 1 s were left",
    )
    vs.write(tmp_path, "c", FACTS, made)
    text = (tmp_path / "summary.md").read_text()
    assert "| uam_jax | released | 1 | 300 | 9.0 | 0 |  |  |  |  |" in text
    assert "uam_jax, released, batch 8 was dropped: it needs about 9 s, and 1 s were left" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["dropped"]) == ["uam_jax, released, batch 8"] and summary["ratios"] == []
