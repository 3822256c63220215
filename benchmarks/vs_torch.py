"""Comparison with PyTorch: the same edits with the same weights by uam_jax and by PyTorch with diffusers.

    python benchmarks/vs_torch.py

Every cell of the table (implementation, evaluations, settings, batch) is built and run once. Then all cells are timed
in turns, round by round, alternately forwards and backwards, from pictures and prompts in memory to pictures in
memory: text encoding, VAE, both inversions, edit. Ratios are taken within a round, so that a slow phase of the machine
affects both sides. `torch_editor.py` is the PyTorch side.

On a CPU the program restarts itself with an allocator that keeps its memory, because PyTorch otherwise spends half of
its time on page faults; on a GPU it restarts with a JAX that leaves memory for PyTorch.
"""

import argparse
import gc
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from comparison import AS_RELEASED, OURS, Cell, write

VARIANTS = {
    "released-eager": "the released evaluations, one image, float32, as diffusers loads it: the reference of ratios",
    "released-compiled": "the released evaluations, compiled",
    "eager": "our evaluations",
    "compiled": "our evaluations, compiled",
}
"""Forms of the PyTorch side."""

_DRAW = 86_028_121  # Makes these scenes differ from those of training and benchmark.


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Environment variables that must be set before the process starts."""
    if args.device != "cpu":
        return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    wanted = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(args.devices)}
    if sys.platform == "linux":
        wanted |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30)}
    return wanted


def start_again_with(wanted: dict[str, str]) -> None:
    """Restarts this process with the given environment variables, if they are not set."""
    missing = {name: value for name, value in wanted.items() if os.environ.get(name) != value}
    if missing:
        print("restarting with", " ".join(f"{n}={v}" for n, v in missing.items()), flush=True)
        os.execve(sys.executable, sys.orig_argv, os.environ | missing)


def build(args: argparse.Namespace) -> tuple[list[Cell], dict[str, Any]]:
    """All cells, and facts about model and machine."""
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
    """Versions, processor and threads."""
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


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", default="scenes", help="an embedded model, or a folder in diffusers' layout"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--batch", default="1,8", help="images per call, by comma")
    parser.add_argument("--repeats", default=5, type=int, help="number of rounds")
    parser.add_argument(
        "--settings",
        default="",
        help="of released, default and own (the model's), by comma; all by default",
    )
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        help="; ".join(f"{name}: {what}" for name, what in VARIANTS.items()),
    )
    parser.add_argument(
        "--modes", default="", help="modes of torch.compile, by comma; each is measured"
    )
    parser.add_argument("--steps", type=int, help="steps, instead of those of the settings")
    parser.add_argument(
        "--threads", type=int, help="threads of PyTorch; by default the number of usable cores"
    )
    parser.add_argument(
        "--devices",
        type=int,
        help="devices over which our batches are also split; by default a CPU's cores",
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
        # An empty cache, so that compilation is measured and no incomplete file is found.
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
