"""All measurements of the embedded model: runs every study, and keeps its summary, tables and plots.

    python scripts/measure_scenes.py --write

An interrupted study resumes (`runs/scenes/`). Tables and plots are kept in `benchmarks/scenes/`, each with its command;
`--write` also updates the figures in README and model card. Settings are chosen on the tune third, and figures are
reported for the report third; the reserve third is not used.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uam_jax import Editor, scenes
from uam_jax.evaluation.metrics import bootstrap, psnr
from uam_jax.evaluation.plots import curves

ROOT = Path(__file__).resolve().parents[1]
RUNS, KEPT = Path("runs/scenes"), Path("benchmarks/scenes")

_DRAW = 104_729  # Makes these scenes differ from those of the training, the demo and the benchmark.
_CHUNK = 32
_NAMED = ("shape", "colour", "surface", "wall")

EVALUATE = {
    "report": "scenes --methods default,fast,released --third report --share --chunk 6",
    "tune": "scenes --methods default,configs/scenes/own.toml --third tune --n 96 --share --chunk 6",
    "ablation": "scenes --methods configs/scenes/ablation.toml --third tune --n 64 --share",
    "tuning": "scenes --methods configs/scenes/tuning.toml --third tune --n 48 --share",
    "finer": "scenes --methods configs/scenes/finer.toml --third tune --n 48 --share",
    "finest": "scenes --methods configs/scenes/finest.toml --third tune --n 96 --share",
    "regions": "scenes --methods configs/scenes/regions.toml --third tune --n 48 --share",
    "late": "scenes --methods configs/scenes/late.toml --third tune --n 64 --share",
    "candidates": "scenes --methods configs/scenes/candidates.toml --third tune --n 64 --share --chunk 5",
    "few": "scenes --methods configs/scenes/few.toml --third tune --n 64 --share --chunk 5",
    "blend": "scenes --methods configs/scenes/blend.toml --third tune --n 60 --share --chunk 5",
    "plain": "scenes --methods configs/scenes/plain.toml --third tune --n 64 --share",
    "reconstruction": "reconstruction --third report --n 32",
}
"""Arguments of `uam eval` by study."""

SCRIPTS = {
    "methods": "scripts/compare_methods.py",
    "captions": "scripts/compare_captions.py",
    "confidence": "scripts/calibrate_confidence.py --write",
}
"""Studies with a script of their own, which keep their tables themselves; the methods' edits fit the confidence."""


def in_chunks(function: Callable[..., np.ndarray], *columns: Sequence[Any]) -> np.ndarray:
    """Applies a batched function to parts of equal size, so that it is compiled once."""
    parts = range(0, len(columns[0]), _CHUNK)
    return np.concatenate(
        [np.asarray(function(*(column[i : i + _CHUNK] for column in columns))) for i in parts]
    )


def measure_model(count: int) -> None:
    """Measures the VAE, and generation from text, on scenes that the training has not seen."""
    editor, began = Editor.load("scenes"), time.monotonic()
    world = scenes.sample(jax.random.key(_DRAW), count)
    truth = scenes.render_in_chunks(world, size=editor.native_size)
    rebuilt = psnr(in_chunks(lambda x: editor.decode(editor.encode(x)), truth), truth)
    world = scenes.sample(jax.random.key(_DRAW + 1), count, empty=0.0)
    made = in_chunks(lambda texts: editor.generate(texts, seed=1), scenes.captions(world))
    found = scenes.nearest_attributes(made)
    right = {
        name: np.asarray(getattr(found, name)) == np.asarray(getattr(world, name))
        for name in _NAMED
    }
    right["object and colour"] = right["shape"] & right["colour"]
    device = jax.devices()[0]
    summary = {
        "weights": editor.weights_hash,
        "scenes": count,
        "device": f"{device.platform}, {device.device_kind}, jax {jax.__version__}",
        "minutes": round((time.monotonic() - began) / 60, 1),
        "vae_psnr": bootstrap(rebuilt),
        "vae_worst": float(rebuilt.min()),
        "generated": {name: bootstrap(of.astype(np.float64)) for name, of in right.items()},
    }
    folder = KEPT / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))


