"""`uam bench`: from options to cases, each measured in its own process; tables and plots of what came out."""

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from uam_jax.cli.console import Console
from uam_jax.errors import InputError
from uam_jax.evaluation.plots import curves
from uam_jax.evaluation.speed import MARK, TASKS, Case
from uam_jax.files import read_json
from uam_jax.io.storage import Folder, write_bytes
from uam_jax.method.config import EditConfig
from uam_jax.runtime.backend import Device

FORMAT = 1
RESULT = "bench.json"
_VARIED = ("device", "dtype", "attention", "devices", "size", "steps", "targets", "batch")
"""Options with several values, all combinations of which are measured; the last varies fastest."""
_SHOWN = ("task", "setup", "work", "images_per_second", "share_of_peak")
_DTYPES = ("float32", "bfloat16", "float16")
_ATTENTION = ("auto", "xla", "cudnn", "chunked")


@dataclass(frozen=True)
class BenchOptions:
    """The options of `uam bench`, which tells what each means; of those with several values all combinations run."""

    out: str
    model: str | None = None
    variant: str | None = None
    shape: str | None = None
    config: str | None = None
    overrides: tuple[str, ...] = ()
    precision: str | None = None
    device: tuple[str, ...] = ()
    devices: tuple[int, ...] = (1,)
    dtype: tuple[str, ...] = ("float32",)
    attention: tuple[str, ...] = ("auto",)
    size: tuple[int, ...] = ()
    batch: tuple[int, ...] = (1, 4)
    steps: tuple[int, ...] = ()
    targets: tuple[int, ...] = (1,)
    task: tuple[str, ...] = TASKS
    repeats: int = 5
    peak: float | None = None

    def cases(self) -> list[Case]:
        """Every combination.

        Raises:
          InputError: a value is none of those that there are.
        """
        if self.model and self.shape:
            raise InputError("--model and --shape both say what to run: give one")
        if self.variant and self.shape:
            raise InputError("--variant is of a model's files, and --shape has none: give one")
        _check("--device", self.device, get_args(Device))
        _check("--dtype", self.dtype, _DTYPES)
        _check("--attention", self.attention, _ATTENTION)
        _check("--task", self.task, TASKS)
        if self.shape:
            from uam_jax.models.configs import PUBLISHED

            _check("--shape", [self.shape], PUBLISHED)
        EditConfig.load(self.config or "default", self.overrides)
        base = Case(
            model=None if self.shape else self.model or "scenes",
            variant=self.variant,
            shape=self.shape,
            config=self.config,
            overrides=self.overrides,
            precision=self.precision,
            tasks=self.task,
            repeats=self.repeats,
            peak=self.peak,
        )
        values = itertools.product(*(getattr(self, name) or (None,) for name in _VARIED))
        return [replace(base, **dict(zip(_VARIED, each, strict=True))) for each in values]


def run_bench(options: BenchOptions, console: Console) -> dict[str, Any]:
    """Measures every case, and writes `bench.json`, `bench.md` and plots after each.

    A case that fails is a row with its reason; the others run.

    Raises:
      InputError: an option is at fault, or every case failed.
    """
    cases, folder = options.cases(), Folder(options.out)
    folder.check([RESULT])
    record: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.now(UTC).date().isoformat(),
        "cases": [],
    }
    for number, case in enumerate(cases, start=1):
        label = f"case {number} of {len(cases)}: {_setup(asdict(case))}, {_work(asdict(case))}"
        outcome = _measure_apart(case, lambda text, label=label: console.stage(f"{label}: {text}"))
        if reason := outcome.get("refused"):
            console.warn(f"{label}: {reason}")
        record["cases"].append({"case": asdict(case), **outcome})
        for name, content in _files(record).items():
            folder.write(name, content)
    rows = list(_rows([record]))
    if not rows:
        raise InputError(f"no case could be measured: {record['cases'][0]['refused']}")
    return {
        "command": "bench",
        "rows": [{key: row.get(key) for key in _SHOWN} for row in rows],
        "failed": sum("refused" in each for each in record["cases"]),
        "table": folder.path("bench.md"),
        "json": folder.path(RESULT),
    }


