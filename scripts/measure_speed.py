"""Growth of time and memory, and the cost of a large job: runs `uam bench` for each question and draws the results.

    python scripts/measure_speed.py

Each measurement is kept in `benchmarks/speed/<device>/<name>` with its command, table and plot; `--only NAME` runs one
of them. Time is expected to be proportional to the number of operations that the compiler counts; memory is expected
to be a constant and a part that is proportional to the area and the number of pictures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uam_jax.evaluation.plots import growth as plot_growth

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path("benchmarks/speed")
IMAGES = 100_000


class Growth(NamedTuple):
    """A question, the options of `uam bench` that answer it, and the axis of its plot."""

    question: str
    options: str
    axis: str
    label: str
    amount: Callable[[Mapping[str, Any]], float]


def _area(case: Mapping[str, Any]) -> float:
    return case["size"] ** 2


GROWTHS = {
    "batch": Study(
        "How do time and memory grow with the batch?",
        "--steps 20 --task edit --batch 1 --batch 2 --batch 4 --batch 8 --batch 16 --batch 32",
        "batch",
        "pictures per batch",
        lambda case: case["batch"],
    ),
    "area": Study(
        "How do time and memory grow with the size of the picture?",
        "--steps 20 --task edit --batch 1 --size 64 --size 128 --size 192 --size 256",
        "size",
        "side in pixels",
        _area,
    ),
    "steps": Study(
        "How does time grow with the number of steps?",
        "--task edit --batch 4 --steps 10 --steps 20 --steps 50",
        "steps",
        "DDIM steps",
        lambda case: 1,
    ),
    "targets": Study(
        "How does time grow with the number of targets?",
        "--steps 20 --task edit --batch 2 --targets 1 --targets 2 --targets 4 --targets 8",
        "targets",
        "targets per picture",
        lambda case: case["targets"],
    ),
    "devices": Study(
        "Do several devices slow each other down?",
        "--device cpu --steps 20 --task edit --batch 2 --devices 1 --devices 2 --devices 4 --devices 8",
        "devices",
        "virtual devices",
        lambda case: case["devices"],
    ),
}

JOB = {
    "cpu": "--shape sd15 --config default --steps 2 --task invert --task edit --batch 1 --repeats 2",
    "gpu": "--shape sd15 --config default --dtype bfloat16 --task edit --task batch "
    "--batch 1 --batch 4 --batch 8 --repeats 3",
}
"""Stable Diffusion 1.5's shape at 512x512; on a CPU with two steps, from which the time of 50 is computed."""


def run_bench(name: str, options: str, device: str) -> tuple[Path, dict[str, Any]]:
    """Runs `uam bench`; returns the folder and the record of its measurement."""
    folder = KEPT / device / name
    given = options if "--device" in options.split() else f"--device {device} {options}"
    command = f"bench {given} --out {folder}"
    print(f"== {name}: uam {command}", flush=True)
    subprocess.run([sys.executable, "-m", "uam_jax", *command.split()], check=True)
    table = folder / "bench.md"
    table.write_text(f"`uam {command}`\n\n{table.read_text()}", encoding="utf-8")
    return folder, json.loads((folder / "bench.json").read_text())


