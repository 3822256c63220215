"""Speed of one model in one configuration on one kind of device, measured in a process of its own.

`python -m uam_jax.evaluation.speed` reads a `Case` as JSON and prints the measurement as JSON, so that
compilation, memory and failures of one case never affect another. `uam bench` runs it for many cases.
"""

import base64
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uam_jax.errors import InputError
from uam_jax.evaluation.kept_edits import KeptEdits
from uam_jax.evaluation.peaks import peak_flops
from uam_jax.evaluation.timing import product_rate, timed
from uam_jax.runtime import backend

if TYPE_CHECKING:
    from uam_jax.editor import Editor
    from uam_jax.engine.delivery import EditResult
    from uam_jax.method.config import EditConfig
    from uam_jax.method.plan import Plan

MARK = "speed: "
"""Prefix of progress messages on stderr."""

TASKS = ("invert", "edit", "batch")
SOURCE, TARGETS = "a red cube on a wooden table", ("a blue cube", "a green ball", "a red cone")


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
      model: see `Editor.load`; None for random weights of `shape`.
      variant: see `Editor.load`.
      shape: a key of `models.configs.PUBLISHED`.
      config: a preset or a TOML file; None is the preset `default`. A model's own form of a preset takes its place.
      overrides: "key=value" changes of the config.
      device: "cpu", "gpu" or "tpu"; None for the best that JAX finds.
      devices: the number of devices.
      dtype: of weights and computation; the record says which one "auto" was.
      precision: of float32 products (`jax.default_matmul_precision`).
      attention: its implementation: "auto", "xla", "cudnn", "flash" or "chunked".
      size: side of the pictures in pixels; None for the model's own.
      batch: pictures per device in one call.
      steps: of the schedule; None for the config's.
      targets: prompts per picture.
      tasks: of `TASKS`.
      repeats: timed runs of each task, after the first run.
      peak: TFLOP/s of a device, instead of `peaks.peak_flops`; for a CPU, of all its virtual devices together.
    """

    model: str | None = "scenes"
    variant: str | None = None
    shape: str | None = None
    config: str | None = None
    overrides: tuple[str, ...] = ()
    device: str | None = None
    devices: int = 1
    dtype: str = "auto"
    precision: str | None = None
    attention: str = "auto"
    size: int | None = None
    batch: int = 1
    steps: int | None = None
    targets: int = 1
    tasks: tuple[str, ...] = TASKS
    repeats: int = 5
    peak: float | None = None

    @classmethod
    def from_json(cls, text: str) -> "Case":
        """The inverse of `json.dumps(asdict(case))`."""
        values = json.loads(text)
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


def measure(case: Case, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measures every task of a case.

    A time covers the whole task as seen from Python, until the results are complete. The task `edit` is
    `Editor.edit_latents` between the VAE's encoder and decoder; `batch` is a data-set job from picture files to
    picture files.

    Returns:
      `machine`, `model`, and a row for each task. A row holds the seconds of compilation (tracing included) of
      programs that no earlier task had compiled, the seconds of the first run without compilation and of the
      repeats, images/s, the evaluations per image, the operations of a run, and the memory. Beside them, if the
      task `edit` was measured, `edits`: a file of `KeptEdits` in Base64.

    Raises:
      InputError: the model, the device or the configuration does not exist.
    """
    backend.configure(device=case.device, devices=case.devices, precision=case.precision)  # type: ignore[arg-type]

    from uam_jax.engine.parallel import Devices

    say(f"loading {case.model or case.shape}")
    editor, config = load(case)
    devices = Devices.local(case.devices)
    editor = editor.on(devices)
    [kind] = {device.device_kind for device in devices.devices}
    precision = case.precision or "default"
    peak = case.peak * 1e12 if case.peak else peak_flops(kind, editor.dtype, precision)
    say("counting operations")
    flops = _flops_per_evaluation(editor, case.size)
    product = product_rate(editor.dtype, devices.platform.name)
    # The virtual devices of a CPU share its peak.
    apart = 1 if devices.platform.name == "cpu" else case.devices
    rows, kept = [], {}
    for task in case.tasks:
        say(f"{task}, compiling")
        with backend.CompileClock() as preparing:
            work = prepare_task(task, editor, config, case)
        row = timed(work.run, case.repeats, devices, lambda text, task=task: say(f"{task}, {text}"))
        row["compile_seconds"] += preparing.seconds
        seconds = row["seconds"]["median"]
        rate = work.images / seconds
        row = {"task": task, "images": work.images, **row, "images_per_second": rate}
        if flops:
            done = work.images * sum(work.evaluations[maps] * flops[maps] for maps in flops)
            rate = done / seconds / apart
            row |= {
                "evaluations": sum(work.evaluations.values()),
                "gflop_per_evaluation": {maps: each / 1e9 for maps, each in flops.items()},
                "tflop": done / 1e12,
                "tflops_per_device": rate / 1e12,
                "share_of_peak": rate / peak if peak else None,
                "share_of_product": rate / product,
            }
        rows.append(row)
        if work.edits:
            kept = {"edits": base64.b64encode(work.edits().encode()).decode()}
    return {
        "machine": {
            **backend.describe_machine(),
            "host": backend.describe_host(),
            "used": case.devices,
            "peak_tflops": peak and peak / 1e12,
            "product_tflops": product / 1e12,
        },
        "model": describe_work(editor, config, case),
        "rows": rows,
        **kept,
    }


