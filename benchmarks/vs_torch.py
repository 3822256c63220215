"""The same edits with the same weights by uam_jax and by PyTorch over diffusers: seconds, ratios, pictures compared.

    python benchmarks/vs_torch.py

Every cell of the table (who, which evaluations, which settings, how many images) is built and run once, then all are
timed in turns, round by round, forwards and backwards alternately, from pictures and prompts in memory to pictures in
memory: texts encoded, VAE, both inversions, edit. Ratios are taken within a round, so that what slows the machine for
a while slows both sides. What PyTorch runs is `torch_editor.py`.

On a CPU it starts itself again with an allocator that keeps its memory, since otherwise PyTorch spends half its time on
page faults; on a GPU with a JAX that leaves PyTorch some memory.
"""

import argparse
import dataclasses
import gc
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

OURS, AS_RELEASED = "uam_jax", "as released"
VARIANTS = {
    "released-eager": "the released evaluations, one image, float32, as diffusers loads it: what ratios are against",
    "released-compiled": "the released evaluations, compiled",
    "eager": "our evaluations",
    "compiled": "our evaluations, compiled",
}
"""The forms in PyTorch."""

_DRAW = 86_028_121  # keeps these scenes apart from all that the model was trained or judged on


@dataclass
class Cell:
    """One thing that is timed.

    Attributes:
      who: `OURS`, or the form in PyTorch.
      settings: name of the edit's settings.
      batch: images at once.
      evaluations: single-sample U-Net evaluations an image.
      run: edits the batch; pictures, (batch, h, w, 3) in [-1, 1].
      first: seconds of the first run, with all compilation.
      seconds: of a run, round by round.
      pictures: of the first run.
      failed: why it could not run.
    """

    who: str
    settings: str
    batch: int
    evaluations: int
    run: Callable[[], np.ndarray] = field(repr=False)
    first: float = float("nan")
    seconds: list[float] = field(default_factory=list)
    pictures: np.ndarray | None = field(default=None, repr=False)
    failed: str = ""

    @property
    def name(self) -> str:
        return f"{self.who}, {self.settings}, batch {self.batch}"

    def start(self) -> None:
        """Runs it once; a failure is kept, so that the others go on."""
        began = time.perf_counter()
        try:
            self.pictures = self.run()
        except Exception as error:  # whatever a compiler raises
            self.failed = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        self.first = time.perf_counter() - began
        print(f"  {self.name}: {self.failed or f'first run {self.first:.1f} s'}", flush=True)

    def each(self) -> np.ndarray:
        """Seconds an image, round by round."""
        return np.asarray(self.seconds) / self.batch


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Variables that must be set before the process starts."""
    if args.device != "cpu":
        return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    wanted = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(args.devices)}
    if sys.platform == "linux":
        wanted |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30)}
    return wanted


def start_again_with(wanted: dict[str, str]) -> None:
    """Replaces this process by the same one with variables set, where they are not."""
    missing = {name: value for name, value in wanted.items() if os.environ.get(name) != value}
    if missing:
        print("starting again with", " ".join(f"{n}={v}" for n, v in missing.items()), flush=True)
        os.execve(sys.executable, sys.orig_argv, os.environ | missing)


def build(args: argparse.Namespace) -> tuple[list[Cell], dict[str, Any]]:
    """All cells, and facts about what they run on."""
    import jax
    import torch
    from diffusers.utils import logging as diffusers_logging
    from torch_editor import TorchEditor, plan_of
    from transformers.utils import logging as transformers_logging

    from uam_jax import EditConfig, Editor, scenes
    from uam_jax.checkpoints.load import EMBEDDED
    from uam_jax.engine.parallel import Devices

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    if jax.default_backend() != {"cuda": "gpu"}.get(args.device, args.device):
        sys.exit(f"--device {args.device}: JAX runs on {jax.default_backend()}")

    folder = EMBEDDED.get(args.model, Path(args.model))
    editor = Editor.load(args.model, dtype=args.dtype)
    changes: dict[str, Any] = {"preserve": "latent"} | ({"steps": args.steps} if args.steps else {})
    found = {name: EditConfig.load(name) for name in ("released", "default")}
    if "default" in editor.checkpoint.settings:
        found["own"] = editor.default_config
    configs = {name: config.updated(changes) for name, config in found.items()}
    chosen = [name for name in args.settings or configs if name in configs]
    largest = max(args.batch)
    before = scenes.sample(jax.random.key(_DRAW), largest, empty=0.0)
    after = before.replace(colour=(before.colour + 1) % len(scenes.COLOURS))
    pictures = np.asarray(scenes.render_in_chunks(before, size=editor.native_size), np.float32)
    targets = scenes.captions(after)

    cells = []

    def ours(name: str, batch: int, devices: int = 1) -> Cell:
        on = editor.on(Devices.local(devices)) if devices > 1 else editor

        def run() -> np.ndarray:
            result = on.edit(pictures[:batch], targets[:batch], config=configs[name])
            return np.asarray(result.images, np.float32)

        who = f"{OURS}, {devices} devices" if devices > 1 else OURS
        return Cell(who, name, batch, editor.evaluations(configs[name]), run)

    def theirs(who: str, of: TorchEditor, name: str, batch: int, as_released: bool) -> Cell:
        def run() -> np.ndarray:
            return of.edit(
                pictures[:batch], targets[:batch], configs[name], as_released=as_released
            )

        plan = plan_of(configs[name], of.schedule, as_released=as_released)
        return Cell(who, name, batch, plan.evaluations(), run)

    for name in chosen:
        for batch in args.batch:
            cells.append(ours(name, batch))
            if 1 < args.devices <= batch:
                cells.append(ours(name, batch, args.devices))
    options = {"device": args.device, "dtype": args.dtype}
    if "released-eager" in args.variants:
        plain = TorchEditor(folder, device=args.device, channels_last=False)
        cells.append(theirs(f"PyTorch {AS_RELEASED}, eager", plain, "released", 1, True))
    if "eager" in args.variants:
        eager = TorchEditor(folder, **options)
        cells += [
            theirs("PyTorch, eager", eager, name, batch, False)
            for name in chosen
            for batch in args.batch
        ]
    for mode in args.modes:
        if {"compiled", "released-compiled"}.isdisjoint(args.variants):
            continue
        compiled = TorchEditor(folder, compiled=mode, **options)
        for batch in args.batch:
            if "compiled" in args.variants:
                cells += [
                    theirs(f"PyTorch, compiled ({mode})", compiled, name, batch, False)
                    for name in chosen
                ]
            if "released-compiled" in args.variants:
                who = f"PyTorch {AS_RELEASED}, compiled ({mode})"
                cells.append(theirs(who, compiled, "released", batch, True))
    facts = {
        "model": args.model,
        "weights": editor.weights_hash,
        "picture": f"{editor.native_size}x{editor.native_size}",
        "steps": {name: configs[name].steps for name in chosen},
        "dtype": args.dtype,
        **machine(args),
    }
    return cells, facts


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Versions, processor, threads."""
    import torch

    from uam_jax.runtime.backend import versions

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return {
        "versions": versions("uam_jax", "jax", "jaxlib", "torch", "diffusers", "transformers"),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else name,
        "threads": args.threads,
        "environment": environment(args),
    }


