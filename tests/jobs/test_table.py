"""One schema for the rows of all jobs."""

import io

import pyarrow
import pyarrow.parquet

from uam_jax.jobs.table import COUNTS, FLAGS, NUMBERS, TEXTS, to_parquet


def table(*rows: dict[str, object]) -> pyarrow.Table:
    return pyarrow.parquet.read_table(io.BytesIO(to_parquet(rows)))


def test_tables_of_any_jobs_can_be_put_together() -> None:
    failed = dict.fromkeys((*TEXTS, *NUMBERS, *COUNTS, *FLAGS)) | {"id": "a", "status": "failed"}
    good = failed | {
        "id": "b",
        "status": "ok",
        "confidence": 1,
        "seconds": 0.5,
        "batch": 4,
        "halved": False,
    }
    tables = [
        table(failed),
        table(good),
        table(),
        table({"id": "c", "status": "ok", "mask": "c.png"}),
    ]
    together = pyarrow.concat_tables(tables)
    assert together["id"].to_pylist() == ["a", "b", "c"]
    assert together["confidence"].to_pylist() == [None, 1.0, None]
    assert together["batch"].to_pylist() == [None, 4, None]


def test_other_keys_follow() -> None:
    rows = [{"id": "a", "n": 1, "what": [1], "odd": None}, {"id": "b", "n": 2.5, "what": "é\udce9"}]
    found = table(*rows)
    assert found.column_names[-3:] == ["n", "what", "odd"]
    assert found["n"].to_pylist() == [1.0, 2.5] and found["what"].to_pylist() == ["[1]", "é\\udce9"]
