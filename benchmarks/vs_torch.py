"""Comparison with PyTorch: the same edits with the same weights by uam_jax and by PyTorch with diffusers.

    python benchmarks/vs_torch.py
    python benchmarks/vs_torch.py --device cuda --shape sd15 --minutes 8.5

Every cell of the table (implementation, evaluations, settings, batch) is built and run once. Then all cells are timed
in turns, round by round, alternately forwards and backwards, from pictures and prompts in memory to pictures in
memory: text encoding, VAE, both inversions, edit. Ratios are taken within a round, so that a slow phase of the machine
affects both sides. `torch_editor.py` is the PyTorch side. The settings "evaluation" measure the U-Net alone.

With `--minutes` a cell that would overrun them is dropped, and the program ends when they are over, with a record of
all that was measured until then (`budget.py`). The record is written after every cell.

On a CPU the program restarts itself with an allocator that keeps its memory, because PyTorch otherwise spends half of
its time on page faults; on a GPU it restarts with a JAX that leaves memory for PyTorch.
"""

import argparse
import functools
import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from budget import Measurement
from comparison import AS_RELEASED, EVALUATION, OURS, Cell, in_order, write

VARIANTS = {
    "released-eager": "the released evaluations, one image, float32, as diffusers loads it: the reference of ratios",
    "released-compiled": "the released evaluations, compiled",
    "eager": "our evaluations",
    "compiled": "our evaluations, compiled",
}
"""Forms of the PyTorch side."""

SETTINGS = (EVALUATION, "masked", "anchored", "released")
"""Settings of cells, the most important first; `masked` is `released` with an anchored auxiliary branch."""
ANCHORED = (
    "source.latents=anchored", "control=none", "guidance=2", "mask.rule=auto", "mask.t_mask=21", "mask.radius=0",
)  # fmt: skip
"""Of all settings that both sides know, those of the fewest evaluations: 153."""

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