def run_compare(files: Sequence[str], out: str | None) -> dict[str, Any]:
    """Sets measurements side by side: ratios to the first, then figures.

    Args:
      files: `bench.json` files, or the folders that hold them.
      out: a file for the table, as Markdown.

    Raises:
      InputError: a file is no such record, or they have no work in common.
    """
    records = [_read(file) for file in files]
    by_work: dict[str, dict[str, Any]] = {}
    columns: dict[str, str] = {}
    for label, record in zip(_labels(files), records, strict=True):
        for row in _rows([record]):
            column = f"{label}: {row['setup']}" if len(files) > 1 else row["setup"]
            columns[column] = row["machine"]
            by_work.setdefault(f"{row['task']}, {row['work']}", {})[column] = row
    shared = {work: found for work, found in by_work.items() if len(found) > 1}
    if not shared:
        raise InputError(
            "nothing to compare: no work (model, settings, task, size, batch, steps, targets) "
            "was measured in more than one way"
        )
    text = _comparison(shared, columns)
    if out:
        write_bytes(out, text.encode())
    names = list(columns)
    return {
        "command": "bench compare",
        "columns": [{"column": i + 1, "what": name} for i, name in enumerate(names)],
        "images_per_second": [
            {
                "work": work,
                **{
                    f"{i + 1}": _ratio(found, names, name) if name in found else None
                    for i, name in enumerate(names)
                },
            }
            for work, found in shared.items()
        ],
        **({"table": out} if out else {}),
    }


def _check(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    for value in given:
        if value not in known:
            raise InputError(f"{option} {value}: choose {', '.join(known)}")


def _measure_apart(case: Case, say: Any) -> dict[str, Any]:
    """Runs `bench.measure` in a process of its own; what goes wrong there is `refused`, with its reason."""
    # Compilation is measured, so nothing that was compiled before is taken.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", "uam_jax.evaluation.speed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        encoding="utf-8",
        errors="replace",  # a library may say anything
    )
    assert process.stdin and process.stdout and process.stderr
    lines: list[str] = []

    def listen(stream: Iterable[str]) -> None:
        for line in stream:
            lines.append(line.rstrip())
            if line.startswith(MARK):
                say(lines[-1].removeprefix(MARK))

    listener = threading.Thread(target=listen, args=(process.stderr,))
    listener.start()
    try:
        with process.stdin as stdin:
            stdin.write(json.dumps(asdict(case)))
        said = process.stdout.read()
        code = process.wait()
    finally:
        process.kill()
        listener.join()
    if code == 0:
        return json.loads(said)
    reason = next((line for line in reversed(lines) if line.strip()), "no reason given")
    return {"refused": f"exit code {code}: {reason}"}


def _setup(case: Mapping[str, Any]) -> str:
    parts = [case["device"] or "default device", case["dtype"]]
    parts += [f"{case['devices']} devices"] if case["devices"] > 1 else []
    parts += [f"attention {case['attention']}"] if case["attention"] != "auto" else []
    parts += [f"precision {case['precision']}"] if case["precision"] else []
    return ", ".join(parts)


def _work(case: Mapping[str, Any], model: Mapping[str, Any] | None = None) -> str:
    name = case["shape"] or case["model"]
    size = model["size"] if model else case["size"]
    steps = model["steps"] if model else case["steps"]
    parts = [str(name)]
    parts += [f"{size}x{size}"] if size else []
    parts += [f"batch {case['batch']}"]
    parts += [f"{steps} steps"] if steps else []
    parts += [f"{case['targets']} targets"] if case["targets"] > 1 else []
    # Settings that differ make the work another, whatever they are called.
    parts += [f"{case['config'] or 'own settings'} {model['config'][:6]}"] if model else []
    return ", ".join(parts)


