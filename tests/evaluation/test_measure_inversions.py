"""The record of the inversion studies: complete, resumed, and without measuring plain DDIM twice."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.long

SCRIPTS = Path(__file__).parents[2] / "scripts"
FACTS = {"weights": "w"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("measure_inversions")
    monkeypatch.setattr(module, "KEPT", tmp_path)
    reconstruction = {"evaluations": 20, "psnr": [40.0, 39.0, 41.0], "median": 40.0, "worst": 21.5}
    edit = {name: [0.5, 0.4, 0.6] for name in ("success", "background_psnr", "edit_psnr")}
    monkeypatch.setattr(module, "invert", lambda *_: None)
    monkeypatch.setattr(module, "reconstruct", lambda *_: dict(reconstruction))
    monkeypatch.setattr(module, "edit", lambda *_: edit | {"evaluations": 33})
    monkeypatch.setattr(module.Inverter, "config", lambda *_: None)
    return module


def counted(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls, plain = [], script.reconstruct

    def reconstruct(*given: Any) -> dict[str, Any]:
        calls.append(given)
        return plain(*given)

    monkeypatch.setattr(script, "reconstruct", reconstruct)
    return calls


def test_plain_ddim_is_measured_once_and_a_run_resumes(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = counted(script, monkeypatch)

    def measure(name: str) -> dict[str, Any]:
        script.measure(None, name, None, FACTS)
        return json.loads((tmp_path / name / "summary.json").read_text())

    record = measure("fixed_point")
    assert len(record["reconstructions"]) == len(calls) == 4 * 3 * 4
    assert len(record["edits"]) == 4 * 3 * 2
    assert measure("fixed_point") == record and len(calls) == 48
    samplers = measure("samplers")
    assert len(samplers["reconstructions"]) == 2 * 3 * 4 and len(calls) == 48 + 3 * 4
    record["reconstructions"].pop()
    (tmp_path / "fixed_point" / "summary.json").write_text(json.dumps(record))
    assert len(measure("fixed_point")["reconstructions"]) == 48 and len(calls) == 61


def test_a_record_of_other_weights_is_measured_again(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = counted(script, monkeypatch)
    script.measure(None, "samplers", None, FACTS)
    script.measure(None, "samplers", None, {"weights": "others"})
    assert len(calls) == 2 * 24


def test_the_tables_have_a_line_for_each_inversion_and_maps(
    script: ModuleType, tmp_path: Path
) -> None:
    script.measure(None, "fixed_point", None, FACTS)
    text = (tmp_path / "fixed_point" / "summary.md").read_text()
    cells = " | ".join(["40.0 [39.0, 41.0], 21.5"] * 3)
    assert f"| DDIM, K = 3 | 20, 20, 20 | wrong prompt | {cells} |" in text
    assert "| DDIM | replayed source | 50 | 33 | 50 [40, 60] | 0.50 [0.40, 0.60] | 0.50" in text
    plot = (tmp_path / "fixed_point" / "reconstruction.png").read_bytes()
    assert plot.startswith(b"\x89PNG")
