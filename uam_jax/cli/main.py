"""The command `uam`: one function per subcommand, each thin; JAX is imported only when one runs."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from uam_jax.cli.console import Console
from uam_jax.cli.subcommand import Compute, LocalName, Variant, add_subcommand
from uam_jax.errors import InputError
from uam_jax.runtime import backend

if TYPE_CHECKING:
    from uam_jax.editor import Editor
    from uam_jax.io.outputs import Files
    from uam_jax.jobs.single import Job, Rows

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

evaluations = typer.Typer(
    no_args_is_help=True, help="Measures methods where the exact answer is known."
)
app.add_typer(evaluations, name="eval")
benches = typer.Typer(help="Measures speed and memory.")
app.add_typer(benches, name="bench")

SCENES = LocalName("scenes")
Argument, Option = typer.Argument, typer.Option
Images = Annotated[list[Path], Argument(metavar="IMAGE", help="Pictures, in any common format.")]
Out = Annotated[LocalName, Option(help="A file for one picture; for several, a folder.")]
Model = Annotated[
    LocalName, Option(metavar="NAME|PATH|ID", help="`scenes` (embedded), a folder in the diffusers layout or from "
                "`uam convert`, or a hub id.")
]  # fmt: skip
Size = Annotated[
    int | None,
    Option(min=1, help="Work at about N x N pixels, in place of the model's own size."),
]
Config = Annotated[
    LocalName | None, Option(metavar="NAME|FILE", help="`default`, `released` or a TOML file.")
]
Overrides = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="One setting; repeatable.")
]
Overwrite = Annotated[bool, Option("--overwrite", help="Let an output replace an input.")]


command = partial(add_subcommand, to=app)


def load_editor(model: str, compute: Compute, console: Console) -> "Editor":
    console.stage(f"loading {model}")
    compute.configure()
    from uam_jax.editor import Editor

    return Editor.load(model, dtype=compute.dtype, variant=compute.variant)


@command
def demo(
    console: Console,
    out: Annotated[Path, Option(help="Folder for the pictures.")] = Path("uam-demo"),
    seed: Annotated[int, Option(min=0, help="Chooses the scenes.")] = 0,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Reconstructs and edits four unseen scenes with the embedded model."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: give a folder")
    from uam_jax.io.outputs import check_places

    check_places(out / name for name in ("grid.png", "index.html", "gallery/page.js"))
    editor = load_editor("scenes", compute, console)
    from uam_jax.evaluation.demo import run_demo

    return {"command": "demo", **run_demo(editor, out, seed, console.stage)}


@command
def edit(
    console: Console,
    images: Images,
    target: Annotated[list[str], Option(help="What the result shows; repeat it for several.")],
    out: Out,
    source: Annotated[str | None, Option(help="What the picture shows now.")] = None,
    model: Model = SCENES,
    config: Config = None,
    overrides: Overrides = None,
    mask: Annotated[
        Path | None,
        Option(
            help="Picture of the same size: white, or its one colour, class or hole, may change."
        ),
    ] = None,
    save_mask: Annotated[
        bool, Option("--save-mask", help="Write what was free to change beside each result.")
    ] = False,
    report: Annotated[
        bool, Option("--report", help="Write a page that shows all results: index.html in --out.")
    ] = False,
    size: Size = None,
    overwrite: Overwrite = False,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Edits pictures by text."""
    from uam_jax.jobs.single import edit_job, plan_jobs, report_page
    from uam_jax.method.config import EditConfig

    if not all(text.strip() for text in target):
        raise InputError("--target is empty: say what the result shows")
    chosen = EditConfig.load(config or "default", overrides or ())
    jobs = plan_jobs(
        images, out, targets=len(target), mask=mask, save_mask=save_mask, report=report,
        overwrite=overwrite,
    )  # fmt: skip
    editor = load_editor(model, compute, console)
    if config is None:  # a model's own settings win over the preset
        chosen = editor.default_config.overridden(overrides or ())
    evaluations = editor.evaluations(chosen, targets=len(target), user_mask=mask is not None)
    console.say(f"{evaluations} network evaluations per picture")

    def work(job: "Job") -> "tuple[Files, Rows]":
        return edit_job(editor, job, targets=target, source=source, config=chosen, size=size)

    def page(rows: "Rows") -> "Files":
        facts = {"model": editor.name, "weights": editor.weights_hash, "results": len(rows)}
        return report_page(Path(out), jobs, rows, facts) if report else {}

    return {
        "command": "edit",
        **_carry_out(console, editor, jobs, work, page),
        "evaluations": evaluations * len(jobs),
        "config": chosen.fingerprint(),
    }