def _rows(records: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Every measured task, with what it was and where."""
    for record in records:
        for each in record["cases"]:
            if "refused" in each:
                continue
            case, machine = each["case"], each["machine"]
            resolved = {**case, "device": machine["device"].partition(":")[0]}
            for row in each["rows"]:
                yield {
                    **row,
                    "case": case,
                    "setup": _setup(resolved),
                    "work": _work(case, each["model"]),
                    "machine": _machine(machine),
                }


def _machine(machine: Mapping[str, Any]) -> str:
    host, versions = machine["host"], machine["versions"]
    peak = f", at most {machine['peak_tflops']:.4g} TFLOP/s" if machine["peak_tflops"] else ""
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"{machine['device']}{peak} ({host['processor']}, {host['cores']} cores, {host['system']}); "
        f"Python {host['python']}, {packages}"
    )


def _files(record: Mapping[str, Any]) -> dict[str, bytes]:
    files = {RESULT: json.dumps(record, indent=1).encode(), "bench.md": _table(record).encode()}
    for task in TASKS:
        lines: dict[str, dict[float, Sequence[Any]]] = {}
        for row in _rows([record]):
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
    lines += ["", _line(_HEADINGS), _line(["---"] * len(_HEADINGS))]
    for row in _rows([record]):
        low, median, high = (
            1000 * row["seconds"][part] / row["images"] for part in ("low", "median", "high")
        )
        rate, share = row.get("tflops_per_device"), row.get("share_of_peak")
        reached = row.get("share_of_product")
        lines.append(
            _line(
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
                    _gigabytes(row),
                ]
            )
        )
    kinds = dict.fromkeys(row["memory"]["of"] for row in _rows([record]))
    if kinds:
        lines += [
            "",
            "Compiled is what no task before had compiled in the same case. A CPU's virtual devices count as one in "
            f"TFLOP/s. Memory is the most that was held by {' or '.join(kinds)}.",
        ]
    for each in record["cases"]:
        if "refused" in each:
            lines += [
                "",
                f"Not measured: {_setup(each['case'])}, {_work(each['case'])}: {each['refused']}",
            ]
    return "\n".join(lines) + "\n"


def _comparison(shared: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    names = list(columns)
    lines = [f"{i}. {name}: {columns[name]}" for i, name in enumerate(names, start=1)]
    numbers = [str(i + 1) for i in range(len(names))]
    heads = [_line(["work", *numbers]), _line(["---"] * (len(names) + 1))]
    for title, show in (
        ("Images/s, as a multiple of the first column that has the work", _ratio_text),
        ("Images/s", lambda found, names, name: f"{found[name]['images_per_second']:.4g}"),
        (
            "Seconds of compilation, of what no task before it had compiled in its case",
            lambda found, names, name: f"{found[name]['compile_seconds']:.1f}",
        ),
        ("Memory, GB", lambda found, names, name: _gigabytes(found[name])),
    ):
        lines += ["", f"## {title}", "", *heads]
        for work, found in shared.items():
            cells = [show(found, names, name) if name in found else "–" for name in names]
            lines.append(_line([work, *cells]))
    return "\n".join(lines) + "\n"


def _ratio(found: Mapping[str, Any], names: Sequence[str], name: str) -> float:
    first = next(found[each] for each in names if each in found)
    return found[name]["images_per_second"] / first["images_per_second"]


def _ratio_text(found: Mapping[str, Any], names: Sequence[str], name: str) -> str:
    return f"{_ratio(found, names, name):.2f}"


def _gigabytes(row: Mapping[str, Any]) -> str:
    held = row["memory"]["gigabytes"]
    return "–" if held is None else f"{held:.2f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _labels(files: Sequence[str]) -> list[str]:
    """Each record's folder or file by its name, or as it was given where two have the same name."""
    paths = [Path(file).parent if Path(file).name == RESULT else Path(file) for file in files]
    names = [path.resolve().name.removesuffix(".json") for path in paths]
    return [
        name if names.count(name) == 1 else file for name, file in zip(names, files, strict=True)
    ]


def _read(file: str) -> dict[str, Any]:
    path = Path(file)
    path = path / RESULT if path.is_dir() else path
    record = read_json(path)
    if record.get("format") != FORMAT or "cases" not in record:
        raise InputError(f"{path}: not a record of `uam bench` (format {FORMAT})")
    return record
