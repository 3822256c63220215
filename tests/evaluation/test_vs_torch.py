"""The comparison with PyTorch: its ratios and differences, from invented times and pictures."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def vs() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("comparison")


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


def test_a_record_names_the_forms_that_failed(vs: ModuleType, tmp_path: Path) -> None:
    made = cells(vs)
    made.append(vs.Cell("PyTorch, compiled (max)", "own", 1, 153, run=made[0].run, failed="no gcc"))
    facts = {
        "versions": {"jax": "0.10.2"}, "model": "scenes", "weights": "w", "picture": "64x64",
        "dtype": "float32", "device": "P", "threads": 2, "environment": {"A": "1"},
    }  # fmt: skip
    vs.write(tmp_path, "python benchmarks/vs_torch.py", facts, made)
    text = (tmp_path / "summary.md").read_text()
    assert "PyTorch, compiled (max), own, batch 1 could not run: no gcc" in text
    assert "| uam_jax, 2 devices | released | 8 | 300 | 9.0 | 0.500 [0.500, 0.500] |" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["cells"]) == 7 and summary["ratios"] == vs.ratios(made[:-1])
