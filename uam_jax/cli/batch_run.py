"""The work of `uam batch`: from options to a job that runs, and messages on the way."""

import itertools
import math
import re
import shlex
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from uam_jax.cli.batch import BatchOptions
from uam_jax.cli.console import Console
from uam_jax.cli.options import Compute, Settings
from uam_jax.engine.cache import InversionCache
from uam_jax.engine.parallel import Devices
from uam_jax.errors import InputError, Preempted
from uam_jax.io.encoding import output_format
from uam_jax.io.images import Picture
from uam_jax.io.storage import Folder, is_folder
from uam_jax.jobs.batches import host_bytes
from uam_jax.jobs.job import RunOptions, finish_job, run_job
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.ledger import refuse_all_failed
from uam_jax.jobs.manifest import Item, read_folder, read_manifest
from uam_jax.jobs.plan import JobPlan, JobSettings, check_items, plan_job
from uam_jax.jobs.runner import Monitor, Progress, Stop
from uam_jax.jobs.sizes import working_sizes
from uam_jax.method.edits import Words
from uam_jax.method.section import code
from uam_jax.runtime import backend
from uam_jax.runtime.host_memory import Budget, resident_bytes

if TYPE_CHECKING:
    from uam_jax.editor import Editor
    from uam_jax.method.config import EditConfig


def run_batch(
    options: BatchOptions,
    words: Words,
    settings: Settings,
    compute: Compute,
    console: Console,
) -> dict[str, Any]:
    """Runs a job, or with `--dry-run` estimates its cost.

    Args:
      options: the options of `uam batch`.
      words: of the prompts of a folder's pictures.
      settings: the options that choose the edit's settings.
      compute: the options that choose device and precision.
      console: shows progress, messages and warnings.

    Returns:
      The summary: counts, seconds and places of the results, or the cost of the job.

    Raises:
      InputError: an input, an option or the folder for results is at fault; the job has not begun.
      JobFailed: every result failed.
      Preempted: SIGTERM arrived; the message has the command that continues the job.
    """
    # The processes of several hosts must have joined before JAX looks for devices.
    shard = _shard(options)
    compute.configure(devices=options.devices)
    job = JobFolder(Folder(options.out))
    job.check()
    if options.cache:
        Folder(str(options.cache)).check()
    suffix = _suffix(options)
    items = _items(options, words)
    settings.check()
    console.stage(f"looking at {len(items)} pictures")
    numbers = itertools.count(1)

    def look() -> None:
        number = next(numbers)
        console.advance(number, len(items), f"{number} of {len(items)} pictures looked at")

    sizes = job.sizes.measure(items, again=options.retry_failed, seen=look)
    console.stage(f"loading {options.model}")
    from uam_jax.editor import Editor

    dtype = compute.dtype
    if dtype == "auto":  # a job goes on as it began, on any machine
        dtype = job.settings.get("dtype", dtype)
    editor = Editor.load(options.model, dtype=dtype, variant=compute.variant)
    editor = editor.on(Devices.local(options.devices, options.parallel))
    config = settings.of(editor)
    plan = plan_job(items, sizes, config, _job_settings(options, compute, editor, config, suffix))
    plan.check_edits(editor.checkpoint.tokenizer)
    if not options.allow_change:
        remedy = ", or add --allow-change to continue with the new ones"
        job.refuse_other(plan.settings, remedy)
        job.refuse_changed(plan)
    done = job.done(retry_failed=options.retry_failed)
    known = done & set(plan.expected)
    if stale := len(done - known):
        console.say(
            f"{stale} results in {options.out} belong to no picture of this job, because their pictures are gone, were "
            "renamed, or had other ids in an older version; these results stay as they are"
        )
    described = plan.describe(editor, len(known))
    console.say(
        f"{described['pictures']} pictures, {described['results']} results, {len(known)} of them done; "
        f"{described['programs']} programs to compile, for {len(described['shapes'])} shapes: "
        + ", ".join(described["shapes"])
    )
    job.check(plan)
    if options.dry_run:
        return _dry_run(options, console, plan, editor, described)
    return {**_run(options, console, plan, editor, job, shard), **backend.describe_machine()}


def _run(
    options: BatchOptions,
    console: Console,
    plan: JobPlan,
    editor: "Editor",
    job: JobFolder,
    shard: tuple[int, int],
) -> dict[str, Any]:
    """Runs a job to its end, or until it must stop, and returns its summary."""
    devices = len(editor.devices or ())

    def report(progress: Progress) -> None:
        left = "" if progress.left is None else f", {_clock(progress.left)} left"
        console.advance(
            progress.done,
            progress.total,
            f"{progress.done} of {progress.total}, {progress.recent:.3g} images/s{left}, "
            f"{progress.failed} failed, {devices} device{'s' * (devices != 1)}",
        )

    console.stage("editing")
    with Stop().listening() as stop:
        progress = run_job(
            editor,
            plan,
            job,
            RunOptions(
                shard=shard,
                versions=", ".join(
                    f"{k} {v}" for k, v in backend.versions("uam_jax", "jax").items()
                ),
                cache=_inversion_cache(options),
                retry_failed=options.retry_failed,
                allow_change=options.allow_change,
                budget=_budget(options),
            ),
            monitor=Monitor(report, console.say, options.max_failures, stop),
        )
    for reason in progress.reasons[:5]:
        console.warn(reason)
    if progress.done < progress.total:
        command = shlex.join(["uam", *sys.argv[1:]])
        raise Preempted(
            f"stopped after {progress.done} of {progress.total}; to continue: {command}"
        )
    figures = {
        "made": progress.done,
        "failed_now": progress.failed,
        "seconds": round(progress.seconds, 2),
        "images_per_second": round(progress.done / progress.seconds, 4) if progress.done else None,
    }
    rows = job.rows().values()
    if shard[1] > 1:
        if progress.done:
            refuse_all_failed(rows)
        return {**figures, "shard": f"{shard[0]}/{shard[1]}", "next": f"uam merge {options.out}"}
    console.stage("writing the gallery")
    speed = {"images per second": figures["images_per_second"]} if progress.done else {}
    summary = finish_job(job, speed)
    if progress.done:
        refuse_all_failed(rows)
    return {**figures, **summary}


