"""Records of `uam bench` as rows, a Markdown table and plots."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uam_jax.errors import InputError
from uam_jax.evaluation.forecast_report import RESULT as PLAN
from uam_jax.evaluation.plots import curves
from uam_jax.evaluation.speed import TASKS
from uam_jax.files import read_json

FORMAT = 1
"""Version of the record's format."""
RESULT = "bench.json"
"""Name of the record's file."""


def setup_name(case: Mapping[str, Any]) -> str:
    """Names the device and the precision of a case, for a column or a message."""
    parts = [case["device"] or "default device", case["dtype"]]
    parts += [f"{case['devices']} devices"] if case["devices"] > 1 else []
    parts += [f"attention {case['attention']}"] if case["attention"] != "auto" else []
    parts += [f"precision {case['precision']}"] if case["precision"] else []
    return ", ".join(parts)


def work_name(case: Mapping[str, Any], model: Mapping[str, Any] | None = None) -> str:
    """Names the work of a case, for a row or a message: model, size, batch, steps and targets.

    Args:
      case: the case, as a dictionary.
      model: the measured model, if there is one; its size, steps and settings are then exact.
    """
    name = case["shape"] or case["model"]
    size = model["size"] if model else case["size"]
    steps = model["steps"] if model else case["steps"]
    parts = [str(name)]
    parts += [f"{size}x{size}"] if size else []
    parts += [f"batch {case['batch']}"]
    parts += [f"{steps} steps"] if steps else []
    parts += [f"{case['targets']} targets"] if case["targets"] > 1 else []
    # The hash of the settings is part of the name, because two files of settings may have the same name.
    parts += [f"{case['config'] or 'own settings'} {model['config'][:6]}"] if model else []
    return ", ".join(parts)


def measured_rows(records: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yields the row of every measured or estimated task, with its case, setup, work and machine."""
    for record in records:
        mark = ", estimated" if record.get("estimated") else ""
        for each in record["cases"]:
            if "refused" in each:
                continue
            case, machine = each["case"], each["machine"]
            resolved = {**case, "device": machine["device"].partition(":")[0]}
            for row in each["rows"]:
                if "images_per_second" not in row:  # of a plan, where something does not compile
                    continue
                yield {
                    **row,
                    "case": case,
                    "setup": setup_name(resolved) + mark,
                    "work": work_name(case, each["model"]),
                    "machine": _machine(machine),
                    "weights": each["model"]["weights"],
                    "edits": each.get("edits") if row["task"] == "edit" else None,
                    "device": machine["device"],
                    "model": each["model"],
                }


def _machine(machine: Mapping[str, Any]) -> str:
    host, versions = machine["host"], machine["versions"]
    peak = f", at most {machine['peak_tflops']:.4g} TFLOP/s" if machine["peak_tflops"] else ""
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"{machine['device']}{peak} ({host['processor']}, {host['cores']} cores, {host['system']}); "
        f"Python {host['python']}, {packages}"
    )


def as_files(record: Mapping[str, Any]) -> dict[str, bytes]:
    """Makes all files of a record, by name: the record itself, its table, and a plot for each task."""
    files = {RESULT: json.dumps(record, indent=1).encode(), "bench.md": _table(record).encode()}
    for task in TASKS:
        lines: dict[str, dict[float, Sequence[Any]]] = {}
        for row in measured_rows([record]):
            if row["task"] == task:
                case, seconds = row["case"], row["seconds"]
                rates = [row["images"] / seconds[part] for part in ("median", "high", "low")]
                varied = [f"{case[key]} {key}" for key in ("size", "steps") if case[key]]
                varied += [f"{case['targets']} targets"] if case["targets"] > 1 else []
                name = ", ".join((row["setup"], *varied))
                lines.setdefault(name, {})[case["batch"]] = rates
        if any(len(points) > 1 for points in lines.values()):
            files[f"{task}.png"] = curves(
                lines,
                title=f"{task}: throughput (median, quartiles)",
                x="pictures per device at a time",
                y="images/s",
                log=True,
            )
    return files


_HEADINGS = (
    "task", "setup", "work", "images/s", "ms/image [quartiles]", "compile s", "first s", "evaluations",
    "TFLOP/s per device", "of peak", "of a large matrix product", "memory GB",
)  # fmt: skip


def _table(record: Mapping[str, Any]) -> str:
    machines = dict.fromkeys(
        _machine(each["machine"]) for each in record["cases"] if "refused" not in each
    )
    lines = [f"Measured {record['date']} by `uam bench`, each case in its own process, on:", ""]
    lines += [f"- {machine}" for machine in machines]
    lines += ["", table_line(_HEADINGS), table_line(["---"] * len(_HEADINGS))]
    for row in measured_rows([record]):
        low, median, high = (
            1000 * row["seconds"][part] / row["images"] for part in ("low", "median", "high")
        )
        rate, share = row.get("tflops_per_device"), row.get("share_of_peak")
        reached = row.get("share_of_product")
        lines.append(
            table_line(
                [
                    row["task"],
                    row["setup"],
                    row["work"],
                    f"{row['images_per_second']:.4g}",
                    f"{median:.4g} [{low:.4g}, {high:.4g}]",
                    f"{row['compile_seconds']:.1f}",
                    f"{row['first_seconds']:.2f}",
                    f"{row['evaluations']:g}" if rate else "–",
                    f"{rate:.3g}" if rate else "–",
                    f"{share:.1%}" if share else "–",
                    f"{reached:.0%}" if reached else "–",
                    gigabytes_text(row),
                ]
            )
        )
    kinds = dict.fromkeys(row["memory"]["of"] for row in measured_rows([record]))
    if kinds:
        lines += [
            "",
            "Compilation counts only programs that no earlier task of the same case had compiled. In TFLOP/s, all "
            f"virtual devices of a CPU count as one. Memory is the largest amount held by {' or '.join(kinds)}.",
        ]
    for each in record["cases"]:
        if "refused" in each:
            lines += [
                "",
                f"Not measured: {setup_name(each['case'])}, {work_name(each['case'])}: {each['refused']}",
            ]
    return "\n".join(lines) + "\n"


def gigabytes_text(row: Mapping[str, Any]) -> str:
    """The memory of a row in GB, or a dash where it is not known."""
    held = row.get("memory", {}).get("gigabytes")
    return "–" if held is None else f"{held:.2f}"


def compile_text(row: Mapping[str, Any]) -> str:
    """The seconds of compilation of a row, or a dash where nothing was compiled on the machine itself."""
    seconds = row.get("compile_seconds")
    return "–" if seconds is None else f"{seconds:.1f}"


def read_record(file: str) -> dict[str, Any]:
    """Reads a record of `uam bench` or `uam plan`, named by its file or its folder.

    Raises:
      InputError: it is none.
    """
    path = record_file(file)
    record = read_json(path)
    if record.get("format") != FORMAT or "cases" not in record:
        raise InputError(f"{path}: not a record of `uam bench` or `uam plan` (format {FORMAT})")
    return record


def record_file(file: str) -> Path:
    """The file of a record that is named by its file or its folder."""
    path = Path(file)
    if not path.is_dir():
        return path
    return next((path / name for name in (RESULT, PLAN) if (path / name).exists()), path / RESULT)


def table_line(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