def build(args: argparse.Namespace, scratch: Path) -> tuple[list[Cell], dict[str, Any]]:
    """All cells, and facts about model and machine; random weights are written to `scratch`."""
    import jax
    import torch
    from diffusers.utils import logging as diffusers_logging
    from one_call import PARTS, TARGET, calls_only, evaluations, start_of
    from random_folder import write_random_folder
    from torch_editor import TorchEditor, plan_of
    from transformers.utils import logging as transformers_logging

    from uam_jax import EditConfig, Editor, scenes
    from uam_jax.checkpoints.load import EMBEDDED, chosen_dtype
    from uam_jax.engine.parallel import Devices
    from uam_jax.method.plan import Plan

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    if jax.default_backend() != {"cuda": "gpu"}.get(args.device, args.device):
        sys.exit(f"--device {args.device}: JAX runs on {jax.default_backend()}")

    dtype = chosen_dtype(args.dtype)
    if args.shape:
        folder = scratch / args.shape
        editor = Editor(write_random_folder(folder, args.shape, dtype))
    else:
        folder = EMBEDDED.get(args.model, Path(args.model))
        editor = Editor.load(args.model, dtype=dtype)
    size = args.size or (512 if args.shape else editor.native_size)
    changes: dict[str, Any] = {"preserve": "latent"} | ({"steps": args.steps} if args.steps else {})
    found = {"released": EditConfig.load("released")}
    found["masked"] = found["released"].overridden(["auxiliary.latents=anchored"])
    found["anchored"] = found["masked"].overridden(ANCHORED)
    configs = {name: config.updated(changes) for name, config in found.items()}
    wanted = args.settings or SETTINGS
    chosen = [name for name in SETTINGS if name in wanted and name in configs]
    largest = max(args.batch)
    before = scenes.sample(jax.random.key(_DRAW), largest, empty=0.0)
    after = before.replace(colour=(before.colour + 1) % len(scenes.COLOURS))
    pictures = np.asarray(scenes.render_in_chunks(before, size=size), np.float32)
    targets = scenes.captions(after)
    calls, alone = calls_only(args.calls), EVALUATION in wanted

    cells = []

    def ours(name: str, batch: int, devices: int = 1) -> Cell:
        on = editor.on(Devices.local(devices)) if devices > 1 else editor

        def run() -> np.ndarray:
            result = on.edit(pictures[:batch], targets[:batch], config=configs[name])
            return np.asarray(result.images, np.float32)

        who = f"{OURS}, {devices} devices" if devices > 1 else OURS
        plan = editor.plan(configs[name])
        return Cell(who, name, batch, plan.evaluations(), run, programs(plan))

    def theirs(
        who: str, of: Callable[[], TorchEditor], name: str, batch: int, as_released: bool = False
    ) -> Cell:
        def run() -> np.ndarray:
            return of().edit(
                pictures[:batch], targets[:batch], configs[name], as_released=as_released
            )

        plan = plan_of(configs[name], editor.checkpoint.schedule, as_released=as_released)
        return Cell(who, name, batch, plan.evaluations(), run, programs(plan))

    def programs(plan: Plan) -> int:
        # Two inversions and the auxiliary branch, or the calls that they share; and the segments.
        return len(plan.segments) + (3 if plan.depth else 1)

    def evaluation(who: str, batch: int, of: Callable[[], TorchEditor] | None = None) -> Cell:
        side = size // editor.size_factor

        @functools.cache
        def prepared() -> Callable[[], Any]:
            if of is None:
                return evaluations(editor, batch, side, calls)
            start = start_of(batch, side, editor.latent_channels)
            return of().evaluations(start, [TARGET] * batch, calls)

        def run() -> None:
            prepared()()

        return Cell(who, EVALUATION, PARTS * batch, args.calls, run)

    for batch in args.batch:
        cells += [evaluation(OURS, batch)] * alone
        for name in chosen:
            cells.append(ours(name, batch))
            if 1 < args.devices <= batch:
                cells.append(ours(name, batch, args.devices))

    def editors(**options: Any) -> Callable[[], TorchEditor]:
        """Loads a model when the first cell needs it."""
        return functools.cache(lambda: TorchEditor(folder, device=args.device, **options))

    if "released-eager" in args.variants and "released" in wanted:
        plain = editors(channels_last=False)
        cells.append(theirs(f"PyTorch {AS_RELEASED}, eager", plain, "released", 1, True))
    forms = {"PyTorch, eager": editors(dtype=dtype)} if "eager" in args.variants else {}
    for mode in args.modes:
        compiled = editors(dtype=dtype, compiled=mode)
        if "compiled" in args.variants:
            forms[f"PyTorch, compiled ({mode})"] = compiled
        if "released-compiled" in args.variants and "released" in wanted:
            who = f"PyTorch {AS_RELEASED}, compiled ({mode})"
            cells += [theirs(who, compiled, "released", batch, True) for batch in args.batch]
    for who, of in forms.items():
        for batch in args.batch:
            cells += [evaluation(who, batch, of)] * alone
            cells += [theirs(who, of, name, batch) for name in chosen]
    facts = {
        "model": editor.name,
        "weights": editor.weights_hash,
        "picture": f"{size}x{size}",
        "steps": {name: configs[name].steps for name in chosen},
        "dtype": dtype,
        **machine(args),
    }
    return in_order(cells), facts


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
    parser.add_argument(
        "--shape", choices=("sd15", "sd21"), help="random weights of a published shape, not a model"
    )
    parser.add_argument(
        "--size", type=int, help="side of the pictures; the model's own, 512 with --shape"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="time budget: cells are dropped rather than that it is overrun",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    parser.add_argument("--batch", default="1,8", help="images per call, by comma")
    parser.add_argument("--repeats", default=5, type=int, help="number of rounds")
    parser.add_argument(
        "--settings",
        default="",
        help="of evaluation (the U-Net alone), masked, anchored and released, by comma; all by default",
    )
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        help="; ".join(f"{name}: {what}" for name, what in VARIANTS.items()),
    )
    parser.add_argument(
        "--modes", default="default", help="modes of torch.compile, by comma; each is measured"
    )
    parser.add_argument("--steps", type=int, help="steps, instead of those of the settings")
    parser.add_argument(
        "--calls", type=int, help="U-Net calls in a run of an evaluation; 2 on a CPU, 20 on a GPU"
    )
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
    args.calls = args.calls or (2 if args.device == "cpu" else 20)
    usable = getattr(os, "sched_getaffinity", lambda process: range(os.cpu_count() or 1))
    args.threads = args.threads or len(usable(0))
    args.devices = args.devices or (args.threads if args.device == "cpu" else 1)
    for name, known in (("variants", VARIANTS), ("settings", SETTINGS)):
        if unknown := set(getattr(args, name)) - set(known):
            parser.error(f"--{name}: {', '.join(unknown)}; choose from {', '.join(known)}")
    return args


def main() -> None:
    args = parse()
    start_again_with(environment(args))
    command = " ".join(["python benchmarks/vs_torch.py", *sys.argv[1:]])
    scratch = Path(tempfile.mkdtemp(prefix="uam-vs-torch-"))
    try:
        # An empty cache, so that compilation is measured and no incomplete file is found.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "compiled")
        cells, facts = [], {}
        seconds = None if args.minutes is None else 60 * args.minutes
        measurement = Measurement(
            cells, args.repeats, lambda: write(args.out, command, facts, cells), seconds
        )
        made, known = build(args, scratch)
        cells += made
        facts |= known
        print(f"{len(cells)} cells, first runs:", flush=True)

        def leave() -> None:
            measurement.give_up()
            shutil.rmtree(scratch, ignore_errors=True)
            print("the time is over", flush=True)
            os._exit(0)  # No other way ends a compilation.

        if seconds is not None:
            timer = threading.Timer(measurement.left, leave)
            timer.daemon = True
            timer.start()
        measurement.run()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print((args.out / "summary.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