def _dry_run(
    options: BatchOptions,
    console: Console,
    plan: JobPlan,
    editor: "Editor",
    described: dict[str, Any],
) -> dict[str, Any]:
    """Reads every picture, estimates seconds and memory, and returns them with the job's description."""
    console.stage("reading every picture")
    settings = plan.settings
    sizes = working_sizes(plan.items, plan.sizes, side=settings.side, multiple=settings.multiple)
    faults, crops = check_items(plan.items, sizes, settings.suffix, settings.focus)
    for fault in faults[:5]:
        console.warn(fault)
    editor.check_prompts([text for item in plan.items for text in item.targets])
    console.stage("timing an evaluation")
    budget = _budget(options)
    seconds = _estimate(plan, editor, described["buckets"])
    pictures = host_bytes(plan.groups, plan.known_sizes, len(editor.devices or (0,)), budget.total)
    return {
        **described,
        "pictures_with_crop": crops,
        "faults": faults,
        "estimated_seconds": seconds,
        "estimated_host_memory_gb": round((resident_bytes() + pictures) / 1e9, 2),
        **backend.describe_machine(),
    }


def _estimate(plan: JobPlan, editor: "Editor", buckets: list[dict[str, Any]]) -> float | None:
    """Estimates the seconds of all evaluations from one that is timed at the most frequent size.

    Reading and writing the pictures is not counted. None if no picture has a known size.
    """
    import jax.numpy as jnp

    sizes = [each.bucket.size for each in plan.groups if all(each.bucket.size)]
    if not sizes:
        return None
    [((height, width), _)] = Counter(sizes).most_common(1)
    rows = plan.settings.batch_per_device * len(editor.devices or (None,))
    factor = editor.size_factor
    z0 = jnp.zeros((rows, height // factor, width // factor, editor.latent_channels))
    editor.invert(z0, steps=4).latents.block_until_ready()  # compiles
    began = time.perf_counter()
    editor.invert(z0, steps=4).latents.block_until_ready()
    seconds = (time.perf_counter() - began) / (4 * rows)
    work = sum(row["evaluations"] * row["pixels"] for row in buckets) / (height * width)
    return round(seconds * work, 3)


def _items(options: BatchOptions, words: Words) -> list[Item]:
    """Reads the manifest, or lists the pictures of a folder."""
    if is_folder(options.manifest):
        if not options.target or not all(text.strip() for text in options.target):
            raise InputError(
                "for a folder of pictures, give --target: text that describes the results"
            )
        return read_folder(
            options.manifest,
            options.target,
            source=options.source,
            negative=options.negative,
            words=words,
            besides=options.out,
        )
    if options.target or options.source or options.negative or words:
        raise InputError(
            "--target, --source, --negative and options for words are for a folder of pictures; a manifest has its own "
            "columns for them"
        )
    return read_manifest(options.manifest, besides=options.out)


def _suffix(options: BatchOptions) -> str | None:
    """The suffix of the results, checked; None where each result has the format of its input."""
    if options.format is None:
        return None
    suffix = "." + options.format.removeprefix(".")
    if not re.fullmatch(r"\.\w+", suffix):
        raise InputError(f"--format {suffix[1:]}: give a file's suffix, such as png")
    output_format(f"x{suffix}", Picture(np.zeros((1, 1, 3), np.float32)))
    return suffix


def _inversion_cache(options: BatchOptions) -> InversionCache | None:
    return InversionCache(options.cache, int(options.cache_size * 1e9)) if options.cache else None


def _budget(options: BatchOptions) -> Budget:
    return Budget(None if options.host_memory is None else int(options.host_memory * 1e9))


def _job_settings(
    options: BatchOptions,
    compute: Compute,
    editor: "Editor",
    config: "EditConfig",
    suffix: str | None,
) -> JobSettings:
    """The settings that decide the job's results; refuses working sides that are too small."""
    side = options.size or editor.native_size
    multiple = math.lcm(options.multiple or 1, editor.size_multiple)
    if multiple > side:
        raise InputError(
            f"--size {side} is smaller than {multiple}, of which both sides must be multiples"
            + (f" with --multiple {options.multiple}" if options.multiple else "")
            + f" ({options.model} needs multiples of {editor.size_multiple})"
        )
    return JobSettings(
        model=options.model,
        weights=editor.weights_hash,
        model_hash=editor.model_hash,
        dtype=editor.dtype,
        config=config.to_dict(),
        side=side,
        multiple=multiple,
        batch_per_device=options.batch_per_device,
        suffix=suffix,
        precision=compute.precision,
        focus=options.focus,
        code=code(config),
    )


def _shard(options: BatchOptions) -> tuple[int, int]:
    """The number of this process's part, and the number of parts; joins the other hosts' processes."""
    if options.distributed or options.coordinator:
        if options.shard:
            raise InputError(
                "--shard and --distributed both choose the part to work on: give one of them"
            )
        return backend.join_processes(options.coordinator, options.processes, options.process)
    if options.shard is None:
        return 0, 1
    index, _, count = options.shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"--shard {options.shard}: give I/N with I from 0 to N-1, such as 0/4")
    return int(index), int(count)


def _clock(seconds: float) -> str:
    """Writes seconds as H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
