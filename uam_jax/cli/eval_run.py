"""The work of `uam eval`: from options to a study, and its files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uam_jax.checkpoints.load import SETTINGS
from uam_jax.cli.console import Console
from uam_jax.cli.eval import EvalOptions
from uam_jax.cli.eval_methods import read_methods
from uam_jax.cli.eval_report import as_files
from uam_jax.cli.options import Compute
from uam_jax.errors import InputError, Preempted
from uam_jax.evaluation.calibration import fit_confidence, judge, with_confidence
from uam_jax.evaluation.reconstruction import (
    ReconstructionStudy,
    reconstructions,
    study_files,
    study_summary,
)
from uam_jax.evaluation.scenes_bench import VERSION, draw_items
from uam_jax.evaluation.scenes_study import ScenesStudy
from uam_jax.evaluation.scores import summarise
from uam_jax.evaluation.study import Study
from uam_jax.files import at_home, local_path
from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import Row, refuse_all_failed
from uam_jax.jobs.runner import Monitor, Progress, Stop
from uam_jax.runtime import backend

if TYPE_CHECKING:
    from uam_jax.editor import Editor

_OUTPUTS = ("job.json", "images/x", "masks/x", "truth/x", "gallery/x")
"""A file in each folder that is written to; together they are checked before anything runs."""


def run_scenes(
    options: EvalOptions,
    compute: Compute,
    console: Console,
    *,
    methods: str,
    count: int | None,
    share: bool,
    calibrate: bool,
) -> dict[str, Any]:
    """Runs or continues Scenes-Bench, and writes its summary, table, plots and page.

    Args:
      options: the options of both studies.
      compute: the options that choose device and precision.
      console: shows progress, messages and warnings.
      methods: names of presets and files, separated by commas; see `read_methods`.
      count: number of items; None for all of the chosen parts.
      share: whether methods that need the same inversion share it.
      calibrate: whether the model's confidence is fitted to these edits, and written beside the model.

    Returns:
      The summary: every method's main figures, the number of failed edits, how well the confidence detects edits that
      are not right, and the places of table and page.

    Raises:
      InputError: an option is at fault; nothing has been computed.
      JobFailed: every edit failed.
      Preempted: SIGTERM arrived; the same command continues the run.
    """
    folder = Folder(options.out)
    folder.check(_OUTPUTS)
    beside = _beside(options.model) if calibrate else None
    settings = read_methods(methods)
    editor = compute.load_editor(options.model, console)
    console.stage("drawing the benchmark")
    study = ScenesStudy(
        editor=editor,
        methods={name: each.of(editor) for name, each in settings.items()},
        items=draw_items(options.seed).select(options.third.split(","), count),
        chunk=options.chunk,
        share=share,
        seed=options.seed,
        settings={"dtype": editor.dtype, "precision": compute.precision},
    )
    _run_to_the_end(study, folder, console)
    rows = study.rows(folder)
    refuse_all_failed(rows)
    if beside:
        study = replace(study, editor=_calibrated(editor, rows, beside, options.third))
        rows = study.rows(folder)
    facts = _facts(options, editor, len(study.items))
    confidence = judge(study.editor.calibration, rows)
    summary = {"facts": facts, "methods": summarise(rows), "confidence": confidence}
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
        "confidence_auroc": confidence["auroc"],
        **({"calibrated": beside.path(SETTINGS)} if beside else {}),
        "failed": sum(row["status"] != "ok" for row in rows),
        "table": folder.path("summary.md"),
        "page": folder.path("index.html"),
    }


def run_reconstruction(
    options: EvalOptions, compute: Compute, console: Console, *, count: int
) -> dict[str, Any]:
    """Runs or continues the reconstruction study on `count` items; see `run_scenes`."""
    folder = Folder(options.out)
    folder.check(_OUTPUTS)
    editor = compute.load_editor(options.model, console)
    methods = reconstructions(editor.checkpoint.unet.config.transformer_blocks)
    study = ReconstructionStudy(
        editor=editor,
        methods=methods,
        items=draw_items(options.seed).select(options.third.split(","), count),
        chunk=options.chunk,
        settings={"dtype": editor.dtype, "precision": compute.precision},
    )
    _run_to_the_end(study, folder, console)
    rows = study.rows(folder)
    refuse_all_failed(rows)
    rows = [row for row in rows if row["status"] == "ok"]
    summary = {"facts": _facts(options, editor, len(study.items)), **study_summary(rows, methods)}
    for name, content in study_files(summary, methods).items():
        folder.write(name, content)
    return {
        "command": "eval reconstruction",
        "psnr": [
            {"case": name, "mean": of["psnr"][0], "low": of["psnr"][1], "high": of["psnr"][2]}
            for name, of in summary["cases"].items()
        ],
        "table": folder.path("summary.md"),
    }


def _beside(model: str) -> Folder:
    """The folder of a model, whose settings can be written.

    Raises:
      InputError: it is no folder of the user's, or can't be written to.
    """
    place = local_path(model)
    if place is None or not Path(at_home(place)).is_dir():
        raise InputError(
            f"--calibrate writes {SETTINGS} beside the model, and {model} is not a folder: "
            f"copy it with `uam convert {model} FOLDER`, then give that folder as --model"
        )
    folder = Folder(at_home(place))
    folder.check([SETTINGS])
    return folder


def _calibrated(editor: "Editor", rows: Sequence[Row], beside: Folder, third: str) -> "Editor":
    """The same editor with a confidence that is fitted to edits, and written beside its model."""
    methods = ", ".join(dict.fromkeys(row["method"] for row in rows))
    on = f"Scenes-Bench's {third} third, methods {methods}, weights {editor.weights_hash}"
    table = fit_confidence(rows, on)
    known = (beside.read(SETTINGS) or b"").decode()
    beside.write(SETTINGS, with_confidence(known, table).encode())
    checkpoint = editor.checkpoint
    settings = {**checkpoint.settings, "confidence": table}
    return type(editor)(replace(checkpoint, settings=settings), editor.devices)


def _run_to_the_end(study: Study, folder: Folder, console: Console) -> None:
    """Runs a study and shows its progress.

    Raises:
      Preempted: SIGTERM arrived before the end.
    """

    def report(progress: Progress) -> None:
        left = "" if progress.left is None else f", {round(progress.left / 60)} min left"
        console.advance(progress.done, progress.total, f"{progress.done} of {progress.total}{left}")

    console.stage(f"{len(study.methods)} methods on {len(study.items)} items")
    with Stop().listening() as stop:
        progress = study.run(folder, Monitor(report, console.say, stop=stop))
    for reason in progress.reasons[:5]:
        console.warn(reason)
    if progress.done < progress.total:
        raise Preempted(
            f"stopped after {progress.done} of {progress.total}: the same command continues"
        )


def _facts(options: EvalOptions, editor: "Editor", items: int) -> dict[str, Any]:
    machine = backend.describe_machine()
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return {
        "benchmark": f"Scenes-Bench {VERSION}, {options.third}, {items} items, seed {options.seed}",
        "model": editor.name,
        "weights": editor.weights_hash,
        "dtype": editor.dtype,
        "device": f"{machine['devices']} x {machine['device']}",
        "versions": versions,
    }
