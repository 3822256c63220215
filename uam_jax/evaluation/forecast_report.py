"""The record of a plan as a table and a plot."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from uam_jax.evaluation.compiled_text import KINDS
from uam_jax.evaluation.plots import stacks

RESULT = "plan.json"
"""Name of the record's file."""


def as_files(record: Mapping[str, Any]) -> dict[str, bytes]:
    """Makes all files of a record, by name: the record itself, its table and its plot."""
    files = {RESULT: json.dumps(record, indent=1).encode(), "plan.md": _page(record).encode()}
    parts = {
        f"{row['task']}, batch {case['batch']}": {
            kind: 1000 * seconds / row["images"] * case["devices"]
            for kind, seconds in row["seconds_by_kind"].items()
        }
        for case, row in rows_of(record)
        if "seconds" in row
    }
    if parts:
        title = f"{record['for']}: estimated time of an image on one device"
        files["plan.png"] = stacks(parts, names=KINDS, title=title, x="ms")
    return files


def rows_of(record: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yields every task's case and row."""
    for entry in record["cases"]:
        for row in entry["rows"]:
            yield entry["case"], row


def _page(record: Mapping[str, Any]) -> str:
    entry = record["cases"][0]
    machine, model, case = entry["machine"], entry["model"], entry["case"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        f"# Plan for {record['for']}: {model['name']}, {model['size']}x{model['size']}, {model['steps']} steps",
        "",
        f"Estimated {record['date']} by `uam plan` ({packages}); **nothing here was measured** unless it says so. "
        f"Settings: {case['config'] or 'own'} ({model['config'][:6]}); {model['dtype']}.",
        "",
        f"{record['for']}: {machine['chips']} x {_chip(machine)}.",
        "",
        *_notes(machine),
        "",
        *_table(
            ("task", "batch", "images/s", "per chip", "evaluations/s per chip", "TFLOP per image", "of peak",
             "memory GB", "of the chip's", "collectives"),
            (_figures(case, row) for case, row in rows_of(record)),
        ),
    ]  # fmt: skip
    for case, row in rows_of(record):
        for reason in row.get("refused", ()):
            lines += ["", f"Batch {case['batch']}, {row['task']}: it does not compile: {reason}"]
    if fits := record.get("fits"):
        checked = {True: "; compiled: it fits", False: "; compiled: it does not fit", None: ""}
        how = fits["of"] + checked[fits.get("compiled")]
        lines += ["", f"Largest batch per device that should fit: {fits['batch']} ({how})."]
    for job in record.get("jobs", ()):
        cost = f", {job['cost']:,.2f} at the given price" if "cost" in job else ""
        lines += [
            "",
            f"{job['images']:,} images ({job['task']}, batch {job['batch']}): {job['chip_hours']:,.4g} "
            f"chip-hours{cost}.",
        ]
    for each in record.get("measured", ()):
        lines += ["", _against(each)]
    lines += ["", "## Time by kind of operation", ""]
    lines += _table(
        ("task", "batch", *KINDS),
        (
            [row["task"], str(case["batch"]), *(_share(row, kind) for kind in KINDS)]
            for case, row in rows_of(record)
            if "seconds" in row
        ),
    )
    for entry in record["cases"]:
        lines += ["", f"## Programs, batch {entry['case']['batch']}", ""]
        heads = ("task", "program", "runs", "TFLOP", "ms", "compile s", "beside the weights GB")
        lines += _table(heads, map(_program, entry["programs"]))
    return "\n".join(lines) + "\n"


def _chip(machine: Mapping[str, Any]) -> str:
    parts = [machine["device"].partition(": ")[2], f"{machine['memory_gigabytes']:g} GB"]
    parts += [f"{machine['bandwidth_gigabytes']:,.0f} GB/s"]
    if machine["peak_tflops"]:
        parts.append(f"at most {machine['peak_tflops']:,.4g} TFLOP/s")
    if machine["clock_gigahertz"]:
        parts.append(f"{machine['clock_gigahertz']:.3g} GHz")
    return ", ".join(parts)


def _notes(machine: Mapping[str, Any]) -> list[str]:
    if machine["clock_gigahertz"] is None:
        return [
            "A roofline: every operation takes as long as its products at the chip's peak, or its bytes at the "
            "memory's rate, whichever is longer. Operations are exact; bytes are modelled (all that lies element by "
            "element between products is fused). No chip reaches this: nothing is added for launches, shapes that "
            "fill the units badly, or what the compiler does not fuse. Memory is left out, since nothing is compiled."
        ]
    return [
        "Times are the TPU compiler's own cycles at the chip's clock, with the turns of every loop. A kernel has "
        "none: it is reckoned by its products, with heads rounded up to 128 lanes, its softmax on the vector unit, "
        "and its bytes. Copies that run beside the computation, the host and transfers are not counted. Memory is "
        "all weights and what the largest program needs beside them, by the compiler."
    ]


def _figures(case: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    memory = row.get("memory")
    exchanged = row.get("collectives")
    return [
        row["task"],
        str(case["batch"]),
        _number(row, "images_per_second"),
        _number(row, "images_per_second_per_chip"),
        _number(row, "evaluations_per_second_per_chip"),
        f"{row['tflop_per_image']:.4g}",
        f"{row['share_of_peak']:.1%}" if "share_of_peak" in row else "–",
        f"{memory['gigabytes']:.2f}" if memory else "–",
        f"{memory['share']:.0%}" if memory else "–",
        "–" if exchanged is None else ", ".join(exchanged) or "none",
    ]


def _number(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:.4g}" if key in row else "–"


def _share(row: Mapping[str, Any], kind: str) -> str:
    seconds = row["seconds_by_kind"].get(kind)
    return "–" if seconds is None else f"{seconds / row['seconds']:.0%}"


def _program(each: Mapping[str, Any]) -> list[str]:
    seconds = each.get("seconds")
    return [
        each["task"],
        each["program"],
        str(each["calls"]),
        f"{each['tflop']:.4g}",
        "–" if seconds is None else f"{1000 * sum(seconds.values()):.4g}",
        f"{each['compile_seconds']:.0f}" if "compile_seconds" in each else "–",
        f"{each['held'] / 1e9:.2f}" if "held" in each else "–",
    ]


def _against(each: Mapping[str, Any]) -> str:
    return (
        f"Measured ({each['source']}: {each['work']}): {each['measured']:.4g} images/s; "
        f"estimate ÷ measured = {each['ratio']:.2f}."
    )


def _table(heads: Sequence[str], rows: Any) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
