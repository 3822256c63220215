"""Fits the confidence of the embedded model's edits on the tune third, and tests it on the report third.

    python scripts/compare_methods.py
    python scripts/calibrate_confidence.py --write

The edits are those of all methods that the comparison has taken to the report third: its best cells and its presets.
Those of the model's own settings are also judged alone. `uam_jax.evaluation.calibration` says which edits are right,
and fits. Photographs and noise, which are outside the model's world, must have a low confidence.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import compare_methods
import numpy as np

from uam_jax import Editor
from uam_jax.evaluation.calibration import (
    are_right,
    bins_of,
    fit_confidence,
    judge,
    signals_of,
    with_confidence,
)
from uam_jax.evaluation.plots import reliability
from uam_jax.io.images import resize, working_size
from uam_jax.jobs.ledger import Row
from uam_jax.method.confidence import Calibration

PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "camera",
    "brick",
    "grass",
    "moon",
    "horse",
)
SETTINGS = Path("uam_jax/scenes/checkpoint/uam.toml")
OUT = Path("benchmarks/scenes/confidence")


def rows_of(stage: str, weights: str) -> list[Row]:
    """The edits of a stage by the methods of the last one, without those that failed, in the order of their ids."""
    kept = compare_methods.KEPT
    if not (summary := kept / "report.json").exists():
        sys.exit(f"no {summary}: run scripts/compare_methods.py first")
    compared = json.loads(summary.read_text())["methods"]
    rows = []
    for file in (kept / stage).glob("*.json.gz"):
        found = json.loads(gzip.decompress(file.read_bytes()))
        if found["weights"] != weights:
            sys.exit(
                f"{file} is of other weights ({found['weights']}): run scripts/compare_methods.py"
            )
        rows += compare_methods.unpacked(found["methods"])
    wanted = [row for row in rows if row["method"] in compared and row["status"] == "ok"]
    return sorted(wanted, key=lambda row: row["id"])


def strangers(editor: Editor) -> dict[str, np.ndarray]:
    """Signals and names of pictures outside the model's world: photographs and noise."""
    from skimage import data

    side = editor.native_size
    pictures, names = [], []
    for name in PHOTOGRAPHS:
        pixels = np.asarray(getattr(data, name)())
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * 255
        pixels = np.repeat(pixels[..., None], 3, -1) if pixels.ndim == 2 else pixels[..., :3]
        values = pixels.astype(np.float32) / 127.5 - 1
        top, left = ((length - min(values.shape[:2])) // 2 for length in values.shape[:2])
        short = min(values.shape[:2])
        square = values[top : top + short, left : left + short]
        assert working_size(square.shape[:2], side, editor.size_multiple) == (side, side)
        pictures.append(resize(square, (side, side)))
        names.append(name)
    rng = np.random.default_rng(0)
    for i in range(7):
        pictures.append(np.clip(rng.normal(0, 0.5, (side, side, 3)), -1, 1).astype(np.float32))
        names.append(f"noise {i}")
    images = np.stack(pictures)
    target = ["a large red cube in the centre of a wooden table in front of a blue wall"] * len(
        names
    )
    result = editor.edit(images, target)
    signals = {name: np.asarray(values) for name, values in result.signals.items()}
    assert np.isfinite(np.asarray(result.images)).all()
    return {**signals, "name": np.asarray(names)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--write", action="store_true", help=f"write the calibration into {SETTINGS}"
    )
    args = parser.parse_args()
    editor = Editor.load("scenes")
    tune, report = (rows_of(stage, editor.weights_hash) for stage in ("tune", "report"))
    own = [row for row in report if row["method"] == "default"]
    on = f"Scenes-Bench's tune third by {methods(tune)} methods, weights {editor.weights_hash}"
    table = fit_confidence(tune, on)
    calibration = Calibration.from_settings(table)
    parts = {
        f"tune third, {methods(tune)} methods": tune,
        f"report third, {methods(report)} methods": report,
        "report third, own settings": own,
    }
    figures: dict[str, Any] = {
        "weights": editor.weights_hash,
        "parts": {name: judge(calibration, rows) for name, rows in parts.items()},
    }
    plotted = {
        name: bins_of(calibration.confidence(signals_of(rows)), are_right(rows))
        for name, rows in parts.items()
    }
    unknown = strangers(editor)
    sure = calibration.confidence(unknown)
    figures["strangers"] = {
        str(name): {"confidence": round(float(c), 4), "reconstruction": round(float(r), 2)}
        for name, c, r in zip(unknown["name"], sure, unknown["reconstruction"], strict=True)
    }
    figures["calibration"] = table
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "summary.json").write_text(json.dumps(figures, indent=1))
    (OUT / "reliability.png").write_bytes(reliability(plotted, title="Confidence of edits"))
    (OUT / "summary.md").write_text(as_markdown(figures))
    if args.write:
        known = SETTINGS.read_text(encoding="utf-8")
        SETTINGS.write_text(with_confidence(known, table), encoding="utf-8")
    print((OUT / "summary.md").read_text())


def methods(rows: list[Row]) -> int:
    return len({row["method"] for row in rows})


def as_markdown(figures: dict[str, Any]) -> str:
    parts = figures["parts"]
    lines = [
        f"`python scripts/calibrate_confidence.py`, weights `{figures['weights']}`:",
        "",
        f"| | {' | '.join(parts)} |",
        "|" + " --- |" * (1 + len(parts)),
    ]
    names = {
        "edits": "edits", "right": "share of right edits", "auroc": "AUROC for detecting the others",
        "auroc_interval": "its 95 % interval", "brier": "Brier score",
        "review_share": "share flagged for review",
        "wrong_among_review": "share of edits that are not right among the flagged",
        "right_among_others": "share of right edits among the others",
    }  # fmt: skip
    for key, text in names.items():
        lines.append(f"| {text} | {' | '.join(str(part[key]) for part in parts.values())} |")
    lines += [
        "",
        "Pictures outside the model's world:",
        "",
        "| picture | confidence | reconstruction dB |",
        "| --- | --- | --- |",
    ]
    for name, of in figures["strangers"].items():
        lines.append(f"| {name} | {of['confidence']} | {of['reconstruction']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