def describe_work(editor: "Editor", config: "EditConfig", case: Case) -> dict[str, Any]:
    """The model, the size and the settings of a case, by which records are compared."""
    return {
        "name": editor.name,
        "weights": editor.weights_hash,
        "dtype": editor.dtype,
        "size": case.size or editor.native_size,
        "config": config.fingerprint(),
        "steps": config.steps,
    }


def load(case: Case, *, drawn: bool = True) -> "tuple[Editor, EditConfig]":
    """The editor and the settings of a case.

    Args:
      case: names them.
      drawn: as of `random_checkpoint`, where the case has a shape.
    """
    from uam_jax.editor import Editor

    if case.shape is None:
        editor = Editor.load(case.model or "scenes", dtype=case.dtype, variant=case.variant)
    else:
        from uam_jax.checkpoints.random import random_checkpoint

        editor = Editor(random_checkpoint(case.shape, dtype=case.dtype, drawn=drawn))
    if case.attention != "auto":
        unet = editor.checkpoint.unet.clone(backend=case.attention)
        editor = Editor(replace(editor.checkpoint, unet=unet))
    overrides = (*case.overrides, *([f"steps={case.steps}"] if case.steps else []))
    return editor, editor.preset(case.config or "default").overridden(overrides)


class Work(NamedTuple):
    """A task's function, the number of its results, the evaluations per result by kind of maps, and its last edits."""

    run: Callable[[], Any]
    images: int
    evaluations: Mapping[str, float]
    edits: Callable[[], KeptEdits] | None = None


def prepare_task(task: str, editor: "Editor", config: "EditConfig", case: Case) -> Work:
    side, count = case.size or editor.native_size, case.batch * case.devices
    source = None if config.source.condition == "null" else SOURCE
    if task == "invert":
        z0 = editor.encode(_pictures(count, side))
        return Work(
            lambda: editor.invert(z0, steps=config.steps).latents,
            count,
            {"uniform": config.steps, "text": 0},
        )
    targets = [TARGETS[i % len(TARGETS)] for i in range(case.targets)]
    of_all = evaluations_by_maps(config, editor.plan(config), case.targets)
    counted = {maps: number / case.targets for maps, number in of_all.items()}
    if task == "edit":
        pictures = _pictures(count, side)
        last: list[EditResult] = []

        def edit() -> Any:
            last.clear()  # else its memory would count
            z0 = editor.encode(pictures)
            asked = [targets] * count
            last.append(editor.edit_latents(z0, asked, source, config=config, images=pictures))
            return last[0].images

        def edits() -> KeptEdits:
            images, masks = np.asarray(last[0].images), np.asarray(last[0].masks)
            return KeptEdits.of(pictures, [source or "", *targets], images, masks)

        return Work(edit, count * case.targets, counted, edits)
    job = _BatchTask(editor, config, case, targets, source)
    return Work(job.run, _BatchTask.BATCHES * count * case.targets, counted)


