"""The table of a job's rows: one schema for all jobs, so that their tables can be put together."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

TEXTS = (
    "id", "item", "status", "reason", "image", "target", "source", "negative", "words", "given_mask", "output",
    "shown", "preview", "mask", "error", "review", "size", "crop", "figures", "worked_at", "config", "weights",
    "versions",
)  # fmt: skip
NUMBERS = ("confidence", "mask_share", "seconds")
COUNTS = ("batch",)
FLAGS = ("halved",)


def to_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as a table.

    Columns and their types are the same in every job, whatever its rows hold. A key that is not listed here gets a
    column after them: of numbers if all its values are numbers, else of texts, in which other values are JSON.
    """
    import pyarrow
    import pyarrow.parquet

    types = {name: pyarrow.string() for name in TEXTS}
    types |= {name: pyarrow.float64() for name in NUMBERS}
    types |= {name: pyarrow.int64() for name in COUNTS}
    types |= {name: pyarrow.bool_() for name in FLAGS}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row[name] for row in rows if row.get(name) is not None]
        numeric = values and all(type(value) in (int, float) for value in values)
        types.setdefault(name, pyarrow.float64() if numeric else pyarrow.string())
    columns = {
        name: pyarrow.array([_as_text(row.get(name), kind) for row in rows], kind)
        for name, kind in types.items()
    }
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def _as_text(value: Any, kind: Any) -> Any:
    """A value for a column of the kind: text for texts, where a file name's bytes that are no Unicode are escaped."""
    if value is None or str(kind) != "string":
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "backslashreplace").decode()
