"""`uam batch`: from options to a job, and what is told on the way."""

import math
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uam_jax.cli.console import Console
from uam_jax.engine.cache import InversionCache
from uam_jax.engine.parallel import Devices
from uam_jax.errors import InputError, Preempted
from uam_jax.io.encoding import output_format
from uam_jax.io.images import Picture
from uam_jax.io.storage import Folder, is_folder
from uam_jax.jobs.batches import host_bytes, working_sizes
from uam_jax.jobs.job import finish_job, run_job
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.ledger import read_rows, refuse_all_failed
from uam_jax.jobs.manifest import Item, read_folder, read_manifest
from uam_jax.jobs.plan import JobPlan, Settings, check_items, plan_job
from uam_jax.jobs.runner import Progress, Stop
from uam_jax.method.config import EditConfig
from uam_jax.runtime import backend
from uam_jax.runtime.host_memory import Budget, resident_bytes

if TYPE_CHECKING:
    from uam_jax.editor import Editor


@dataclass(frozen=True)
class BatchOptions:
    """The options of `uam batch`, which tells what each means."""

    manifest: str
    out: str
    targets: tuple[str, ...] = ()
    source: str | None = None
    model: str = "scenes"
    dtype: str = "float32"
    variant: str | None = None
    precision: str | None = None
    config: str | None = None
    overrides: tuple[str, ...] = ()
    size: int | None = None
    multiple: int | None = None
    micro: int = 4
    devices: int | None = None
    parallel: str = "shard_map"
    suffix: str | None = None
    shard: str | None = None
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    cache: Path | None = None
    cache_bytes: int = 10_000_000_000
    host_memory: int | None = None
    max_failures: int | None = None
    retry_failed: bool = False
    allow_change: bool = False


