"""The work of `uam plan`: the record of all cases, written after each, and the summary."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from uam_jax.cli.bench_tables import FORMAT, measured_rows, read_record
from uam_jax.cli.console import Console
from uam_jax.cli.plan import PlanOptions
from uam_jax.errors import InputError
from uam_jax.evaluation.chips import find_chip
from uam_jax.evaluation.forecast_report import RESULT, as_files, rows_of
from uam_jax.io.storage import Folder
from uam_jax.runtime import backend


def run_plan(options: PlanOptions, console: Console) -> dict[str, Any]:
    """Plans every case, and writes `plan.json`, `plan.md` and the plot after each.

    Returns:
      The summary: a row for each task and batch, the largest batch, the job's chip-hours, and the places of the files.

    Raises:
      InputError: an option is at fault, the TPU's compiler is missing, or nothing compiles.
    """
    cases, (chip, topology) = options.cases(), find_chip(options.target)
    measured = [(file, read_record(file)) for file in options.measured]
    folder = Folder(options.out)
    folder.check([RESULT])
    # Programs are only compiled: no device is looked for but the CPU.
    backend.configure(device="cpu", precision=options.precision)

    from uam_jax.evaluation.forecast import Target, fit, forecast, job_cost, largest_batch
    from uam_jax.evaluation.tpu_topology import absent_tpus

    target = Target(chip, topology, absent_tpus(topology) if topology else None)
    record: dict[str, Any] = {
        "format": FORMAT,
        "estimated": True,
        "date": datetime.now(UTC).date().isoformat(),
        "for": target.name,
        "cases": [],
    }

    def add(batch: int) -> None:
        case = target.resolved(replace(cases[0], batch=batch))
        outcome = forecast(
            case, target, folder, lambda text: console.stage(f"batch {batch}: {text}")
        )
        record["cases"].append({"case": asdict(case), **outcome})
        if options.images:
            record["jobs"] = [
                {
                    "task": row["task"],
                    "batch": case["batch"],
                    **job_cost(row, options.images, options.price),
                }
                for case, row in rows_of(record)
                if "seconds" in row
            ]
        record["measured"] = [found for each in measured for found in _against(record, *each)]

    def write() -> None:
        for name, content in as_files(record).items():
            folder.write(name, content)

    for case in cases:
        add(case.batch)
        if fits := largest_batch(record["cases"], target):
            record["fits"] = fits
        write()
    fits = record.get("fits", {"batch": 0})
    if options.verify and fits["batch"] and fits["batch"] not in [case.batch for case in cases]:
        add(fits["batch"])
        fits["compiled"] = fit(record["cases"][-1])
        write()
    refused = [reason for _, row in rows_of(record) for reason in row.get("refused", ())]
    if refused and not any("seconds" in row for _, row in rows_of(record)):
        raise InputError(f"nothing fits or compiles for {target.name}: {refused[0]}")
    return _summary(record, folder)


def _summary(record: Mapping[str, Any], folder: Folder) -> dict[str, Any]:
    shown = []
    for case, row in rows_of(record):
        memory = row.get("memory", {})
        shown.append(
            {
                "task": row["task"],
                "batch": case["batch"],
                "images_per_second": row.get("images_per_second"),
                "per_chip": row.get("images_per_second_per_chip"),
                "share_of_peak": row.get("share_of_peak"),
                "memory_GB": memory.get("gigabytes"),
                "collectives": sum(row.get("collectives", {}).values())
                if "collectives" in row
                else None,
            }
        )
    return {
        "command": "plan",
        "for": record["for"],
        "figures": "estimated, not measured",
        "rows": shown,
        **({"largest_batch": record["fits"]["batch"]} if "fits" in record else {}),
        **({"jobs": record["jobs"]} if "jobs" in record else {}),
        **({"estimate_over_measured": record["measured"]} if record["measured"] else {}),
        "table": folder.path("plan.md"),
        "json": folder.path(RESULT),
    }


def _against(
    plan: Mapping[str, Any], file: str, record: Mapping[str, Any]
) -> Sequence[Mapping[str, Any]]:
    """The plan's images/s over those that were measured for the same work on the same kind of device."""
    found = []
    for row in measured_rows([record]):
        for entry in plan["cases"]:
            kind = entry["machine"]["device"]
            for own in entry["rows"]:
                if "seconds" in own and _work(entry, own, kind) == _work(row, row, row["device"]):
                    rate = row["images_per_second"]
                    found.append(
                        {
                            "source": Path(file).name,
                            "work": f"{row['task']}, {row['work']}",
                            "batch": row["case"]["batch"],
                            "estimated": own["images_per_second"],
                            "measured": rate,
                            "ratio": own["images_per_second"] / rate,
                        }
                    )
    return found


def _work(entry: Mapping[str, Any], row: Mapping[str, Any], device: str) -> tuple[Any, ...]:
    """All that decides how fast a work is, besides the software."""
    case, model = entry["case"], entry["model"]
    same = [case[key] for key in ("batch", "targets", "devices", "dtype")]
    return row["task"], device, model["size"], model["steps"], model["config"], case["shape"], *same