@command
def reconstruct(
    console: Console,
    images: Images,
    out: Out,
    prompt: Annotated[str, Option(help="What the network is told the picture shows.")] = "",
    uniformity: Annotated[
        float, Option(min=0, max=1, help="Of the cross-attention maps: 0 the text's, 1 uniform.")
    ] = 1.0,
    guidance: Annotated[float, Option(min=0, help="Scale; 1 is none.")] = 1.0,
    steps: Annotated[int, Option(min=1, max=1000)] = 50,
    spacing: Annotated[
        Literal["leading", "trailing", "linspace"] | None,
        Option(help="Of the timesteps; default: the model's own."),
    ] = None,
    model: Model = SCENES,
    size: Size = None,
    overwrite: Overwrite = False,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Inverts pictures to noise and back, to see what is lost on the way."""
    from uam_jax.jobs.single import plan_jobs, reconstruct_job

    jobs = plan_jobs(images, out, overwrite=overwrite)
    editor = load_editor(model, compute, console)

    def work(job: "Job") -> "tuple[Files, Rows]":
        return reconstruct_job(
            editor, job, prompt=prompt, uniformity=uniformity, guidance=guidance, steps=steps,
            spacing=spacing or "", size=size,
        )  # fmt: skip

    return {"command": "reconstruct", **_carry_out(console, editor, jobs, work)}


@command
def batch(
    console: Console,
    manifest: Annotated[
        str,
        Argument(
            help="JSONL or Parquet with `image` and `target` (one or several), if wanted `source`, `id`, "
            "`mask`, `set`; or a folder of pictures. A path, or any URL that fsspec knows."
        ),
    ],
    out: Annotated[str, Option(help="Folder for results; a job that stopped goes on there.")],
    target: Annotated[
        list[str] | None, Option(help="For a folder: what the results show; repeatable.")
    ] = None,
    source: Annotated[str | None, Option(help="For a folder: what the pictures show.")] = None,
    model: Model = SCENES,
    config: Config = None,
    overrides: Overrides = None,
    size: Size = None,
    multiple: Annotated[
        int | None, Option(min=1, help="Round sides to this; more makes fewer sizes to compile.")
    ] = None,
    micro: Annotated[int, Option("--batch", min=1, help="Pictures per device at a time.")] = 4,
    devices: Annotated[
        int | None,
        Option(min=1, max=1024, help="How many; default: all. A CPU is divided into as many."),
    ] = None,
    parallel: Annotated[
        Literal["shard_map", "pmap"], Option(help="How batches are split over devices.")
    ] = "shard_map",
    suffix: Annotated[
        str | None, Option("--format", metavar="png|jpg|webp|tiff", help="Default: as the input.")
    ] = None,
    shard: Annotated[
        str | None, Option(metavar="I/N", help="Take part I (from 0) of N; then `uam merge`.")
    ] = None,
    distributed: Annotated[
        bool, Option("--distributed", help="Take I and N from the cluster (TPU VMs, SLURM).")
    ] = False,
    coordinator: Annotated[
        str | None, Option(metavar="HOST:PORT", help="With --distributed, where it can't be found.")
    ] = None,
    processes: Annotated[int | None, Option(min=1, help="Likewise: how many there are.")] = None,
    process: Annotated[int | None, Option(min=0, help="Likewise: which this one is.")] = None,
    cache: Annotated[
        Path | None, Option(help="Folder that keeps inversions for later edits.")
    ] = None,
    cache_size: Annotated[float, Option(min=0, help="What it may hold, in GB.")] = 10.0,
    host_memory: Annotated[
        float | None,
        Option(
            min=0,
            metavar="GB",
            help="For pictures at their own size; default: a sixteenth of what is free.",
        ),
    ] = None,
    max_failures: Annotated[
        int | None, Option(min=0, help="Stop when more results fail than that.")
    ] = None,
    retry_failed: Annotated[
        bool, Option("--retry-failed", help="Try results again that failed before.")
    ] = False,
    allow_change: Annotated[
        bool, Option("--allow-change", help="Go on with other settings than those begun with.")
    ] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Check everything, tell what it takes, and write nothing.")
    ] = False,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Edits a whole data set; can be killed and started again at any time."""
    from uam_jax.cli.batch import BatchOptions, run_batch

    options = BatchOptions(
        manifest=manifest, out=out, targets=tuple(target or ()), source=source, model=model,
        dtype=compute.dtype, variant=compute.variant, precision=compute.precision,
        config=config, overrides=tuple(overrides or ()), size=size,
        multiple=multiple, micro=micro, devices=devices, parallel=parallel,
        suffix=suffix and "." + suffix.removeprefix("."), shard=shard,
        distributed=distributed or coordinator is not None, coordinator=coordinator,
        processes=processes, process=process, cache=cache, cache_bytes=int(cache_size * 1e9),
        host_memory=None if host_memory is None else int(host_memory * 1e9),
        max_failures=max_failures, retry_failed=retry_failed, allow_change=allow_change,
    )  # fmt: skip
    setup = partial(compute.configure, devices=devices)
    return {"command": "batch", **run_batch(options, console, dry_run=dry_run, configure=setup)}


@command
def merge(
    console: Console,
    folder: Annotated[str, Argument(metavar="DIR", help="The --out of `uam batch`.")],
) -> dict[str, Any]:
    """Makes one ledger, table and gallery of all processes' parts, and tells what is missing."""
    from uam_jax.io.storage import Folder
    from uam_jax.jobs.job import finish_job
    from uam_jax.jobs.job_folder import JobFolder

    console.stage(f"merging {folder}")
    job = JobFolder(Folder(folder))
    if job.expected:
        job.check()
    return {"command": "merge", **finish_job(job)}


@partial(command, to=evaluations)
def scenes(
    console: Console,
    out: Annotated[str, Option(help="Folder for results; a run that was stopped goes on.")],
    methods: Annotated[
        str,
        Option(metavar="NAME|FILE,...", help="Presets, TOML files, or files of [methods.NAME]."),
    ] = "default,released",
    model: Model = SCENES,
    third: Annotated[
        str, Option(metavar="tune|report|reserve,...", help="Which part of the 700 items.")
    ] = "report",
    n: Annotated[int | None, Option(min=1, help="So many items; default: all of the part.")] = None,
    seed: Annotated[int, Option(min=0, help="0 is the benchmark; others draw other items.")] = 0,
    chunk: Annotated[int, Option(min=1, help="Items at a time.")] = 16,
    share: Annotated[
        bool,
        Option("--share", help="One inversion for all methods that take the same; no seconds."),
    ] = False,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Runs Scenes-Bench: edits of rendered scenes against exact answers and masks."""
    compute.configure()
    from uam_jax.cli.evaluate import EvalOptions, run_eval

    options = EvalOptions(
        out=out, methods=methods, model=model, third=third, n=n, seed=seed, chunk=chunk, share=share,
        dtype=compute.dtype, variant=compute.variant, precision=compute.precision,
    )  # fmt: skip
    return run_eval(options, console)


@partial(command, to=evaluations)
def reconstruction(
    console: Console,
    out: Annotated[str, Option(help="Folder for results; a run that was stopped goes on.")],
    model: Model = SCENES,
    third: Annotated[
        str, Option(metavar="tune|report|reserve,...", help="Which part of the 700 items.")
    ] = "report",
    n: Annotated[int | None, Option(min=1, help="So many items.")] = 32,
    seed: Annotated[int, Option(min=0, help="0 is the benchmark; others draw other items.")] = 0,
    chunk: Annotated[int, Option(min=1, help="Items at a time.")] = 16,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Compares inversions with source, null and wrong prompts and with uniform maps."""
    compute.configure()
    from uam_jax.cli.evaluate import EvalOptions, run_reconstruction

    options = EvalOptions(
        out=out, model=model, third=third, n=n, seed=seed, chunk=chunk, dtype=compute.dtype,
        variant=compute.variant, precision=compute.precision,
    )  # fmt: skip
    return run_reconstruction(options, console)


@partial(command, to=benches, alone=True)
def bench(
    console: Console,
    out: Annotated[str, Option(help="Folder for the record, the table and plots.")] = "uam-bench",
    model: Annotated[
        LocalName | None, Option(help="See `uam edit --model`; default: `scenes`.")
    ] = None,
    variant: Variant = None,
    shape: Annotated[
        str | None, Option(metavar="sd15|sd21", help="Random weights of this shape, no download.")
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
    device: Annotated[
        list[str] | None, Option(metavar="cpu|gpu|tpu", help="Default: the best that JAX finds.")
    ] = None,
    devices: Annotated[
        list[int] | None,
        Option(min=1, help="How many; on `--device cpu`, virtual ones. Default: 1."),
    ] = None,
    dtype: Annotated[
        list[str] | None, Option(metavar="float32|bfloat16|float16", help="Default: float32.")
    ] = None,
    attention: Annotated[
        list[str] | None, Option(metavar="auto|xla|cudnn|chunked", help="What computes it.")
    ] = None,
    size: Annotated[
        list[int] | None, Option(min=1, help="Side of the pictures; default: the model's.")
    ] = None,
    batch: Annotated[
        list[int] | None, Option(min=1, help="Pictures per device at a time; default: 1 and 4.")
    ] = None,
    steps: Annotated[list[int] | None, Option(min=1, help="Default: as the settings say.")] = None,
    targets: Annotated[list[int] | None, Option(min=1, help="Per picture; default: 1.")] = None,
    task: Annotated[
        list[str] | None, Option(metavar="invert|edit|batch", help="Default: all three.")
    ] = None,
    repeats: Annotated[int, Option(min=1, help="Of each task, after the first.")] = 5,
    precision: Annotated[
        backend.Precision | None, Option(help="Of float32 matrix products.")
    ] = None,
    peak: Annotated[
        float | None, Option(help="TFLOP/s that a device can do, in place of the table's.")
    ] = None,
) -> dict[str, Any]:
    """Measures speed and memory; options that say Default can be repeated, and all combinations run."""
    from uam_jax.cli.bench import BenchOptions, run_bench

    several = {
        "device": device, "devices": devices, "dtype": dtype, "attention": attention, "size": size,
        "batch": batch, "steps": steps, "targets": targets, "task": task,
    }  # fmt: skip
    options = BenchOptions(
        out=out, model=model, variant=variant, shape=shape, config=config, overrides=tuple(overrides or ()),
        precision=precision, repeats=repeats, peak=peak,
        **{name: tuple(values) for name, values in several.items() if values},
    )  # fmt: skip
    return run_bench(options, console)


@partial(command, to=benches)
def compare(
    console: Console,
    records: Annotated[
        list[LocalName],
        Argument(metavar="A.json B.json ...", help="Or the folders of `uam bench`."),
    ],
    out: Annotated[str | None, Option(help="A file for the table, as Markdown.")] = None,
) -> dict[str, Any]:
    """Sets machines, backends, dtypes and versions side by side, ratios first."""
    from uam_jax.cli.bench import run_compare

    return run_compare(records, out)


@command
def convert(
    console: Console,
    source: Annotated[LocalName, Argument(metavar="SRC", help="A diffusers folder or a hub id.")],
    destination: Annotated[Path, Argument(metavar="DST", help="A folder to be made.")],
    variant: Variant = None,
) -> dict[str, Any]:
    """Writes a model as an Orbax checkpoint, which --model loads directly."""
    console.stage(f"converting {source}")
    backend.check_platforms()
    from uam_jax.checkpoints import load

    return {
        "command": "convert",
        "model": load.convert(source, destination, variant=variant),
    }


@command
def info(
    console: Console,
    model: Annotated[LocalName, Argument(help="See `uam edit --model`.")] = SCENES,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Tells devices, versions, and what a model is and costs."""
    from uam_jax.engine.loaded import describe_model

    editor = load_editor(model, compute, console)
    console.stage("counting the operations of an evaluation")
    return {"command": "info", **backend.describe_machine(), **describe_model(editor)}


def _carry_out(
    console: Console,
    editor: "Editor",
    jobs: "list[Job]",
    work: "Callable[[Job], tuple[Files, Rows]]",
    page: "Callable[[Rows], Files]" = lambda rows: {},
) -> dict[str, Any]:
    """Does all jobs and writes each one's files when it is done; returns the common part of a summary."""
    from uam_jax.io.outputs import write_files
    from uam_jax.jobs.single import tell_left

    rows: Rows = []
    done, start = 0, time.perf_counter()
    try:
        with backend.CompileClock() as clock:
            for job in jobs:
                console.stage(f"{job.source} ({done + 1} of {len(jobs)})")
                files, figures = work(job)
                write_files(files)
                rows += figures
                done += 1
        total = time.perf_counter() - start
        write_files(page(rows))
    except BaseException:
        if done:
            console.warn(tell_left(jobs, done))
        raise
    return {
        "pictures": rows,
        "model": editor.name,
        "weights": editor.weights_hash,
        "seconds": {"compile": clock.seconds, "run": total - clock.seconds},
        **backend.describe_machine(),
    }


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"uam {backend.version()}")
        raise typer.Exit
    return wanted


@app.callback()
def _program(
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Edits pictures by text, and leaves the rest of them as it was."""


def main() -> None:
    """Runs the program."""
    app(prog_name="uam")
