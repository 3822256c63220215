"""The comparison of inversions, controls and masks: every cell can run, and the best are those that are stated."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from uam_jax.method.config import EditConfig

SCRIPTS = Path(__file__).parents[2] / "scripts"
TIMES = np.arange(981, 0, -20)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("compare_methods")
    monkeypatch.setattr(module, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    return module


def test_every_cell_is_a_plan_of_its_own(script: ModuleType) -> None:
    found = {}
    for inversion in script.INVERSIONS:
        for name, keys in script.cells(inversion).items():
            config = EditConfig().overridden(keys)
            assert re.fullmatch(r"[\w.+=-][\w.+=, -]*", name)
            assert config.plan(TIMES).evaluations() > 100
            found[name] = config
    fingerprints = {config.fingerprint() for config in found.values()}
    assert len(fingerprints) == len(found) == 24 * 15 - 6 * 6
    assert {name.split(", ")[-2] for name in found} == {*script.CONTROLS}


def row(method: str, item: int, *, success: float, background: float) -> dict[str, Any]:
    figures = {"success": success, "background_psnr": background, "vae_background_psnr": 33.0}
    return {
        "id": f"{method}/{item}", "method": method, "item": str(item), "kind": "colour", "status": "ok",
        "evaluations": 150, "seconds": None, "figures": figures,
    }  # fmt: skip


def test_the_best_cells_go_on(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []
    labels = [label for inversion in script.INVERSIONS for label in script.cells(inversion)]
    background = {label: 20 + number / 100 for number, label in enumerate(labels)}

    def run(name: str, methods: Any, third: str, *options: str, presets: str = "") -> Any:
        seen.append((third, [*presets.split(",")[:-1], *methods]))
        shown = labels if third == "tune" else seen[-1][1]
        # The last cells have the best background, and half of them fail half of the edits.
        return [
            row(label, item, success=item % 2 if number % 2 else 1.0, background=background.get(label, 30))
            for number, label in enumerate(shown)
            for item in range(2)
        ]  # fmt: skip

    monkeypatch.setattr(script, "run", run)
    monkeypatch.setattr("sys.argv", ["compare_methods.py", "--best", "3"])
    script.main()
    good = [label for number, label in enumerate(labels) if number % 2 == 0]
    assert seen[-1] == ("report", ["default", "released", *good[:-4:-1]])
    assert len(seen) == len(script.INVERSIONS) + 1
    kept = json.loads((script.KEPT / "report.json").read_text())
    assert [*kept["methods"]] == seen[-1][1]
    assert (script.KEPT / "tune.png").stat().st_size > 10_000
    assert "| " + good[-1] + " | 100 " in (script.KEPT / "tune.md").read_text()
