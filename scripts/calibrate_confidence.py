r"""Fits the confidence of the embedded model's edits on the tune third, and tests it on the report third.

    uam eval scenes --methods default --third tune --out runs/scenes/tune
    uam eval scenes --methods default --third report --out runs/scenes/report
    python scripts/calibrate_confidence.py --tune runs/scenes/tune --report runs/scenes/report \
        --out benchmarks/scenes/confidence --write

An edit is right if it succeeded and its background is at most 6 dB below that of the VAE alone (four times its squared
error), both in the delivered picture. A logistic regression on the standardised signals, with a ridge that five folds
choose, estimates the probability of that. Photographs and noise, which are outside the model's world, must have a low
confidence.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from uam_jax import Editor
from uam_jax.evaluation import metrics
from uam_jax.evaluation.plots import reliability
from uam_jax.io.images import resize, working_size
from uam_jax.io.storage import Folder
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.ledger import Row
from uam_jax.method.confidence import REASONS, Calibration

MOVED = 6.0
"""dB below the VAE's background from which a background counts as changed."""

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
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


def is_right(row: Row) -> bool:
    figures = row["figures"]
    success = figures.get("kept_success", figures["success"])
    background = figures.get("kept_background_psnr", figures["background_psnr"])
    moved = background is not None and figures["vae_background_psnr"] - background > MOVED
    return bool(success) and not moved


def signals_of(rows: list[Row]) -> dict[str, np.ndarray]:
    names = (*REASONS, "reconstruction", "noise", "changed", "opacity")
    return {name: np.asarray([row["figures"][name] for row in rows], np.float64) for name in names}


def fit(x: np.ndarray, right: np.ndarray, ridge: float) -> np.ndarray:
    """Bias and weights of a logistic regression with a ridge."""
    sign = np.where(right, 1.0, -1.0)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (w[0] + x @ w[1:])
        pull = -sign / (1 + np.exp(np.clip(margin, -30, 30)))
        gradient = np.append(pull.sum(), x.T @ pull + ridge * w[1:])
        return float(np.logaddexp(0, -margin).sum() + ridge / 2 * w[1:] @ w[1:]), gradient

    return minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x


def best_ridge(x: np.ndarray, right: np.ndarray) -> float:
    fold = np.random.default_rng(0).permutation(len(x)) % 5

    def held_out(ridge: float) -> float:
        loss = 0.0
        for k in range(5):
            w = fit(x[fold != k], right[fold != k], ridge)
            logit = w[0] + x[fold == k] @ w[1:]
            loss += np.logaddexp(0, np.where(right[fold == k], -logit, logit)).sum()
        return loss

    return min(RIDGES, key=held_out)


def calibrate(rows: list[Row], weights_hash: str) -> dict[str, Any]:
    """The table `[confidence]` of the model's settings."""
    signals, right = signals_of(rows), np.asarray([is_right(row) for row in rows])
    names = [name for name in REASONS if signals[name].std() > 1e-6]
    means = {name: signals[name].mean() for name in names}
    scales = {name: signals[name].std() for name in names}
    x = np.stack([(signals[name] - means[name]) / scales[name] for name in names], axis=1)
    w = fit(x, right, best_ridge(x, right))

    def rounded(values: dict[str, float]) -> dict[str, float]:
        return {name: round(float(value), 5) for name, value in values.items()}

    typical = float(np.median(signals["noise"]))
    noise = np.abs(np.log(np.maximum(signals["noise"], 1e-6) / typical))
    return {
        "fitted": f"{len(rows)} edits of Scenes-Bench's tune third, weights {weights_hash}",
        "bias": round(float(w[0]), 5),
        # 99 of 100 pictures of its own world count as familiar.
        "familiar": round(float(np.percentile(signals["reconstruction"], 1)), 2),
        "typical_noise": round(typical, 4),
        "noise": round(float(np.percentile(noise, 99)), 4),
        "below": 0.5,
        "weights": rounded(dict(zip(names, w[1:], strict=True))),
        "means": rounded(means),
        "scales": rounded(scales),
    }


def as_toml(table: dict[str, Any]) -> str:
    lines = ["[confidence]"]
    nested = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines += [f"{key} = {json.dumps(v)}" for key, v in table.items() if key not in nested]
    for key, values in nested.items():
        lines += ["", f"[confidence.{key}]", *(f"{name} = {v}" for name, v in values.items())]
    return "\n".join(lines) + "\n"


def write_settings(path: Path, table: dict[str, Any]) -> None:
    kept = path.read_text(encoding="utf-8").partition("[confidence]")[0].rstrip()
    path.write_text(f"{kept}\n\n{as_toml(table)}", encoding="utf-8")


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


def bins_of(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Stated confidence and observed share of right edits, with interval, in five bins of equal size."""
    order = np.argsort(confidence, kind="stable")
    found = []
    for part in np.array_split(order, 5):
        mean, low, high = metrics.bootstrap(right[part].astype(np.float64))
        found.append((float(confidence[part].mean()), mean, low, high))
    return found


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
    table = calibrate(tune, editor.weights_hash)
    calibration = Calibration.from_settings(table)
    figures: dict[str, Any] = {"method": args.method, "weights": editor.weights_hash}
    plotted = {}
    for name, rows in (("tune", tune), ("report", report)):
        right = np.asarray([is_right(row) for row in rows])
        sure = calibration.confidence(signals_of(rows))
        draws = np.random.default_rng(0).integers(0, len(rows), (2000, len(rows)))
        spread = np.nanpercentile([metrics.auroc(-sure[d], ~right[d]) for d in draws], [2.5, 97.5])
        plotted[f"{name} third"] = bins_of(sure, right)
        flagged = sure < calibration.below
        figures[name] = {
            "edits": len(rows),
            "right": round(float(right.mean()), 4),
            "auroc": round(metrics.auroc(-sure, ~right), 4),
            "auroc_interval": [round(float(x), 4) for x in spread],
            "brier": round(float(np.mean((sure - right) ** 2)), 4),
            "review_share": round(float(flagged.mean()), 4),
            "wrong_among_review": round(float((~right[flagged]).mean()), 4)
            if flagged.any()
            else None,
            "right_among_others": round(float(right[~flagged].mean()), 4),
        }
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
        write_settings(SETTINGS, table)
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