def run_batch(
    options: BatchOptions,
    console: Console,
    *,
    dry_run: bool = False,
    configure: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Runs a job, or only tells what it would take.

    Args:
      options: of `uam batch`.
      console: told what goes on.
      dry_run: write nothing.
      configure: sets up JAX, which can look for devices only when several hosts' processes have joined.

    Raises:
      InputError: anything that is at fault before the job begins.
      Preempted: SIGTERM came; the message holds the command that goes on.
    """
    shard = _shard(options)  # first: on several hosts, they wait for each other
    configure()
    job = JobFolder(Folder(options.out))
    job.check()
    if options.cache:
        Folder(str(options.cache)).check()
    if options.suffix is not None:
        if not re.fullmatch(r"\.\w+", options.suffix):
            raise InputError(f"--format {options.suffix[1:]}: give a file's suffix, as png")
        output_format(f"x{options.suffix}", Picture(np.zeros((1, 1, 3), np.float32)))
    items = _items(options)
    preset = EditConfig.load(options.config or "default", options.overrides)
    console.stage(f"looking at {len(items)} pictures")
    seen = [0]

    def look() -> None:
        seen[0] += 1
        console.advance(seen[0], len(items), f"{seen[0]} of {len(items)} pictures looked at")

    sizes = job.measure(items, again=options.retry_failed, seen=look)
    console.stage(f"loading {options.model}")
    from uam_jax.editor import Editor

    editor = Editor.load(options.model, dtype=options.dtype, variant=options.variant)
    editor = editor.on(Devices.local(options.devices, options.parallel))
    config = preset
    if options.config is None:  # a model's own settings win over the preset
        config = editor.default_config.overridden(options.overrides)
    plan = plan_job(items, sizes, config, _settings(options, editor, config))
    if not options.allow_change:
        remedy = ", or add --allow-change to go on with the new ones"
        job.refuse_other(plan.settings, remedy)
        job.refuse_changed(plan)
    done = job.done(retry_failed=options.retry_failed)
    known = done & set(plan.expected)
    if stale := len(done - known):
        console.say(
            f"{stale} results in {options.out} are of no picture of this job: those are gone, were renamed, or had "
            "other ids in an older version; they stay as they are"
        )
    described = plan.describe(editor, len(known))
    console.say(
        f"{described['pictures']} pictures, {described['results']} results, {len(known)} of them done; "
        f"{described['programs']} programs to compile, for {len(described['shapes'])} shapes: "
        + ", ".join(described["shapes"])
    )
    job.check(plan)
    if dry_run:
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
            shard=shard,
            devices=devices,
            versions=", ".join(f"{k} {v}" for k, v in backend.versions("uam_jax", "jax").items()),
            cache=InversionCache(options.cache, options.cache_bytes) if options.cache else None,
            retry_failed=options.retry_failed,
            max_failures=options.max_failures,
            allow_change=options.allow_change,
            budget=Budget(options.host_memory),
            report=report,
            say=console.say,
            stop=stop,
        )
    for reason in progress.reasons[:5]:
        console.warn(reason)
    if progress.done < progress.total:
        command = shlex.join(["uam", *sys.argv[1:]])
        raise Preempted(f"stopped after {progress.done} of {progress.total}; to go on: {command}")
    figures = {
        "made": progress.done,
        "failed_now": progress.failed,
        "seconds": round(progress.seconds, 2),
        "images_per_second": round(progress.done / progress.seconds, 4) if progress.done else None,
    }
    rows = read_rows(job.folder).values()
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
    console.stage("reading every picture")
    settings = plan.settings
    sizes = working_sizes(plan.items, plan.sizes, side=settings.side, multiple=settings.multiple)
    faults = check_items(plan.items, sizes, options.suffix)
    for fault in faults[:5]:
        console.warn(fault)
    editor.check_prompts([text for item in plan.items for text in item.targets])
    console.stage("timing an evaluation")
    budget = Budget(options.host_memory)
    seconds = _estimate(plan, editor, described["buckets"])
    pictures = host_bytes(plan.groups, plan.known_sizes, len(editor.devices or (0,)), budget.total)
    return {
        **described,
        "faults": faults,
        "estimated_seconds": seconds,
        "estimated_host_memory_gb": round((resident_bytes() + pictures) / 1e9, 2),
        **backend.describe_machine(),
    }


def _estimate(plan: JobPlan, editor: "Editor", buckets: list[dict[str, Any]]) -> float | None:
    """All evaluations at the speed of one, measured at the commonest size; pictures in and out not counted."""
    import jax.numpy as jnp

    sizes = [each.bucket.size for each in plan.groups if all(each.bucket.size)]
    if not sizes:
        return None
    [((height, width), _)] = Counter(sizes).most_common(1)
    rows = plan.settings.micro * len(editor.devices or (None,))
    factor = editor.size_factor
    z0 = jnp.zeros((rows, height // factor, width // factor, editor.latent_channels))
    editor.invert(z0, steps=4).latents.block_until_ready()  # compiles
    began = time.perf_counter()
    editor.invert(z0, steps=4).latents.block_until_ready()
    seconds = (time.perf_counter() - began) / (4 * rows)
    work = sum(row["evaluations"] * row["pixels"] for row in buckets) / (height * width)
    return round(seconds * work, 3)


def _items(options: BatchOptions) -> list[Item]:
    if is_folder(options.manifest):
        if not options.targets or not all(text.strip() for text in options.targets):
            raise InputError("for a folder, say with --target what the results show")
        return read_folder(
            options.manifest, options.targets, source=options.source, besides=options.out
        )
    if options.targets or options.source:
        raise InputError("--target and --source are for a folder; a manifest has its own")
    return read_manifest(options.manifest, besides=options.out)


def _settings(options: BatchOptions, editor: "Editor", config: EditConfig) -> Settings:
    side = options.size or editor.native_size
    multiple = math.lcm(options.multiple or 1, editor.size_multiple)
    if multiple > side:
        raise InputError(
            f"--size {side} is smaller than {multiple}, of which both sides are to be multiples"
            + (f" with --multiple {options.multiple}" if options.multiple else "")
            + f" ({options.model} needs multiples of {editor.size_multiple})"
        )
    return Settings(
        model=options.model,
        weights=editor.weights_hash,
        model_hash=editor.model_hash,
        dtype=options.dtype,
        config=config.to_dict(),
        side=side,
        multiple=multiple,
        micro=options.micro,
        suffix=options.suffix,
        precision=options.precision,
    )


def _shard(options: BatchOptions) -> tuple[int, int]:
    if options.distributed:
        if options.shard:
            raise InputError("--shard and --distributed both say which part to take: give one")
        return backend.join_processes(options.coordinator, options.processes, options.process)
    if options.shard is None:
        return 0, 1
    index, _, count = options.shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"--shard {options.shard}: give I/N with I from 0 to N-1, as 0/4")
    return int(index), int(count)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
