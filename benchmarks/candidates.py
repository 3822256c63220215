"""Forms of the U-Net before and after a change, and flags of XLA, measured in turns on one device.

    python benchmarks/candidates.py --shape sd15 --against HEAD~5 --flags all --minutes 8.5

A variant is a tree of this repository (this one, and those of `--against`: revisions, folders or tar files) or this
tree with flags of XLA. Each has a process of its own, which compiles a loop of network calls for every number of rows
(`one_call.py`), and waits. Only one process works at a time. All variants are timed in turns, round by round, so that
a ratio is that of one round; the record has the median over the rounds and its 95 % interval by the bootstrap. XLA
chooses kernels by timing them, so that two processes of one tree may differ a little: `--twice` shows how much.

A variant for which there is no time is dropped, and the record is written after every run. Where there is no git, give
what `git archive -o before.tar REVISION uam_jax benchmarks/one_call.py ':!*.safetensors'` has packed, with `--shape`.
"""

import argparse
import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from budget import Measurement
from comparison import EVALUATION, Cell, quartiles, three

from uam_jax.evaluation.metrics import bootstrap

HERE = Path(__file__).parents[1]
NOW = "this tree"

FLAGS = {
    "any product by Triton": "--xla_gpu_triton_gemm_any=true",
    "no product by Triton": "--xla_gpu_enable_triton_gemm=false",
    "layer norm by cuDNN": "--xla_gpu_enable_cudnn_layer_norm=true",
    "products with fused cuDNN": "--xla_gpu_cudnn_gemm_fusion_level=2",
    "products of one input apart": "--xla_gpu_dot_merger_threshold_mb=0",
    "fusions with several results": "--xla_gpu_unsupported_enable_triton_multi_output_fusion=true",
    "fusions tuned": "--xla_gpu_experimental_enable_fusion_autotuner=true",
    "all tilings tried": "--xla_gpu_exhaustive_tiling_search=true",
}
"""Flags of XLA that may make a U-Net on a GPU faster, the most promising first."""


