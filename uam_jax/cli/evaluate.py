"""`uam eval`: from options to an evaluation, its summary, plots and page."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uam_jax.cli.console import Console
from uam_jax.errors import InputError, Preempted
from uam_jax.evaluation.plots import bars, points
from uam_jax.evaluation.reconstruction import ReconstructionStudy, study, study_files, study_summary
from uam_jax.evaluation.runs import Evaluation, summarise
from uam_jax.evaluation.scenes_bench import VERSION, draw_items
from uam_jax.files import read_toml
from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import Row, refuse_all_failed
from uam_jax.jobs.report import render_report
from uam_jax.jobs.runner import Progress, Stop
from uam_jax.method.config import EditConfig
from uam_jax.runtime import backend

if TYPE_CHECKING:
    from uam_jax.editor import Editor

_SHOWN = 4
"""Best, median and worst edits of a method on the page, each."""

_OUTPUTS = ("job.json", "images/x", "masks/x", "truth/x", "gallery/x")
"""Files of all the folders that are written to."""

_TABLE = {
    "success": ("success %", 100, 0),
    "background_psnr": ("background dB", 1, 2),
    "background_gap": ("below the VAE's dB", 1, 2),
    "kept_success": ("pixels kept: success %", 100, 0),
    "kept_background_psnr": ("background dB", 1, 2),
    "edit_psnr": ("edit to answer dB", 1, 2),
    "mask_iou": ("mask IoU", 1, 2),
    "reconstruction_psnr": ("reconstruction dB", 1, 2),
    "seconds": ("s", 1, 2),
}
"""Columns of the table: heading, factor, decimals."""


@dataclass(frozen=True)
class EvalOptions:
    """The options of `uam eval scenes`, which tells what each means."""

    out: str
    methods: str = "default,released"
    model: str = "scenes"
    third: str = "report"
    n: int | None = None
    seed: int = 0
    chunk: int = 16
    share: bool = False
    dtype: str = "float32"
    variant: str | None = None
    precision: str | None = None


def run_eval(options: EvalOptions, console: Console) -> dict[str, Any]:
    """Runs the benchmark, or goes on with it, and writes summary, table, plots and page.

    Raises:
      InputError: anything that is at fault before it begins.
      Preempted: SIGTERM came; the same command goes on.
    """
    folder = Folder(options.out)
    folder.check(_OUTPUTS)
    console.stage(f"loading {options.model}")
    from uam_jax.editor import Editor

    editor = Editor.load(options.model, dtype=options.dtype, variant=options.variant)
    methods = read_methods(options.methods, editor)
    console.stage("drawing the benchmark")
    evaluation = Evaluation(
        editor=editor,
        methods=methods,
        items=draw_items(options.seed).select(options.third.split(","), options.n),
        chunk=options.chunk,
        share=options.share,
        seed=options.seed,
        settings={"dtype": options.dtype, "precision": options.precision},
    )

    _go(evaluation, folder, console, f"{len(methods)} methods on {len(evaluation.items)} items")
    rows = evaluation.rows(folder)
    refuse_all_failed(rows)
    facts = _facts(options, editor, len(evaluation.items))
    summary = {"facts": facts, "methods": summarise(rows)}
    for name, content in as_files(rows, summary).items():
        folder.write(name, content)
    overall = {name: of["overall"] for name, of in summary["methods"].items()}
    return {
        "command": "eval scenes",
        "methods": [
            {
                "method": name,
                **{
                    key: means.get(key, [None])[0]
                    for key in ("success", "background_psnr", "background_gap")
                },
                "evaluations": summary["methods"][name]["evaluations"],
            }
            for name, means in overall.items()
        ],
        "failed": sum(row["status"] != "ok" for row in rows),
        "table": folder.path("summary.md"),
        "page": folder.path("index.html"),
    }


def run_reconstruction(options: EvalOptions, console: Console) -> dict[str, Any]:
    """Runs the reconstruction study, or goes on with it; see `run_eval`."""
    folder = Folder(options.out)
    folder.check(_OUTPUTS)
    console.stage(f"loading {options.model}")
    from uam_jax.editor import Editor

    editor = Editor.load(options.model, dtype=options.dtype, variant=options.variant)
    cases = study(editor.checkpoint.unet.config.transformer_blocks)
    job = ReconstructionStudy(
        editor=editor,
        cases=cases,
        items=draw_items(options.seed).select(options.third.split(","), options.n),
        chunk=options.chunk,
        settings={"dtype": options.dtype, "precision": options.precision},
    )
    _go(job, folder, console, f"{len(cases)} cases on {len(job.items)} items")
    rows = job.rows(folder)
    refuse_all_failed(rows)
    rows = [row for row in rows if row["status"] == "ok"]
    summary = {"facts": _facts(options, editor, len(job.items)), **study_summary(rows, cases)}
    for name, content in study_files(summary, cases).items():
        folder.write(name, content)
    return {
        "command": "eval reconstruction",
        "psnr": [
            {"case": name, "mean": of["psnr"][0], "low": of["psnr"][1], "high": of["psnr"][2]}
            for name, of in summary["cases"].items()
        ],
        "table": folder.path("summary.md"),
    }


def _go(job: Any, folder: Folder, console: Console, what: str) -> None:
    """Runs to the end, with a bar.

    Raises:
      Preempted: SIGTERM came first.
    """

    def report(progress: Progress) -> None:
        left = "" if progress.left is None else f", {round(progress.left / 60)} min left"
        console.advance(progress.done, progress.total, f"{progress.done} of {progress.total}{left}")

    console.stage(what)
    with Stop().listening() as stop:
        progress = job.run(folder, report=report, say=console.say, stop=stop)
    for reason in progress.reasons[:5]:
        console.warn(reason)
    if progress.done < progress.total:
        raise Preempted(
            f"stopped after {progress.done} of {progress.total}: the same command goes on"
        )


def _facts(options: EvalOptions, editor: "Editor", items: int) -> dict[str, Any]:
    machine = backend.describe_machine()
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return {
        "benchmark": f"Scenes-Bench {VERSION}, {options.third}, {items} items, seed {options.seed}",
        "model": editor.name,
        "weights": editor.weights_hash,
        "device": f"{machine['devices']} x {machine['device']}",
        "versions": versions,
    }


def read_methods(names: str, editor: "Editor") -> dict[str, EditConfig]:
    """Settings by name: presets and TOML files by comma; a file with `[methods.NAME]` tables holds many.

    In such a table `config` names a preset or file (default: "default") and `set` lists overrides.

    Raises:
      InputError: naming what is at fault.
    """
    found: dict[str, EditConfig] = {}

    def add(label: str, method: EditConfig) -> None:
        if label in found:
            raise InputError(f"--methods {names}: two are called {label!r}; give each its own name")
        found[label] = method

    for name in filter(None, (part.strip() for part in names.split(","))):
        study = _study(name)
        for label, table in study.items():
            if unknown := table.keys() - {"config", "set"}:
                raise InputError(
                    f"{name}: [methods.{label}] has {', '.join(unknown)}: only config, set"
                )
            config, chosen = table.get("config", "default"), table.get("set", [])
            if not isinstance(config, str) or not _are_texts(chosen):
                raise InputError(
                    f'{name}: [methods.{label}]: config is a text and set a list of texts, as ["steps=20"]'
                )
            add(label, _load(config, chosen, editor))
        if not study:
            add(Path(name).stem, _load(name, [], editor))
    if not found:
        raise InputError("--methods names none: give presets or TOML files, by comma")
    for label in found:
        if not re.fullmatch(r"[\w.+=-][\w.+=, -]*", label):
            raise InputError(
                f"a method is called {label!r}: use letters, digits, spaces and . , + = - _"
            )
    return found


def _study(name: str) -> Mapping[str, Any]:
    path = Path(name)
    if path.suffix != ".toml" or not path.is_file():
        return {}
    methods = read_toml(path).get("methods", {})
    if not isinstance(methods, dict) or not all(
        isinstance(each, dict) for each in methods.values()
    ):
        raise InputError(f"{name}: methods is no table of tables: write [methods.NAME]")
    return methods


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _load(name: str, overrides: Sequence[str], editor: "Editor") -> EditConfig:
    if name == "default":  # a model's own settings win over the preset
        return editor.default_config.overridden(overrides)
    return EditConfig.load(name, overrides)


def as_files(rows: Sequence[Row], summary: Mapping[str, Any]) -> dict[str, bytes]:
    """Everything that is made from the rows."""
    methods = summary["methods"]
    nothing = (None,) * 3
    [ceiling, *_] = next(iter(methods.values()))["overall"].get("vae_background_psnr", nothing)
    title = summary["facts"]["benchmark"]
    files = {
        "summary.json": json.dumps(summary, indent=1).encode(),
        "summary.md": as_markdown(summary).encode(),
        "success-background.png": points(
            {
                name: tuple(of["overall"].get(x, nothing) for x in ("background_psnr", "success"))
                for name, of in methods.items()
            },
            title=f"{title}: mean and 95 % interval",
            x="background PSNR (dB)",
            y="share of edits that succeeded",
            line=ceiling,
            line_label="VAE ceiling",
        ),
    }
    for figure, label in (("success", "share that succeeded"), ("background_psnr", "dB")):
        kinds = list(dict.fromkeys(row["kind"] for row in rows))
        files[f"{figure.replace('_', '-')}-by-kind.png"] = bars(
            {
                kind: {
                    name: of["kinds"][kind][figure]
                    for name, of in methods.items()
                    if kind in of["kinds"] and figure in of["kinds"][kind]
                }
                for kind in kinds
            },
            title=f"{title}: {figure.replace('_', ' ')} by kind of edit",
            y=label,
        )
    files |= render_report(best_median_worst(rows), title=title, facts=summary["facts"])
    return files


def as_markdown(summary: Mapping[str, Any]) -> str:
    """The overall table, and success and background by kind."""
    methods = summary["methods"]
    shown = {
        name: column
        for name, column in _TABLE.items()
        if any(of["overall"].get(name, [None])[0] is not None for of in methods.values())
    }
    facts = "; ".join(f"{name} {value}" for name, value in summary["facts"].items() if value)
    lines = [facts, "", "Mean [95 % interval].", ""]
    heads = ["method", *(heading for heading, _, _ in shown.values()), "evaluations"]
    lines += [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, of in methods.items():
        cells = [_cell(of["overall"].get(key), *column[1:]) for key, column in shown.items()]
        lines.append(f"| {name} | {' | '.join(cells)} | {of['evaluations']} |")
    kinds = list(dict.fromkeys(kind for of in methods.values() for kind in of["kinds"]))
    lines += ["", "Success % / background dB by kind:", ""]
    lines += [f"| kind | {' | '.join(methods)} |", "|" + " --- |" * (len(methods) + 1)]
    for kind in kinds:
        cells = []
        for of in methods.values():
            means = of["kinds"].get(kind, {})
            pair = (means.get("success", [None])[0], means.get("background_psnr", [None])[0])
            cells.append(
                "– / –" if pair[0] is None else f"{100 * pair[0]:.0f} / "
                + ("–" if pair[1] is None else f"{pair[1]:.1f}")
            )  # fmt: skip
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(three: Sequence[float | None] | None, factor: float, decimals: int) -> str:
    if three is None or three[0] is None:
        return "–"
    mean, low, high = (f"{factor * (value or 0):.{decimals}f}" for value in three)
    return f"{mean} [{low}, {high}]"


def best_median_worst(rows: Sequence[Row]) -> list[Row]:
    """A few rows of every method, named by their rank: success first, then the answer's PSNR."""
    shown = []
    for method in dict.fromkeys(row["method"] for row in rows if row["status"] == "ok"):
        own = [row for row in rows if row["status"] == "ok" and row["method"] == method]
        own.sort(key=lambda row: (-row["figures"]["success"], -row["figures"]["answer_psnr"]))
        count, middle = min(_SHOWN, len(own)), len(own) // 2
        first = max(0, min(middle - count // 2, len(own) - count))
        picks = {
            "best": own[:count],
            "median": own[first : first + count],
            "worst": own[::-1][:count],
        }
        keys = ("success", "background_psnr", "edit_psnr", "mask_iou", "answer_psnr")
        for rank, chosen in picks.items():
            for number, row in enumerate(chosen, start=1):
                figures = {key: row["figures"].get(key) for key in keys}
                figures["confidence"] = row.get("confidence")
                # Among the figures, so that the rows stay in the order of their ranks.
                own_name = {
                    "id": f"{method}, {rank} {number}: {row['item']}",
                    "image": row["source"],
                }
                shown.append(
                    {**row, **own_name, "figures": figures, "confidence": None, "review": None}
                )
    return shown + [row for row in rows if row["status"] != "ok"]
