"""The forecast of a case: its programs rehearsed, compiled or counted for the chip, and what they add up to."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from uam_jax.engine.rehearsal import Call, rehearsing, shapes_of
from uam_jax.errors import InputError
from uam_jax.evaluation import speed
from uam_jax.evaluation.chips import Chip
from uam_jax.evaluation.compiled_text import KINDS
from uam_jax.evaluation.operations import operations_of
from uam_jax.evaluation.tpu_programs import bytes_of, compile_for, key_of, seconds_of
from uam_jax.io.storage import Folder
from uam_jax.runtime import backend
from uam_jax.runtime.loops import loops_as_written
from uam_jax.runtime.platforms import Platform, usual_dtype

if TYPE_CHECKING:
    from uam_jax.editor import Editor
    from uam_jax.engine.parallel import Devices

_UNFUSED = Platform("gpu")
"""A GPU without cuDNN, whose attention can't be traced where there is none; `operations_of` knows where it is used."""


@dataclass(frozen=True)
class Target:
    """The machine that is planned for.

    Attributes:
      chip: its kind.
      topology: of TPUs, such as "v5e:2x2"; None: one GPU.
      devices: of that topology; None for a GPU, for which nothing is compiled.
    """

    chip: Chip
    topology: str | None = None
    devices: "Devices | None" = None

    @property
    def name(self) -> str:
        """As in `--for`."""
        return self.topology or self.chip.name

    @property
    def chips(self) -> int:
        """The number of chips."""
        return len(self.devices) // self.chip.devices if self.devices else 1

    def resolved(self, case: speed.Case) -> speed.Case:
        """A case on this machine: the number of devices, and the dtype that "auto" is there.

        Raises:
          InputError: the chip has no units for the dtype.
        """
        dtype = usual_dtype(self.chip.platform) if case.dtype == "auto" else case.dtype
        if self.chip.peak(dtype, case.precision) is None:
            raise InputError(
                f"--dtype {dtype}: a {self.chip.kind} does not multiply it: choose auto"
            )
        devices = len(self.devices) if self.devices else 1
        return replace(case, dtype=dtype, devices=devices, device=self.chip.platform.name)


def forecast(
    case: speed.Case, target: Target, kept: Folder, say: Callable[[str], None]
) -> dict[str, Any]:
    """Plans a case, as `speed.measure` measures it.

    A program that was compiled before, for the same target by the same compiler, is read from `kept`.

    Args:
      case: resolved for the target.
      target: the machine.
      kept: a folder of compiled programs' outcomes.
      say: takes the progress.

    Returns:
      `machine`, `model`, the programs of every task and a row for each, with `images_per_second` where all programs
      compile. Figures that the compiler doesn't give are absent.

    Raises:
      InputError: the model or the configuration does not exist.
    """
    say(f"loading {case.model or case.shape}")
    editor, config = speed.load(case, drawn=False)
    editor = _without_weights(editor, target)
    programs, rows = [], []
    for task in case.tasks:
        say(f"{task}: listing its programs")
        with loops_as_written(), rehearsing(None if target.devices else _UNFUSED) as calls:
            work = speed.prepare_task(task, editor, config, case)
            calls.clear()  # what prepares the task is not part of it
            work.run()
        known = _programs(calls, case, target, kept, lambda text, task=task: say(f"{task}: {text}"))
        programs += [{"task": task, **each} for each in known]
        rows.append({"task": task, "images": work.images, **_total(known, work, case, target)})
        rows[-1] |= _memory(known, editor, target)
    return {
        "machine": _machine(case, target),
        "model": speed.describe_work(editor, config, case),
        "programs": programs,
        "rows": rows,
    }


def _without_weights(editor: "Editor", target: Target) -> "Editor":
    params = shapes_of(editor.params, target.devices)
    return type(editor)(replace(editor.checkpoint, params=params), target.devices)


