"""The work of `uam bench compare`: records side by side, with ratios to the first."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uam_jax.cli.bench_agreement import Agreements, compare_edits
from uam_jax.cli.bench_tables import (
    RESULT,
    compile_text,
    gigabytes_text,
    measured_rows,
    read_record,
    record_file,
    table_line,
)
from uam_jax.errors import InputError
from uam_jax.evaluation.forecast_report import RESULT as PLAN
from uam_jax.io.storage import write_bytes

_ByWork = Mapping[str, Mapping[str, Any]]
"""For each work its row, or something made of it, in each column that has one."""


def run_compare(files: Sequence[str], out: str | None) -> dict[str, Any]:
    """Compares measurements: ratios to the first column, agreement of the edits with its edits, then the figures.

    Args:
      files: `bench.json` or `plan.json` files, or the folders that hold them; a plan's columns say that they are
        estimated.
      out: a file for the table, as Markdown.

    Returns:
      The summary: the columns' names, for each work the ratios of images per second and the agreement of the edits,
      and why some edits could not be compared.

    Raises:
      InputError: a file is not a record of `uam bench`, or no two records measured the same work.
    """
    by_work: dict[str, dict[str, Any]] = {}
    columns: dict[str, str] = {}
    for label, file in zip(_labels(files), files, strict=True):
        for row in measured_rows([read_record(file)]):
            column = f"{label}: {row['setup']}" if len(files) > 1 else row["setup"]
            columns[column] = row["machine"]
            row["folder"] = record_file(file).parent
            by_work.setdefault(f"{row['task']}, {row['work']}", {})[column] = row
    shared = {work: found for work, found in by_work.items() if len(found) > 1}
    if not shared:
        raise InputError(
            "nothing to compare: no work (model, settings, task, size, batch, steps, targets) "
            "was measured in more than one setup"
        )
    names = list(columns)
    ratios = {work: _ratios(found, names) for work, found in shared.items()}
    edits = compare_edits(shared, names)
    if out:
        write_bytes(out, _comparison(shared, ratios, edits, columns).encode())
    optional = {
        "psnr_of_edits": _numbered(edits.psnr, names),
        "overlap_of_masks": _numbered(edits.overlap, names),
        "notes_on_edits": edits.notes,
        "table": out,
    }
    return {
        "command": "bench compare",
        "columns": [{"column": i + 1, "what": name} for i, name in enumerate(names)],
        "images_per_second": _numbered(ratios, names),
        **{name: value for name, value in optional.items() if value},
    }


def _numbered(by_work: _ByWork, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a summary, whose columns are numbers."""
    return [
        {"work": work, **{f"{i}": found.get(name) for i, name in enumerate(names, start=1)}}
        for work, found in by_work.items()
    ]


def _comparison(
    shared: _ByWork, ratios: _ByWork, edits: Agreements, columns: Mapping[str, str]
) -> str:
    names = list(columns)
    lines = [f"{i}. {name}: {columns[name]}" for i, name in enumerate(names, start=1)]

    def table(title: str, by_work: _ByWork, show: Callable[[Any], str]) -> None:
        heads = ["work", *(str(i + 1) for i in range(len(names)))]
        lines.extend(["", f"## {title}", "", table_line(heads), table_line(["---"] * len(heads))])
        for work, found in by_work.items():
            cells = ["–" if found.get(name) is None else show(found[name]) for name in names]
            lines.append(table_line([work, *cells]))

    table("Images/s, as a multiple of the first column that has the work", ratios, "{:.2f}".format)
    if edits.psnr:
        against = "against the first column that has them"
        table(f"PSNR of the same edits in dB, {against}", edits.psnr, "{:.1f}".format)
        table(f"Overlap of their masks (IoU), {against}", edits.overlap, "{:.3f}".format)
        lines.extend(["", *(f"- {note}" for note in edits.notes)] if edits.notes else [])
    table("Images/s", shared, lambda row: f"{row['images_per_second']:.4g}")
    table(
        "Seconds of compilation, of programs that no earlier task of the case had compiled",
        shared,
        compile_text,
    )
    table("Memory, GB", shared, gigabytes_text)
    return "\n".join(lines) + "\n"


def _ratios(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    first = next(found[name] for name in names if name in found)
    return {
        name: row["images_per_second"] / first["images_per_second"] for name, row in found.items()
    }


def _labels(files: Sequence[str]) -> list[str]:
    """Names each record by its folder or file, and by its whole path where two have the same name."""
    paths = [
        Path(file).parent if Path(file).name in (RESULT, PLAN) else Path(file) for file in files
    ]
    names = [path.resolve().name.removesuffix(".json") for path in paths]
    return [
        name if names.count(name) == 1 else file for name, file in zip(names, files, strict=True)
    ]