class Variant:
    """A tree, with flags of XLA, and its process.

    Attributes:
      name: in the record.
      tree: folder.
      flags: of XLA.
      facts: of `Candidate.load`; {} before.
      latents: by the number of rows, the first values of what its calls computed.
    """

    def __init__(
        self, name: str, tree: Path, flags: str, settings: Mapping[str, Any], log: Path
    ) -> None:
        self.name, self.tree, self.flags, self.facts = name, tree, flags, dict[str, Any]()
        self.latents = dict[int, np.ndarray]()
        self._settings, self._log, self._process = settings, log, None

    def run(self, rows: int) -> None:
        """Makes the calls of a run; first of all, starts the process and loads the model."""
        if self._process is None:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    [sys.executable, str(HERE / "benchmarks" / "candidate.py")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=self.environment,
                )
            self.facts = self._ask({"do": "load", "tree": str(self.tree), **self._settings})
        self._ask({"do": "run", "rows": rows})
        if rows not in self.latents:
            self.latents[rows] = np.asarray(self._ask({"do": "latents"})["values"])

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the process."""
        flags = " ".join(part for part in (os.environ.get("XLA_FLAGS"), self.flags) if part)
        paths = [str(self.tree), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "XLA_FLAGS": flags,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        line = ""
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            process.wait()
            lines = [text for text in self._log.read_text().splitlines() if text.strip()]
            raise RuntimeError(f"the process ended: {lines[-1] if lines else process.returncode}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def end(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # Waits, and closes the pipes.


def tree_of(against: str, scratch: Path) -> Path:
    """The folder of a tree: itself, or unpacked from a tar file or a revision.

    Raises:
      SystemExit: it is none of them.
    """
    if Path(against).is_dir():
        return Path(against).resolve()
    if Path(against).is_file():
        packed = Path(against).read_bytes()
    else:
        command = ["git", "-C", str(HERE), "archive", against, "uam_jax", "benchmarks"]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            sys.exit(f"--against {against}: there is no git, so give a folder or a tar file")
        if done.returncode:
            sys.exit(f"--against {against}: no folder, no file, and {done.stderr.decode().strip()}")
        packed = done.stdout
    folder = scratch / f"tree-{len(list(scratch.iterdir()))}"
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Relative difference of two results, by their norms."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def summary_of(
    variants: list[Variant], cells: list[Cell], command: str, reference: str
) -> dict[str, Any]:
    """The rows of the record: rates of every variant and number of rows so far, and ratios."""
    by_name = {variant.name: variant for variant in variants}
    facts = next((variant.facts for variant in variants if variant.facts), {})
    flops, peak = facts.get("flops"), facts.get("peak")
    measured = {(cell.who, cell.batch): cell for cell in cells if cell.seconds}
    rows = []
    for (name, count), cell in measured.items():
        rate = cell.evaluations / float(np.median(cell.each()))
        row = {
            "variant": name,
            "flags": by_name[name].flags,
            "rows": count,
            "first": cell.first,
            "rounds": len(cell.seconds),
            "seconds": cell.seconds,
            "rate": quartiles(cell.evaluations / cell.each()),
        }
        if flops:
            row["tflops"] = rate * flops / 1e12
            row |= {"share": rate * flops / peak} if peak else {}
        for base in {reference, NOW} - {name}:
            if other := measured.get((base, count)):
                shared = min(len(cell.seconds), len(other.seconds))
                ratios = np.asarray(other.seconds[:shared]) / np.asarray(cell.seconds[:shared])
                row.setdefault("relative", {})[base] = bootstrap(ratios, np.median)
                row.setdefault("difference", {})[base] = difference(
                    by_name[name].latents[count], by_name[base].latents[count]
                )
        rows.append(row)
    return {
        "command": command,
        "facts": facts,
        "reference": reference,
        "rows": rows,
        "failed": {cell.name: cell.failed for cell in cells if cell.failed},
        "dropped": {cell.name: cell.dropped for cell in cells if cell.dropped},
    }


def write(out: Path, summary: Mapping[str, Any]) -> None:
    """Writes `summary.json` and `summary.md`."""
    facts, bases = summary["facts"], list(dict.fromkeys([summary["reference"], NOW]))
    versions = ", ".join(f"{k} {v}" for k, v in facts.get("versions", {}).items())
    lines = [
        f"`{summary['command']}`",
        "",
        f"{facts.get('model')}, {facts.get('size')} pixels, {facts.get('dtype')}; {facts.get('device')}; {versions}. "
        "Evaluations/s: median [quartiles] over the rounds. Speed relative to another variant: median of the rounds' "
        "ratios [95 % interval]. The difference is that of the latents after all calls, relative to their norm.",
        "",
        "| Variant | Rows | First run, s | Rounds | Evaluations/s | TFLOP/s | Share of peak | "
        + " | ".join(f"Relative to {base} | Difference" for base in bases)
        + " |",
        "| --- " * (7 + 2 * len(bases)) + "|",
    ]
    for row in summary["rows"]:
        tera = f"{row['tflops']:.3g}" if "tflops" in row else ""
        share = f"{100 * row['share']:.1f} %" if "share" in row else ""
        compared = []
        for base in bases:
            if base in row.get("relative", {}):
                middle, low, high = row["relative"][base]
                apart = f"{row['difference'][base]:.1e}"
                compared += [f"{middle:.3f} [{low:.3f}, {high:.3f}]", apart]
            else:
                compared += ["", ""]
        lines.append(
            f"| {row['variant']} | {row['rows']} | {row['first']:.1f} | {row['rounds']} | {three(row['rate'], 1)} | "
            f"{tera} | {share} | {' | '.join(compared)} |"
        )
    lines += [f"\n{name} could not run: {reason}" for name, reason in summary["failed"].items()]
    lines += [f"\n{name} was dropped: {reason}" for name, reason in summary["dropped"].items()]
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    (out / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = functools.partial(parser.add_argument)
    add("--model", default="scenes", help="see Editor.load")
    add("--shape", choices=("sd15", "sd21"), help="random weights of a published shape")
    add("--dtype", default="auto", help="of weights and computation")
    add("--size", type=int, help="side of the pictures; the model's own, 512 with --shape")
    add("--rows", default="24,3", help="rows of a call, multiples of 3, by comma")
    add(
        "--against",
        action="append",
        default=[],
        help="another tree: a revision of git, a folder or a tar file; the first is the reference; may be repeated",
    )
    add(
        "--flags",
        default="",
        help=f"'all' or names, by comma: {', '.join(f'{k} ({v})' for k, v in FLAGS.items())}; or flags themselves",
    )
    add("--twice", action="store_true", help="measure this tree in two processes")
    add("--calls", default=20, type=int, help="calls in a run")
    add("--repeats", default=15, type=int, help="rounds")
    add("--minutes", type=float, help="time budget")
    add("--out", default=Path("benchmarks/candidates"), type=Path)
    args = parser.parse_args()
    args.rows = [int(part) for part in args.rows.split(",")]
    if any(rows < 3 or rows % 3 for rows in args.rows):
        parser.error(f"--rows {args.rows}: each must be a multiple of 3")
    chosen = [part.strip() for part in args.flags.split(",") if part.strip()]
    args.flags = FLAGS if chosen == ["all"] else {name: FLAGS.get(name, name) for name in chosen}
    if wrong := [flag for flag in args.flags.values() if not flag.startswith("--xla")]:
        parser.error(f"--flags: {', '.join(wrong)}; choose from {', '.join(FLAGS)}, or give flags")
    return args


def main() -> None:
    args = parse()
    command = " ".join(["python benchmarks/candidates.py", *sys.argv[1:]])
    scratch = Path(tempfile.mkdtemp(prefix="uam-candidates-"))
    settings = {key: getattr(args, key) for key in ("model", "shape", "dtype", "size", "calls")} | {
        "count": False
    }
    trees = {name: tree_of(name, scratch) for name in args.against}
    wanted = [
        (NOW, HERE, "", settings | {"count": True}),
        *((name, tree, "", settings) for name, tree in trees.items()),
        *[(f"{NOW}, again", HERE, "", settings)] * args.twice,
        *((name, HERE, flags, settings) for name, flags in args.flags.items()),
    ]
    variants = [Variant(*each, scratch / f"log-{i}") for i, each in enumerate(wanted)]
    cells = [
        Cell(variant.name, EVALUATION, rows, args.calls, functools.partial(variant.run, rows))
        for variant in variants
        for rows in args.rows
    ]
    reference = args.against[0] if args.against else NOW
    measurement = Measurement(
        cells,
        args.repeats,
        lambda: write(args.out, summary_of(variants, cells, command, reference)),
        None if args.minutes is None else 60 * args.minutes,
    )

    def end() -> None:
        for variant in variants:
            variant.end()
        shutil.rmtree(scratch, ignore_errors=True)

    def leave() -> None:
        measurement.give_up()
        end()
        print("the time is over", flush=True)
        os._exit(0)

    if args.minutes is not None:
        timer = threading.Timer(measurement.left, leave)
        timer.daemon = True
        timer.start()
    try:
        measurement.run()
    finally:
        end()
    print((args.out / "summary.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