def _programs(
    calls: Mapping[Call, int],
    case: speed.Case,
    target: Target,
    kept: Folder,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Figures of each program, in the order of their first calls."""
    works = {call: operations_of(call.traced, target.chip.platform) for call in calls}
    found = {}
    # The largest first: what is known when the work is broken off is then most of it.
    for number, call in enumerate(sorted(calls, key=lambda call: -works[call].flops), start=1):
        if target.devices is None:
            seconds = works[call].seconds(target.chip, case.dtype)
            found[call] = {"seconds": {kind: seconds[kind] for kind in KINDS if kind in seconds}}
            continue
        say(f"compiling {call.name}, program {number} of {len(calls)}")
        outcome = found[call] = _compiled(call, target.name, kept)
        if "cycles" in outcome:
            outcome["seconds"] = seconds_of(outcome, target.chip, case.dtype)
        if "bytes" in outcome:
            outcome["held"] = bytes_of(outcome)
    return [
        {
            "program": call.name,
            "calls": times,
            "evaluations": works[call].evaluations,
            "tflop": works[call].flops / 1e12,
            **found[call],
        }
        for call, times in calls.items()
    ]


def _compiled(call: Call, target: str, kept: Folder) -> dict[str, Any]:
    """The outcome of a program's compilation, now or before."""
    lowered = call.lower()
    key = key_of(lowered, target)
    name = f"programs/{call.name}-{key}.json"
    content = kept.read(name)
    if content is None:
        content = json.dumps(compile_for(lowered), indent=1).encode()
        kept.write(name, content)
    return {"key": key, **json.loads(content)}


def _total(
    programs: Sequence[Mapping[str, Any]],
    work: speed.Work,
    case: speed.Case,
    target: Target,
) -> dict[str, Any]:
    """The figures of a task."""
    images = work.images
    row: dict[str, Any] = {"evaluations": sum(work.evaluations.values())}
    devices = len(target.devices) if target.devices else 1
    tflop = devices * sum(each["calls"] * each["tflop"] for each in programs)
    row |= {"tflop": tflop, "tflop_per_image": tflop / images}
    refused = [f"{each['program']}: {each['refused']}" for each in programs if "refused" in each]
    if target.devices and not refused:
        exchanged: Counter[str] = Counter()
        for each in programs:
            exchanged.update(each["collectives"])
        row["collectives"] = dict(exchanged)
    if refused:
        row["refused"] = refused
    if not all("seconds" in each for each in programs):
        return row
    by_kind: Counter[str] = Counter()
    for each in programs:
        for kind, seconds in each["seconds"].items():
            by_kind[kind] += each["calls"] * seconds
    total = by_kind.total()
    row |= {
        "seconds": total,
        "seconds_by_kind": {kind: by_kind[kind] for kind in KINDS if by_kind[kind]},
        "images_per_second": images / total,
        "images_per_second_per_chip": images / total / target.chips,
        "evaluations_per_second_per_chip": images / total / target.chips * row["evaluations"],
        "tflops_per_chip": tflop / total / target.chips,
    }
    peak = target.chip.peak(case.dtype, case.precision)
    assert peak
    row["share_of_peak"] = tflop * 1e12 / total / devices / peak
    if unknown := sum(each.get("unknown_loops", 0) for each in programs):
        row["unknown_loops"] = unknown
    return row


def _memory(
    programs: Sequence[Mapping[str, Any]], editor: "Editor", target: Target
) -> dict[str, Any]:
    """Bytes of a device: all weights, and what the largest program needs beside them."""
    held = {each["program"]: each["held"] for each in programs if "held" in each}
    if not held:
        return {}
    import jax

    weights = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(editor.checkpoint.params)
    )
    largest = max(held, key=lambda name: held[name])
    total = weights + held[largest]
    return {
        "memory": {
            "gigabytes": total / 1e9,
            "of": f"a device while `{largest}` runs, by the compiler",
            "weights": weights / 1e9,
            "share": total / target.chip.memory,
        }
    }


def _machine(case: speed.Case, target: Target) -> dict[str, Any]:
    peak = target.chip.peak(case.dtype, case.precision)
    packages = ("uam_jax", "jax", "jaxlib", *(["libtpu"] if target.devices else []))
    return {
        "for": target.name,
        "device": f"{target.chip.platform.name}: {target.chip.kind}",
        "chips": target.chips,
        "used": case.devices,
        "peak_tflops": peak and peak / 1e12,
        "memory_gigabytes": target.chip.memory / 1e9,
        "bandwidth_gigabytes": target.chip.bandwidth / 1e9,
        "clock_gigahertz": target.chip.clock and target.chip.clock / 1e9,
        "versions": backend.versions(*packages),
        "host": backend.describe_host(),
    }


def fit(entry: Mapping[str, Any]) -> bool:
    """Whether all programs of a case compile and fit into a chip's memory."""
    return all(
        "refused" not in row and row.get("memory", {}).get("share", 0) <= 1 for row in entry["rows"]
    )


def largest_batch(entries: Sequence[Mapping[str, Any]], target: Target) -> dict[str, Any] | None:
    """The pictures per device that fit, by a line through the memory of two batches, or of one and the weights.

    Args:
      entries: cases with their rows, alike but for the batch.
      target: the machine.

    Returns:
      The batch, the bytes that a picture takes, and how both were found; None where no memory is known.
    """
    known = {
        entry["case"]["batch"]: row["memory"]
        for entry in entries
        for row in entry["rows"][:1]
        if "memory" in row and "refused" not in row
    }
    if not known:
        return None
    large, small = max(known), min(known)
    below, of = (
        known[small]["gigabytes"],
        f"a line through the memory of batches of {small} and {large}",
    )
    if small == large:
        # What a program needs whatever the batch is counted as the pictures': fewer are promised than fit.
        small, below, of = (
            0,
            known[large]["weights"],
            f"all that a batch of {large} needs beside the weights grows with it",
        )
    slope = (known[large]["gigabytes"] - below) / (large - small)
    if slope <= 0:
        return None
    return {
        "batch": max(0, int((target.chip.memory / 1e9 - below) / slope + small)),
        "bytes_per_picture": 1e9 * slope,
        "of": f"modelled: {of}",
    }


def job_cost(row: Mapping[str, Any], images: int, price: float | None) -> dict[str, Any]:
    """Chip-hours of a job, and with a price for a chip-hour what it costs."""
    hours = images / row["images_per_second_per_chip"] / 3600
    return {"images": images, "chip_hours": hours} | (
        {} if price is None else {"cost": hours * price}
    )