def run_study(name: str) -> None:
    """Runs `uam eval` for a study and keeps its tables and plots."""
    command = f"eval {EVALUATE[name]} --out {RUNS / name}"
    subprocess.run([sys.executable, "-m", "uam_jax", *command.split()], check=True)
    folder = KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*(RUNS / name).glob("*.png"), RUNS / name / "summary.json"):
        shutil.copy(file, folder)
    text = (RUNS / name / "summary.md").read_text(encoding="utf-8")
    (folder / "summary.md").write_text(f"`uam {command}`\n\n{text}", encoding="utf-8")
    if name == "regions":
        draw_regions(folder)


def draw_regions(folder: Path) -> None:
    """Draws success and background against the uniformity, which is the last word of a method's name."""
    methods = read("regions")["methods"]
    for figure, label in {
        "success": "share of edits that succeeded",
        "background_psnr": "background PSNR (dB)",
    }.items():
        lines: dict[str, dict[float, Sequence[Any]]] = {}
        for name, of in methods.items():
            where, _, uniformity = name.rpartition(" ")
            lines.setdefault(where, {})[float(uniformity)] = of["overall"][figure]
        for where, points in lines.items():
            # With a uniformity of 0 all are the same method.
            lines[where] = {0.0: methods["target 0"]["overall"][figure], **points}
        plot = curves(
            lines,
            title=f"Uniform maps outside the region, {methods['target 0']['items']} edits",
            x="uniformity outside the region",
            y=label,
        )
        (folder / f"curve-{figure.replace('_', '-')}.png").write_bytes(plot)


def read(name: str) -> dict[str, Any]:
    """The kept summary of a study."""
    return json.loads((KEPT / name / "summary.json").read_text())


def figures() -> str:
    """The table for README and model card, from the kept summaries, which must be of the present weights."""
    weights = Editor.load("scenes").weights_hash
    model, confidence, report, rebuilt = map(
        read, ("model", "confidence", "report", "reconstruction")
    )
    kept = {
        "model": model["weights"],
        "confidence": confidence["weights"],
        "report": report["facts"]["weights"],
        "reconstruction": rebuilt["facts"]["weights"],
    }
    if old := [name for name, of in kept.items() if of != weights]:
        sys.exit(
            f"{', '.join(old)}: measured with other weights than the model's ({weights}); run without --only"
        )
    facts = report["facts"]
    lines = [
        f"`python scripts/measure_scenes.py --write`, weights `{weights}`, {facts['device']}, "
        f"{facts['versions']}; mean [95 % interval]:",
        "",
        "| Subject | Figure | Value |",
        "| --- | --- | --- |",
    ]

    def add(subject: str, rows: Sequence[tuple[str, str]]) -> None:
        for name, value in rows:
            lines.append(f"| {subject} | {name} | {value} |")
            subject = ""

    add(f"VAE, {model['scenes']} unseen scenes", [("PSNR", interval(model["vae_psnr"], "dB"))])
    named = {"shape": "object"}
    add(
        f"pictures generated from {model['scenes']} unseen captions",
        [
            (f"{named.get(name, name)} as captioned", interval(three, "%"))
            for name, three in model["generated"].items()
        ],
    )
    add(
        "reconstruction against the VAE's picture, 50 steps",
        [
            (case, interval(rebuilt["cases"][f"{case}, 50 steps"]["psnr"], "dB"))
            for case in ("source prompt", "null prompt", "wrong prompt", "uniform maps")
        ],
    )
    for method in ("default", "fast", "released"):
        of = report["methods"][method]
        means = of["overall"]
        rows = [
            ("edits that succeeded", interval(means["success"], "%")),
            ("background PSNR", interval(means["background_psnr"], "dB")),
            ("distance to the VAE's background", interval(means["background_gap"], "dB")),
        ]
        if "kept_background_psnr" in means:
            kept = means["kept_success"], means["kept_background_psnr"]
            rows += [
                ("unedited pixels kept: edits that succeeded", interval(kept[0], "%")),
                ("unedited pixels kept: background PSNR", interval(kept[1], "dB")),
            ]
        rows += [
            ("overlap of its mask with the exact mask", interval(means["mask_iou"], "")),
            ("evaluations", str(of["evaluations"])),
        ]
        add(f"`{method}`, Scenes-Bench, report third, {of['items']} edits", rows)
    areas = [
        (name, interval((part["auroc"], *part["auroc_interval"]), ""))
        for name, part in confidence["parts"].items()
    ]
    add("confidence: AUROC for detecting edits that are not right", areas)
    return "\n".join(lines)


