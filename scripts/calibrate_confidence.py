r"""Fits the confidence of the embedded model's edits on the tune third, and tests it on the report third.

    uam eval scenes --methods default --third tune --out runs/scenes/tune
    uam eval scenes --methods default --third report --out runs/scenes/report
    python scripts/calibrate_confidence.py --tune runs/scenes/tune --report runs/scenes/report \
        --out benchmarks/scenes/confidence --write

`uam_jax.evaluation.calibration` says which edits are right, and fits. Photographs and noise, which are outside the
model's world, must have a low confidence.
"""

import argparse
import json
from pathlib import Path
from typing import Any

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
from uam_jax.io.storage import Folder
from uam_jax.jobs.job_folder import JobFolder
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


def rows_of(folder: str, method: str) -> list[Row]:
    rows = JobFolder(Folder(folder)).rows().values()
    return [row for row in rows if row["status"] == "ok" and row["method"] == method]


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
    parser.add_argument("--tune", required=True, help="folder of `uam eval scenes --third tune`")
    parser.add_argument(
        "--report", required=True, help="folder of `uam eval scenes --third report`"
    )
    parser.add_argument("--method", default="default")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the plot")
    parser.add_argument(
        "--write", action="store_true", help=f"write the calibration into {SETTINGS}"
    )
    args = parser.parse_args()
    editor = Editor.load("scenes")
    tune, report = rows_of(args.tune, args.method), rows_of(args.report, args.method)
    on = f"Scenes-Bench's tune third, weights {editor.weights_hash}"
    table = fit_confidence(tune, on)
    calibration = Calibration.from_settings(table)
    figures: dict[str, Any] = {"method": args.method, "weights": editor.weights_hash}
    plotted = {}
    for name, rows in (("tune", tune), ("report", report)):
        figures[name] = judge(calibration, rows)
        sure = calibration.confidence(signals_of(rows))
        plotted[f"{name} third"] = bins_of(sure, are_right(rows))
    unknown = strangers(editor)
    sure = calibration.confidence(unknown)
    figures["strangers"] = {
        str(name): {"confidence": round(float(c), 4), "reconstruction": round(float(r), 2)}
        for name, c, r in zip(unknown["name"], sure, unknown["reconstruction"], strict=True)
    }
    figures["calibration"] = table
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "summary.json").write_text(json.dumps(figures, indent=1))
    title = f"Confidence of {args.method}'s edits"
    (args.out / "reliability.png").write_bytes(reliability(plotted, title=title))
    (args.out / "summary.md").write_text(as_markdown(figures, args))
    if args.write:
        known = SETTINGS.read_text(encoding="utf-8")
        SETTINGS.write_text(with_confidence(known, table), encoding="utf-8")
    print((args.out / "summary.md").read_text())


def as_markdown(figures: dict[str, Any], args: argparse.Namespace) -> str:
    lines = [
        f"`python scripts/calibrate_confidence.py --tune {args.tune} --report {args.report} "
        f"--out {args.out}`, method {figures['method']}, weights `{figures['weights']}`:",
        "",
        "| | tune third | report third |",
        "| --- | --- | --- |",
    ]
    names = {
        "edits": "edits", "right": "share of right edits", "auroc": "AUROC for detecting the others",
        "auroc_interval": "its 95 % interval", "brier": "Brier score",
        "review_share": "share flagged for review",
        "wrong_among_review": "share of edits that are not right among the flagged",
        "right_among_others": "share of right edits among the others",
    }  # fmt: skip
    for key, text in names.items():
        lines.append(f"| {text} | {figures['tune'][key]} | {figures['report'][key]} |")
    lines += [
        "",
        "Pictures outside the model's world:",
        "",
        "| picture | confidence | reconstruction dB |",
    ]
    lines.append("| --- | --- | --- |")
    for name, of in figures["strangers"].items():
        lines.append(f"| {name} | {of['confidence']} | {of['reconstruction']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
