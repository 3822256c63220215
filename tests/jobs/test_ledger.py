"""The ledger survives whatever kills its writer, and merging is repeatable."""

import json
import uuid
from pathlib import Path

import pyarrow.parquet
import pytest

from uam_jax import InputError
from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import Ledger, merge, read_rows


def row(name: str, status: str = "ok", **more: object) -> dict[str, object]:
    return {"id": name, "status": status, "reason": None, "mask_share": 0.25, **more}


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(str(tmp_path))
    return Folder(f"memory://{uuid.uuid4().hex}")


def test_rows_of_all_processes_and_runs(folder: Folder) -> None:
    Ledger(folder).add([row("a"), row("b", "failed", reason="no")])
    Ledger(folder, (0, 2)).add([row("c")])
    Ledger(folder, (1, 2)).add([row("b", note="later")])
    again = Ledger(folder, (1, 2))
    again.add([row("d")])
    again.add([row("e")])
    found = read_rows(folder)
    assert sorted(found) == list("abcde")
    assert found["b"]["status"] == "ok" and found["b"]["note"] == "later"


def test_an_ok_row_is_not_lost_to_a_later_failure(folder: Folder) -> None:
    Ledger(folder).add([row("a"), row("a", "failed")])
    assert read_rows(folder)["a"]["status"] == "ok"


def test_merging_twice_is_merging_once(folder: Folder) -> None:
    Ledger(folder, (1, 2)).add([row("b"), row("c", "failed", reason="x")])
    Ledger(folder, (0, 2)).add([row("a"), row("b")])
    rows = merge(folder, ["c", "b", "a", "missing"])
    assert [each["id"] for each in rows] == ["c", "b", "a"]
    first = {name: folder.read(name) for name in ("results.jsonl", "results.parquet")}
    assert merge(folder, ["c", "b", "a", "missing"]) == rows
    assert first == {name: folder.read(name) for name in first}
    Ledger(folder, (0, 2)).add([row("missing")])  # a process that is still running
    assert len(merge(folder, ["c", "b", "a", "missing"])) == 4


def test_a_ledger_that_may_still_grow_is_left_alone(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with Ledger(folder) as ledger:
        ledger.add([row("b", "failed", reason="x"), row("a"), row("b")])
        before = folder.read("results.jsonl")
        assert [each["id"] for each in merge(folder, ["a", "b"])] == ["a", "b"]
        assert folder.read("results.jsonl") == before and folder.read("results.parquet")
    merge(folder, ["a", "b"])
    assert len((folder.read("results.jsonl") or b"").splitlines()) == 2


def test_a_part_is_one_processs(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with Ledger(folder), Ledger(folder, (0, 2)), Ledger(folder, (1, 2)):
        with pytest.raises(InputError, match="another process is at work.*--shard I/N"):
            Ledger(folder).__enter__()
        with pytest.raises(InputError, match="another process with the same --shard is at work"):
            Ledger(folder, (1, 2)).__enter__()
    with Ledger(folder) as ledger:
        ledger.add([row("a")])


def test_where_nothing_can_be_locked_two_processes_lose_no_rows() -> None:
    folder = Folder(f"memory://{uuid.uuid4().hex}")
    with Ledger(folder) as first, Ledger(folder) as second:
        for name in "abc":
            first.add([row(name)])
            second.add([row(name.upper())])
    assert sorted(read_rows(folder)) == list("ABCabc")


def test_the_table_has_a_column_per_key(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    Ledger(folder).add([row("a"), row("b", "failed", reason="é", confidence=0.5)])
    merge(folder, ["a", "b"])
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert [each["reason"] for each in table] == [None, "é"]
    assert [each["confidence"] for each in table] == [None, 0.5]


def test_a_name_that_is_no_unicode_ends_no_merge(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    Ledger(folder).add([row("a", image="caf\udce9.png")])
    assert merge(folder, ["a"])[0]["image"] == "caf\udce9.png"
    assert "udce9" in str(pyarrow.parquet.read_table(tmp_path / "results.parquet")["image"])


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_an_unfinished_line_never_was(tmp_path: Path, cut: int) -> None:
    folder = Folder(str(tmp_path))
    Ledger(folder).add([row("a"), row("b")])
    whole = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(whole[:-cut])
    assert sorted(read_rows(folder)) == ["a"]
    with Ledger(folder) as ledger:
        ledger.add([row("c")])
    assert sorted(read_rows(folder)) == ["a", "c"]


@pytest.mark.parametrize("line", [b"{}\n", b"x\n", b"[]\n", b'{"id": 3, "status": "ok"}\n'])
def test_a_line_of_something_else_is_reported(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "results.jsonl").write_bytes(line)
    with pytest.raises(InputError, match=r"results.jsonl line 1 is no ledger line"):
        read_rows(Folder(str(tmp_path)))


def test_no_secret_is_kept(folder: Folder) -> None:
    """Neither of rows that are written, nor of those that an older version wrote."""
    signed = "https://me:pw@host/a.png?X-Amz-Signature=9f"
    rows = [row("a", image=signed, given_mask=signed), row("b", "failed", reason=f"{signed}: no")]
    with Ledger(folder) as ledger:
        ledger.add(rows)
    folder.write("results.1-of-2.jsonl", json.dumps(row("c", image=signed)).encode() + b"\n")
    found = merge(folder, ["a", "b", "c"])
    assert [each.get("image") for each in found] == [
        "https://host/a.png",
        None,
        "https://host/a.png",
    ]
    assert found[1]["reason"] == "https://host/a.png: no"
    for name in ("results.jsonl", "results.parquet"):
        content = folder.read(name) or b""
        assert b"pw@" not in content and b"9f" not in content
