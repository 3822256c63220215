"""The comparison of inversions, controls and masks: every cell can run, and the best are those that are stated."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from uam_jax.evaluation.calibration import are_right
from uam_jax.method.config import EditConfig

pytestmark = pytest.mark.long

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("compare_methods")
    monkeypatch.setattr(module, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    return module


@pytest.mark.parametrize(("steps", "start"), [(20, 2), (50, 4)])
def test_every_cell_is_a_plan_of_its_own(script: ModuleType, steps: int, start: int) -> None:
    times = np.arange(1000 - 1000 // steps + 1, 0, -1000 // steps)
    stage, found = script.Stage("screen", steps, "tune", 60), {}
    for inversion in script.INVERSIONS:
        for name, keys in stage.cells(inversion).items():
            config = EditConfig().overridden(keys)
            assert re.fullmatch(r"[\w.+=-][\w.+=, -]*", name)
            assert config.plan(times).evaluations() > 2 * steps and config.steps == steps
            found[name] = config
            if ", text-free, " in name:
                own = config.source_inversion
                assert own.uniformity == 1 and config.source.condition == "null"
    fingerprints = {config.fingerprint() for config in found.values()}
    assert len(fingerprints) == len(found) == 30 * 15 - 12 * 6
    assert {name.split(", ")[-2] for name in found} == {*script.CONTROLS}
    control: Any = found["ddim, prompt, masactrl, no mask"].control
    assert control.step_start == start


def row(method: str, item: int, *, success: float, background: float) -> dict[str, Any]:
    figures = {"success": success, "background_psnr": background, "vae_background_psnr": 33.0}
    return {
        "id": f"{method}/{item}", "method": method, "item": str(item), "kind": "colour", "status": "ok",
        "evaluations": 150, "seconds": None, "figures": figures,
    }  # fmt: skip


def test_the_best_cells_go_on(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, list[str]]] = []
    some = ("ddim, prompt", "belm, null", "null-text")
    monkeypatch.setattr(script, "INVERSIONS", {name: script.INVERSIONS[name] for name in some})
    every = script.Stage("screen", 20, "tune", 60).cells
    labels = [label for inversion in script.INVERSIONS for label in every(inversion)]
    background = {label: 20 + number / 100 for number, label in enumerate(labels)}

    def run(stage: Any, name: str, cells: Any) -> Any:
        runs.append((stage.name, [*cells]))
        # The last cells have the best background, and half of them fail half of the edits.
        return [
            row(label, item, success=item % 2 if labels.index(label) % 2 else 1.0, background=background[label])
            if label in labels else row(label, item, success=1.0, background=30.0)
            for label in cells
            for item in range(2)
        ]  # fmt: skip

    monkeypatch.setattr(script.Stage, "run", run)
    monkeypatch.setattr("sys.argv", ["compare_methods.py", "--good", "5", "--best", "3"])
    script.main()
    good = [label for number, label in enumerate(labels) if number % 2 == 0]
    screened = [names for stage, names in runs if stage == "screen"]
    tuned = [names for stage, names in runs if stage == "tune"]
    assert [name for names in screened for name in names] == labels
    assert [name for names in tuned for name in names] == [*script.PRESETS, *good[-5:]]
    reported = [name for stage, names in runs if stage == "report" for name in names]
    assert reported == [*script.PRESETS, *good[:-4:-1]]
    kept = json.loads((script.KEPT / "report.json").read_text())
    assert [*kept["methods"]] == reported
    assert (script.KEPT / "screen.png").stat().st_size > 10_000
    assert "| " + good[-1] + " | 100 " in (script.KEPT / "tune.md").read_text()
    # Kept rows are not made again, unless something else is asked for.
    count = len(runs)
    script.main()
    assert len(runs) == count
    monkeypatch.setattr("sys.argv", [*sys.argv, "--jobs", "2"])
    monkeypatch.setattr(script, "settings", lambda preset: EditConfig(steps=49))
    script.main()
    presets = [*script.PRESETS]
    assert sorted(names for _, names in runs[count:]) == sorted(
        [presets, *([name] for name in presets)]
    )
    # Of a file, cells that are not kept are.
    count = len(runs)
    controls = {**script.CONTROLS, "none": ("control=none", "mask.threshold=0.4")}
    monkeypatch.setattr(script, "CONTROLS", controls)
    script.main()
    changed = [label for label in labels if label.split(", ")[-2] == "none"]
    again = [name for stage, names in runs[count:] if stage == "screen" for name in names]
    assert sorted(again) == sorted(changed)
    count = len(runs)
    other = SimpleNamespace(weights_hash="of another model")
    monkeypatch.setattr(script, "model", lambda: other)
    script.main()
    assert sorted(names for stage, names in runs[count:] if stage == "screen") == sorted(screened)
    count = len(runs)
    monkeypatch.setattr("sys.argv", ["compare_methods.py", "--items", "30", "--only", "belm, null"])
    script.main()
    assert [stage for stage, _ in runs[count:]] == ["screen"]


def test_the_best_are_those_that_no_other_is_better_than(script: ModuleType) -> None:
    cells = {
        "good": (1.0, 32.0, 100),
        "beaten": (1.0, 31.9, 100),
        "cheap": (0.98, 31.0, 50),
        "dear": (0.97, 32.5, 700),
        "dearer": (0.97, 32.5, 800),
        "bad": (0.9, 40.0, 10),
    }
    methods = {
        name: {"overall": {"success": [success], "background_psnr": [background]}, "evaluations": evaluations}
        for name, (success, background, evaluations) in cells.items()
    }  # fmt: skip
    assert script.best(methods, 10) == ["dear", "good", "cheap", "dearer", "beaten"]
    assert script.best(methods, 2) == ["dear", "good"]


def test_kept_rows_are_the_rows(script: ModuleType) -> None:
    rows = [row("a", item, success=1.0, background=30.123456) for item in range(3)]
    rows[1] |= {"status": "failed", "figures": {}}
    found = script.unpacked(script.packed(rows))
    assert [each["id"] for each in found] == ["a/0", "a/1", "a/2"]
    assert found[0]["figures"]["background_psnr"] == 30.1235 and found[1]["status"] == "failed"
    # Who keeps no pixels has no figures of that, and is judged in the model's picture.
    assert "kept_success" not in found[0]["figures"] and are_right([found[0]]).all()
