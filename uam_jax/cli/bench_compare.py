"""The work of `uam bench compare`: records side by side, with ratios to the first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uam_jax.cli.bench_tables import FORMAT, RESULT, gigabytes_text, measured_rows, table_line
from uam_jax.errors import InputError
from uam_jax.files import read_json
from uam_jax.io.storage import write_bytes


def run_compare(files: Sequence[str], out: str | None) -> dict[str, Any]:
    """Compares measurements: first their ratios to the first column, then the figures.

    Args:
      files: `bench.json` files, or the folders that hold them.
      out: a file for the table, as Markdown.

    Returns:
      The summary: the columns' names, and for each work the ratios of images per second.

    Raises:
      InputError: a file is not a record of `uam bench`, or no two records measured the same work.
    """
    records = [_read(file) for file in files]
    by_work: dict[str, dict[str, Any]] = {}
    columns: dict[str, str] = {}
    for label, record in zip(_labels(files), records, strict=True):
        for row in measured_rows([record]):
            column = f"{label}: {row['setup']}" if len(files) > 1 else row["setup"]
            columns[column] = row["machine"]
            by_work.setdefault(f"{row['task']}, {row['work']}", {})[column] = row
    shared = {work: found for work, found in by_work.items() if len(found) > 1}
    if not shared:
        raise InputError(
            "nothing to compare: no work (model, settings, task, size, batch, steps, targets) "
            "was measured in more than one setup"
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


def _comparison(shared: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    names = list(columns)
    lines = [f"{i}. {name}: {columns[name]}" for i, name in enumerate(names, start=1)]
    numbers = [str(i + 1) for i in range(len(names))]
    heads = [table_line(["work", *numbers]), table_line(["---"] * (len(names) + 1))]
    for title, show in (
        ("Images/s, as a multiple of the first column that has the work", _ratio_text),
        ("Images/s", lambda found, names, name: f"{found[name]['images_per_second']:.4g}"),
        (
            "Seconds of compilation, of programs that no earlier task of the case had compiled",
            lambda found, names, name: f"{found[name]['compile_seconds']:.1f}",
        ),
        ("Memory, GB", lambda found, names, name: gigabytes_text(found[name])),
    ):
        lines += ["", f"## {title}", "", *heads]
        for work, found in shared.items():
            cells = [show(found, names, name) if name in found else "–" for name in names]
            lines.append(table_line([work, *cells]))
    return "\n".join(lines) + "\n"


def _ratio(found: Mapping[str, Any], names: Sequence[str], name: str) -> float:
    first = next(found[each] for each in names if each in found)
    return found[name]["images_per_second"] / first["images_per_second"]


def _ratio_text(found: Mapping[str, Any], names: Sequence[str], name: str) -> str:
    return f"{_ratio(found, names, name):.2f}"


def _labels(files: Sequence[str]) -> list[str]:
    """Names each record by its folder or file, and by its whole path where two have the same name."""
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