def evaluations_by_maps(config: "EditConfig", plan: "Plan", targets: int = 1) -> dict[str, int]:
    """`Plan.evaluations` of an image, divided into those with uniform maps and those with the text's."""
    edit, inversion = targets * plan.edit_evaluations, plan.inversion_evaluations
    counted = {"uniform": 0, "text": edit}
    counted["uniform" if config.inversion.uniformity == 1 else "text"] += inversion
    auxiliary = plan.evaluations(targets) - edit - inversion
    counted["uniform" if config.auxiliary.uniformity == 1 else "text"] += auxiliary
    return counted


class _BatchTask:
    """The work of `uam batch` on picture files, except loading the model and writing the gallery."""

    BATCHES = 4

    def __init__(
        self,
        editor: "Editor",
        config: "EditConfig",
        case: Case,
        targets: list[str],
        source: str | None,
    ) -> None:
        from uam_jax.io.encoding import encode_image
        from uam_jax.io.images import Picture
        from uam_jax.jobs.manifest import Item
        from uam_jax.jobs.plan import JobSettings

        self._scratch = tempfile.TemporaryDirectory(prefix="uam-speed-")
        self._editor, self._config = editor, config
        side, folder = case.size or editor.native_size, Path(self._scratch.name)
        self._items = []
        for number, pixels in enumerate(_pictures(self.BATCHES * case.batch * case.devices, side)):
            file = folder / f"{number}.png"
            file.write_bytes(encode_image(file, pixels, Picture(pixels)))
            self._items.append(Item(str(number), str(file), tuple(targets), source))
        self._settings = JobSettings(
            model=editor.name,
            weights=editor.weights_hash,
            model_hash=editor.model_hash,
            dtype=editor.dtype,
            config=config.to_dict(),
            side=side,
            multiple=editor.size_multiple,
            batch_per_device=case.batch,
            precision=case.precision,
        )

    def run(self) -> None:
        """Runs the whole job in a new folder."""
        from uam_jax.io.storage import Folder
        from uam_jax.jobs.job import run_job
        from uam_jax.jobs.job_folder import JobFolder
        from uam_jax.jobs.plan import plan_job

        with tempfile.TemporaryDirectory(dir=self._scratch.name) as out:
            job = JobFolder(Folder(out))
            sizes = job.sizes.measure(self._items)
            plan = plan_job(self._items, sizes, self._config, self._settings)
            progress = run_job(self._editor, plan, job)
        if progress.failed:
            raise RuntimeError(progress.reasons[0])


def _pictures(count: int, side: int) -> np.ndarray:
    """Different smooth waves with noise, (count, side, side, 3) in [-1, 1]; as PNG files as large as photographs."""
    rows, columns = np.mgrid[:side, :side] / side
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (side, side, 3))
    waves = [
        np.sin(2 * np.pi * ((1 + i % 5) * rows[..., None] + np.arange(3) * columns[..., None]))
        for i in range(count)
    ]
    return np.stack([0.8 * wave + noise for wave in waves]).astype(np.float32)


def _flops_per_evaluation(editor: "Editor", size: int | None) -> dict[str, float]:
    """Operations of a network call for one sample, by kind of maps; {} if the compiler does not report them."""
    import jax.numpy as jnp

    from uam_jax.engine.programs import evaluation_flops

    denoiser, null = editor.checkpoint.denoiser, editor.condition("")
    side = (size or editor.native_size) // editor.size_factor
    latent = jnp.zeros((1, side, side, editor.latent_channels))
    counts = {
        name: evaluation_flops(denoiser, editor.params, null, latent, uniform=uniform)
        for name, uniform in {"text": False, "uniform": True}.items()
    }
    return {name: count for name, count in counts.items() if count is not None}


def main() -> None:
    """Measures the case on stdin; progress goes to stderr, in lines that begin with `MARK`."""

    def say(text: str) -> None:
        print(MARK + text, file=sys.stderr, flush=True)

    with redirect_stdout(sys.stderr):
        try:
            outcome = measure(Case.from_json(sys.stdin.read()), say)
        except Exception as error:  # Whatever fails, the other cases must still be measured.
            first = next(iter(str(error).splitlines()), "")
            refused = first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"
            outcome = {"refused": refused}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