def measure_growth(name: str, growth: Growth, device: str) -> None:
    """Measures growth along one axis, and draws it with the expected law."""
    folder, record = run_bench(name, f"{growth.options} --repeats 3", device)
    points = []
    for each in record["cases"]:
        if "refused" in each:
            continue
        [row], case = each["rows"], {**each["case"], **{"size": each["model"]["size"]}}
        case["steps"] = each["model"]["steps"]
        points.append((case[growth.axis], case, row, row["tflop"]))
    at = [point[0] for point in points]
    seconds = {x: [row["seconds"][k] for k in ("median", "low", "high")] for x, _, row, _ in points}
    memory = {x: [row["memory"]["gigabytes"]] * 3 for x, _, row, _ in points}
    _, _, first, first_work = points[0]
    law = {x: first["seconds"]["median"] * work / first_work for x, _, _, work in points}
    amounts = np.array([[1.0, growth.amount(case)] for _, case, _, _ in points])
    held = np.array([memory[x][0] for x in at])
    constant, slope = np.linalg.lstsq(amounts, held, rcond=None)[0]
    held_law = dict(zip(at, amounts @ [constant, slope], strict=True))
    (folder / "growth.png").write_bytes(
        plot_growth(
            {"seconds": (seconds, law), "memory, GB": (memory, held_law)},
            title=growth.question,
            x=growth.label,
        )
    )
    lines = [
        "", "## Growth", "",
        f"| {growth.label} | seconds | expected by operations | ratio | s per image | GB | GB, least squares |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for x, _, row, _ in points:
        middle = row["seconds"]["median"]
        cells = (
            f"{x:g}", f"{middle:.3g}", f"{law[x]:.3g}", f"{middle / law[x]:.2f}",
            f"{middle / row['images']:.3g}", f"{memory[x][0]:.2f}", f"{held_law[x]:.2f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    with (folder / "bench.md").open("a", encoding="utf-8") as table:
        table.write("\n".join(lines) + "\n")


def measure_job(device: str) -> None:
    """Measures the time that `IMAGES` pictures at 512x512 take on this device, with the preset `default`."""
    from uam_jax.evaluation.speed import evaluations_by_maps
    from uam_jax.method.config import EditConfig
    from uam_jax.method.schedule import Schedule

    folder, record = run_bench("sd15", JOB[device], device)
    config = EditConfig.load("default")
    schedule = Schedule(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    plan = config.plan(schedule.timesteps(config.steps))
    lines = ["", f"## {IMAGES:,} images at 512x512, preset `default`", ""]
    good = [each for each in record["cases"] if "refused" not in each]
    if device == "cpu":
        [invert, edit] = good[0]["rows"]
        # Evaluations with the text's maps take longer than those with uniform maps, in proportion to operations.
        cost = edit["gflop_per_evaluation"]
        pace = invert["seconds"]["median"] / (invert["evaluations"] * cost["uniform"])
        rest = edit["seconds"]["median"] - 1000 * edit["tflop"] * pace
        counted = evaluations_by_maps(config, plan)
        work = sum(counted[maps] * cost[maps] for maps in cost)
        total = work * pace + rest
        lines.append(
            f"An evaluation takes {pace * cost['uniform']:.2f} s with uniform maps and, in proportion to operations, "
            f"{pace * cost['text']:.2f} s with the text's; the rest of an edit (VAE, text) takes {rest:.0f} s. "
            f"{counted['uniform']} and {counted['text']} evaluations ({work / 1000:.0f} TFLOP) and the rest take "
            f"{total:.0f} s per image: **{IMAGES * total / 3600:,.0f} hours** on this machine."
        )
    else:
        rows = [row for each in good for row in each["rows"] if row["task"] == "batch"]
        best = max(row["images_per_second"] for row in rows)
        lines.append(
            f"`uam batch` edits {best:.3g} images/s at its best batch: **{IMAGES / best / 3600:,.1f} chip-hours**."
        )
    with (folder / "bench.md").open("a", encoding="utf-8") as table:
        table.write("\n".join(lines) + "\n")


def measure_start(device: str) -> None:
    """Measures the start of a fresh process up to its first edited picture, with and without a compilation cache."""
    from uam_jax import scenes
    from uam_jax.io.encoding import write_image
    from uam_jax.runtime import backend

    def seconds(*command: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as scratch:
        scene = scenes.make_scene(shape="star", colour="red", size="large", place="centre")
        picture = Path(scratch, "scene.png")
        write_image(picture, scenes.render_in_chunks(scene, size=64)[0])
        target = scenes.caption(scene[0]).replace("red", "green")
        edit = ["-m", "uam_jax", "edit", str(picture), "--target", target, "--device", device]
        edit += ["--out", f"{scratch}/edited.png", "--cache-dir", f"{scratch}/cache"]
        rows = {
            "`import uam_jax`": [seconds("-c", "import uam_jax") for _ in range(5)],
            "`uam --help`": [seconds("-m", "uam_jax", "--help") for _ in range(5)],
            "`uam edit`, empty compilation cache": [seconds(*edit)],
            "`uam edit`, full compilation cache": [seconds(*edit) for _ in range(3)],
        }
    machine = {**backend.describe_host(), **backend.versions("uam_jax", "jax", "jaxlib", "flax")}
    lines = [
        f"`python scripts/measure_speed.py --only start --device {device}`, the embedded model; "
        + ", ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        "| fresh process | seconds, median | all runs |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {np.median(all_):.2f} | {', '.join(f'{each:.2f}' for each in all_)} |"
            for name, all_ in rows.items()
        ),
    ]
    folder = KEPT / device / "start"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "start.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    names = (*GROWTHS, "sd15", "start")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=tuple(JOB), default="cpu")
    parser.add_argument(
        "--only", choices=names, action="append", help="run this measurement only; repeatable"
    )
    args = parser.parse_args()
    if Path.cwd() != ROOT:
        sys.exit(f"run it in {ROOT}, because its commands use relative paths")
    for name in args.only or names:
        if name == "start":
            measure_start(args.device)
        elif name == "sd15":
            measure_job(args.device)
        elif name != "devices" or args.device == "cpu":
            measure_growth(name, GROWTHS[name], args.device)


if __name__ == "__main__":
    main()
