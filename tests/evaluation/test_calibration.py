"""Confidence that is fitted to edits whose truth is known."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_editor
from typer.testing import CliRunner

from uam_jax import Editor, InputError
from uam_jax.cli import main
from uam_jax.evaluation.calibration import (
    are_right,
    bins_of,
    fit_confidence,
    judge,
    signals_of,
    with_confidence,
)
from uam_jax.evaluation.scenes_study import ScenesStudy
from uam_jax.jobs.runner import Progress
from uam_jax.method.confidence import Calibration

RNG = np.random.default_rng(0)


def row(contrast: float, *, right: bool, **figures: Any) -> dict[str, Any]:
    """An edit whose contrast tells whether it is right, as well as nothing else does."""
    signals = {name: float(RNG.normal()) for name in ("separability", "difference", "moved")}
    signals |= {"stability": 1.0, "share": 0.3, "round_trip": 60.0, "contrast": contrast}
    signals |= {
        "reconstruction": 30 + RNG.normal() / 10,
        "noise": 1.0,
        "changed": 1.0,
        "opacity": 1.0,
    }
    scores = {"success": float(right), "background_psnr": 28.0, "vae_background_psnr": 30.0}
    return {"status": "ok", "figures": signals | scores | figures}


ROWS = [row(RNG.normal() + 3 * right, right=right) for right in (True, False) * 100]


def test_an_edit_is_right_if_it_did_what_it_should_and_nothing_else() -> None:
    cases = [
        row(0, right=True), row(0, right=False), row(0, right=True, background_psnr=23.9),
        row(0, right=True, background_psnr=None), row(0, right=True, kept_success=0.0),
        row(0, right=True, background_psnr=20.0, kept_background_psnr=35.0),
    ]  # fmt: skip
    assert are_right(cases).tolist() == [True, False, False, True, False, True]


def test_a_confidence_finds_the_signal_that_tells() -> None:
    table = fit_confidence(ROWS, "edits made by hand")
    weights = table["weights"]
    assert (
        max(weights, key=lambda name: abs(weights[name])) == "contrast" and weights["contrast"] > 1
    )
    assert "stability" not in weights, "a signal that never changes tells nothing"
    assert "agreement" not in weights, "and one that is not there neither"
    asked = [row(0, right=right, agreement=float(right)) for right in (True, False) * 20]
    assert fit_confidence(asked, "others")["weights"]["agreement"] > 1
    assert "agreement" not in fit_confidence([*asked, ROWS[0]], "both")["weights"]
    assert table["fitted"] == "200 edits of edits made by hand"
    calibration = Calibration.from_settings(table)
    judged = judge(calibration, [*ROWS, {"status": "failed"}])
    assert judged["edits"] == 200 and judged["right"] == 0.5
    # Two normal distributions three standard deviations apart.
    assert judged["auroc"] == pytest.approx(0.983, abs=0.02)
    low, high = judged["auroc_interval"]
    assert 0.9 < low < judged["auroc"] < high
    assert judged["wrong_among_review"] > 0.8 and judged["right_among_others"] > 0.8
    bins = bins_of(calibration.confidence(signals_of(ROWS)), are_right(ROWS))
    for stated, observed, _, _ in bins:
        assert stated == pytest.approx(observed, abs=0.15)


def test_what_has_no_meaning_is_left_out() -> None:
    judged = judge(Calibration(familiar=20.0), [row(0, right=True) for _ in range(6)])
    assert judged["right"] == 1 and judged["auroc"] is None and judged["auroc_interval"] is None
    assert judged["review_share"] == 0 and judged["wrong_among_review"] is None
    with pytest.raises(InputError, match="6 of 6 are right: calibrate on more items"):
        fit_confidence([row(0, right=True) for _ in range(6)], "those")


@pytest.mark.parametrize(
    "before",
    [
        "",
        'words = ["a"]\n# Why.\n[default]\nguidance = 2.0\n',
        'words = ["a"]\n[confidence]\nbias = 1.0\n[ confidence.weights ]\nshare = 1.0\n[default]\nguidance = 2.0\n',
    ],
)
def test_only_the_confidence_of_the_settings_is_written(before: str) -> None:
    table = fit_confidence(ROWS, "those")
    after = with_confidence(before, table)
    found, expected = tomllib.loads(after), tomllib.loads(before)
    assert found.pop("confidence") == table
    expected.pop("confidence", None)
    assert found == expected
    assert with_confidence(after, table) == after
    assert ("# Why." in after) == ("# Why." in before)


def calibrated(folder: Path, model: Path | str) -> Any:
    command = ["eval", "scenes", "--model", str(model), "--methods", "released", "--third", "tune"]
    command += ["--n", "200", "--out", str(folder / "run"), "--calibrate", "--json"]
    return CliRunner().invoke(main.app, command)


@pytest.mark.long
def test_a_run_calibrates_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    tiny_editor(model)
    named = {"method": "released", "kind": "colour", "evaluations": 300, "seconds": None}
    named |= {"source": "a", "target": "b", "output": "o.png", "preview": "p.png", "mask": "m.png"}
    rows = [{**each, **named, "item": str(i), "id": f"released/{i}"} for i, each in enumerate(ROWS)]
    for each in rows:
        each["figures"] |= {"answer_psnr": 20.0, "edit_psnr": 20.0}
    # What was edited is there already; the rows of a run are tested beside it.
    monkeypatch.setattr(ScenesStudy, "run", lambda *_: Progress(total=200, done=200))
    monkeypatch.setattr(ScenesStudy, "rows", lambda *_: rows[:8])
    result = calibrated(tmp_path, model)
    assert result.exit_code == 2 and "4 of 8 are right: calibrate on more items" in result.stderr
    assert not (model / "uam.toml").exists()
    monkeypatch.setattr(ScenesStudy, "rows", lambda *_: rows)
    result = calibrated(tmp_path, model)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["calibrated"] == str(model / "uam.toml")
    fitted = Editor.load(model).calibration.fitted
    assert "200 edits of Scenes-Bench's tune third, methods released" in fitted
    kept = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert kept["confidence"]["auroc"] == summary["confidence_auroc"] > 0.9
    assert "edits that are not right (50 % of all)" in (tmp_path / "run" / "summary.md").read_text()


def test_the_embedded_models_are_copied_first(tmp_path: Path) -> None:
    result = calibrated(tmp_path, "scenes")
    assert result.exit_code == 2 and "`uam convert scenes FOLDER`" in result.stderr
    assert not (tmp_path / "run").exists()