def methods() -> str:
    """The comparison's table for the README: by success, then by background."""
    summary = json.loads((KEPT / "methods" / "report.json").read_text())
    lines = [
        f"`python scripts/compare_methods.py`, {summary['facts']['benchmark']}; mean [95 % interval]:",
        "",
        "| Preset; or inversion, control, mask | Success | Background "
        "| Success, as delivered | Background, as delivered | Evaluations |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    units = {
        "success": "%",
        "background_psnr": "dB",
        "kept_success": "%",
        "kept_background_psnr": "dB",
    }
    none = (None,) * 3

    def rank(each: dict[str, Any]) -> list[float]:
        means = each["overall"]
        return [means.get(key, none)[0] or 0 for key in ("success", "background_psnr")]

    of = summary["methods"]
    for name in sorted(of, key=lambda name: rank(of[name]), reverse=True):
        cells = [interval(of[name]["overall"].get(key, none), unit) for key, unit in units.items()]
        lines.append(f"| {name} | {' | '.join(cells)} | {of[name]['evaluations']} |")
    return "\n".join(lines)


def interval(three: Sequence[float | None], unit: str) -> str:
    if three[0] is None:
        return "–"
    digits, factor = (0, 100) if unit == "%" else (2, 1)
    mean, low, high = (f"{factor * value:.{digits}f}" for value in three if value is not None)
    return f"{mean} [{low}, {high}] {unit}".rstrip()


def write_between_marks(path: Path, name: str, text: str) -> None:
    """Replaces the text between the two marks of a name in a Markdown file."""
    marks = f"<!-- {name}: scripts/measure_scenes.py -->", f"<!-- end of {name} -->"
    pattern = re.compile("(?s)" + re.escape(marks[0]) + ".*?" + re.escape(marks[1]))
    old = path.read_text(encoding="utf-8")
    if not pattern.search(old):
        sys.exit(f"{path} lacks the marks {marks[0]} and {marks[1]}")
    path.write_text(pattern.sub(lambda _: f"{marks[0]}\n{text}\n{marks[1]}", old), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = ("model", *EVALUATE, *SCRIPTS)
    parser.add_argument(
        "--only", choices=names, action="append", help="run this study only; repeatable"
    )
    parser.add_argument(
        "--count", type=int, default=512, help="scenes for the figures of the model itself"
    )
    parser.add_argument("--write", action="store_true", help="update README.md and MODEL_CARD.md")
    args = parser.parse_args()
    if Path.cwd() != ROOT:
        sys.exit(f"run it in {ROOT}, because its commands use relative paths")
    for name in args.only or names:
        print(f"== {name}", flush=True)
        if name == "model":
            measure_model(args.count)
        elif name in SCRIPTS:
            subprocess.run([sys.executable, *SCRIPTS[name].split()], check=True)
        else:
            run_study(name)
    if args.write:
        readme, texts = ROOT / "README.md", {"figures": figures(), "methods": methods()}
        for name, text in texts.items():
            write_between_marks(readme, name, text)
        write_between_marks(
            ROOT / "uam_jax" / "scenes" / "MODEL_CARD.md", "figures", texts["figures"]
        )


if __name__ == "__main__":
    main()