def quartiles(values: np.ndarray) -> dict[str, float]:
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "q1": float(q1), "q3": float(q3)}


def likeness(cell: Cell, cells: Sequence[Cell]) -> dict[str, float]:
    """How near a cell's pictures are to ours of the same settings: PSNR in dB, largest difference in [0, 2]."""
    from uam_jax.evaluation.metrics import psnr

    for other in cells:
        same = other.settings == cell.settings and other.batch == cell.batch
        if same and other.who == OURS != cell.who and other.pictures is not None:
            each = psnr(cell.pictures, other.pictures)
            largest = np.abs(cell.pictures - other.pictures).max()
            return {"psnr": float(each.mean()), "worst": float(each.min()), "max": float(largest)}
    return {}


def ratios(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """How many times as fast, an image: what, against what, median and quartiles over the rounds."""
    rows: list[dict[str, Any]] = []

    def add(what: Cell, against: Cell, note: str = "") -> None:
        ratio = quartiles(against.each() / what.each())
        rows.append({"what": what.name, "against": against.name, "note": note, **ratio})

    ours = [cell for cell in cells if cell.who.startswith(OURS)]
    theirs = [cell for cell in cells if not cell.who.startswith(OURS)]
    released = [cell for cell in theirs if AS_RELEASED in cell.who]
    for reference in (cell for cell in released if cell.who.endswith("eager")):
        for cell in ours:
            add(cell, reference, "the released loop, one image")
    for cell in ours:
        equal = [
            other
            for other in theirs
            if other not in released
            and (other.settings, other.batch) == (cell.settings, cell.batch)
        ]
        strongest = min(equal, key=lambda other: np.median(other.each()), default=None)
        for other in equal:
            add(cell, other, "equal evaluations" + ", the strongest" * (other is strongest))
        for other in released:
            if not other.who.endswith("eager") and (other.settings, other.batch) == (
                cell.settings,
                cell.batch,
            ):
                add(cell, other, "the released loop")
        for one in theirs:
            if one not in released and one.settings == cell.settings and one.batch < cell.batch:
                add(cell, one, "batch against PyTorch's one by one")
    for cell in cells:
        for one in cells:
            same = cell.who.startswith(one.who) and cell.settings == one.settings
            if same and one.batch == 1 < cell.batch:
                add(cell, one, "batch against one by one")
    return rows


def write(out: Path, command: str, facts: dict[str, Any], cells: Sequence[Cell]) -> None:
    """`summary.json` and `summary.md`, of the rounds so far."""
    done = [cell for cell in cells if cell.seconds]
    table = [
        {
            **{f.name: getattr(cell, f.name) for f in dataclasses.fields(cell) if f.repr},
            "image": quartiles(cell.each()),
            "likeness": likeness(cell, done),
        }
        for cell in done
    ]
    compared, failed = ratios(done), {cell.name: cell.failed for cell in cells if cell.failed}
    summary = {
        "command": command,
        "facts": facts,
        "cells": table,
        "ratios": compared,
        "failed": failed,
    }
    known = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"`{command}`",
        "",
        f"Model {facts['model']} (weights `{facts['weights']}`), {facts['picture']} pixels, {facts['dtype']}; "
        f"{facts['device']}, {facts['threads']} threads; {known}; "
        f"{' '.join(f'{n}={v}' for n, v in facts['environment'].items())}. {len(done[0].seconds)} rounds, "
        "median [quartiles]. Likeness: PSNR to our pictures of the same settings (mean, worst), largest "
        "difference of values in [-1, 1]. The first run has all compilation that no cell before it had done.",
        "",
        "| Who | Settings | Batch | Evaluations | First run, s | Seconds an image | PSNR, dB | Largest difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table:
        like = row["likeness"]
        near = f"{like['psnr']:.1f}, {like['worst']:.1f} | {like['max']:.1e}" if like else " | "
        lines.append(
            f"| {row['who']} | {row['settings']} | {row['batch']} | {row['evaluations']} | "
            f"{row['first']:.1f} | {three(row['image'], 3)} | {near} |"
        )
    lines += [
        "",
        "| What | against | Times as fast, an image | |",
        "| --- | --- | --- | --- |",
        *(f"| {r['what']} | {r['against']} | {three(r, 2)} | {r['note']} |" for r in compared),
        *(f"\n{name} could not run: {reason}" for name, reason in failed.items()),
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    (out / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def three(of: dict[str, float], digits: int) -> str:
    return f"{of['median']:.{digits}f} [{of['q1']:.{digits}f}, {of['q3']:.{digits}f}]"


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", default="scenes", help="embedded model or folder in diffusers' layout"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--batch", default="1,8", help="images at once")
    parser.add_argument("--repeats", default=5, type=int, help="rounds")
    parser.add_argument(
        "--settings", default="", help="of released, default, own (the model's); all"
    )
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        help="; ".join(f"{name}: {what}" for name, what in VARIANTS.items()),
    )
    parser.add_argument("--modes", default="", help="of torch.compile; each is a form of its own")
    parser.add_argument("--steps", type=int, help="in place of the settings' own")
    parser.add_argument("--threads", type=int, help="of PyTorch; as many as cores may be used")
    parser.add_argument(
        "--devices", type=int, help="that batches of ours are also divided over; a CPU's cores"
    )
    parser.add_argument("--out", default=Path("benchmarks/vs_torch"), type=Path)
    args = parser.parse_args()
    for name in ("settings", "variants", "modes"):
        setattr(args, name, listed(getattr(args, name)))
    args.batch = [int(part) for part in listed(args.batch)]
    args.modes = args.modes or ["default" if args.device == "cpu" else "max-autotune-no-cudagraphs"]
    usable = getattr(os, "sched_getaffinity", lambda process: range(os.cpu_count() or 1))
    args.threads = args.threads or len(usable(0))
    args.devices = args.devices or (args.threads if args.device == "cpu" else 1)
    for name, known in (("variants", VARIANTS), ("settings", ("released", "default", "own"))):
        if unknown := set(getattr(args, name)) - set(known):
            parser.error(f"--{name}: {', '.join(unknown)}; choose from {', '.join(known)}")
    return args


def main() -> None:
    args = parse()
    start_again_with(environment(args))
    command = " ".join(["python benchmarks/vs_torch.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as compiled:
        # Fresh, so that the time that compilation takes is told, and nothing half-written is found.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled
        cells, facts = build(args)
        print(f"{len(cells)} cells, first runs:", flush=True)
        for cell in cells:
            cell.start()
        running = [cell for cell in cells if not cell.failed]
        for number in range(args.repeats):
            for cell in running if number % 2 == 0 else reversed(running):
                gc.collect()
                began = time.perf_counter()
                cell.run()
                cell.seconds.append(time.perf_counter() - began)
            print(f"round {number + 1} of {args.repeats}", flush=True)
            write(args.out, command, facts, cells)
    print((args.out / "summary.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
