"""Manifests: what is understood, and what is refused before anything is written."""

import json
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uam_jax import InputError
from uam_jax.manifest import Item, checked, read_folder, read_manifest

ROWS = [
    {"image": "a/x.png", "target": "a cube"},
    {"image": "/abs/y.png", "target": ["a ball", "a ring"], "source": "a cone", "mask": "m.png"},
    {"image": "memory://far/z.png", "target": "a star", "id": "own", "set": {"guidance": 3}},
]


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_lines_become_items(tmp_path: Path) -> None:
    first, second, third = read_manifest(write(tmp_path / "m.jsonl", ROWS))
    assert first == Item("a/x", f"{tmp_path}/a/x.png", ("a cube",))
    assert second.id == "y" and second.results == ("y-1", "y-2")
    assert (second.image, second.mask) == ("/abs/y.png", f"{tmp_path}/m.png")
    assert second.source == "a cone"
    assert third == Item("own", "memory://far/z.png", ("a star",), settings=("guidance=3",))


def test_a_table_says_the_same_as_lines(tmp_path: Path) -> None:
    rows = [dict.fromkeys(["image", "source", "id", "mask"]) | row for row in ROWS]
    rows = [{**row, "target": list(_listed(row["target"])), "set": row.get("set")} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "m.parquet")
    table = read_manifest(str(tmp_path / "m.parquet"))
    assert table == read_manifest(write(tmp_path / "m.jsonl", ROWS))


def test_a_remote_manifest_finds_its_neighbours() -> None:
    with fsspec.open("memory://set/m.jsonl", "wb") as file:
        file.write(b'{"image": "x.png", "target": "a cube"}\n')
    [item] = read_manifest("memory://set/m.jsonl")
    assert item.image == "memory://set/x.png" and item.id == "x"


FAULTS = {
    "{": "line 1: not JSON",
    "[]": "not a JSON object",
    '{"target": "a"}': "no `image`",
    '{"image": "a.png"}': "no `target`",
    '{"image": "a.png", "target": " "}': "no `target`",
    '{"image": "a.png", "target": ["a", ""]}': "no `target`",
    '{"image": "a.png", "target": "a", "prompt": "b"}': "unknown key prompt; known are id, image",
    '{"image": 3, "target": "a"}': "image is 3: text is needed",
    '{"image": "a.png", "target": 5}': "line 1: no `target`",
    '{"image": "a.png", "target": {"x": 1}}': "line 1: no `target`",
    '{"image": "a.png", "target": "a", "id": ' + "9" * 5000 + "}": "line 1: not JSON",
    '{"image": "a.png", "target": "a", "id": "\\ud800"}': "no Unicode",
    json.dumps({"image": "a.png", "target": "a", "id": "/".join(["a" * 190] * 30)}): "1000 bytes",
    '{"image": "a.png", "target": "a"}\n{"image": "b", "target": "b", "id": "a.png/b"}': "lies below",
    '{"image": "a.png", "target": "a"}\n{"image": "a.jpg", "target": ["b", "c"]}': "both be 'a'",
    '{"image": "a.png", "target": "a", "set": 3}': "set is 3",
    "": "has no lines",
    '{"image": "a.png", "target": "a", "id": "../../etc/x"}': "must be a relative path",
    '{"image": "a.png", "target": "a", "id": "/etc/x"}': "must be a relative path",
    '{"image": "a.png", "target": "a", "id": ""}': "must be a relative path",
    '{"image": "a.png", "target": "a", "id": "C:\\\\x"}': "backslashes, colons",
    '{"image": "a.png", "target": "a", "id": "a\\u0000b"}': "control characters",
    '{"image": "a.png", "target": "a", "id": ".uam-x"}': "start with",
    json.dumps({"image": "a.png", "target": "a", "id": "a" * 300}): "more than 200 bytes",
    '{"image": "a.png", "target": "a"}\n{"image": "a.jpg", "target": "b"}': "would both be 'a'",
    '{"image": "a.png", "target": "a", "id": "É"}\n{"image": "b.png", "target": "b", "id": "é"}': "both be",
    '{"image": "a.png", "target": ["a", "b"]}\n{"image": "a-1.png", "target": "b"}': "both be 'a-1'",
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_are_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(InputError, match=FAULTS[text]):
        read_manifest(str(tmp_path / "m.jsonl"))


@pytest.mark.parametrize("key", ["target", "source"])
def test_half_a_character_is_no_prompt(key: str, tmp_path: Path) -> None:
    row = {"image": "x.png", "target": "a shoe", key: "a red shoe \ud83d"}
    with pytest.raises(InputError, match="line 1.*no valid Unicode text"):
        read_manifest(write(tmp_path / "m.jsonl", [row]))


def test_many_faults_are_a_short_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: .* and 95 more$"):
        read_manifest(write(tmp_path / "m.jsonl", [{"image": "a.png"}] * 100))


@pytest.mark.parametrize(("name", "content"), [("m.parquet", b"PAR1 no"), ("m.jsonl", b"\xff\xfe")])
def test_files_of_another_kind_are_told(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="not a Parquet file|not UTF-8 text"):
        read_manifest(str(tmp_path / name))


def test_a_folder_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "sub/a.webp", "sub/a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    items = read_folder(str(tmp_path), ["a cube"], source="a ball")
    assert [item.id for item in items] == ["a", "b", "sub/a.png", "sub/a.webp"]
    assert items[0].image == f"{tmp_path}/a.jpg" and items[0].source == "a ball"


def test_results_inside_the_folder_do_not_come_back(tmp_path: Path) -> None:
    for name in ("a.png", "results/images/a.png", "results2/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    items = read_folder(str(tmp_path), ["a cube"], besides=f"{tmp_path}/results")
    assert [item.id for item in items] == ["a", "results2/b"]


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pictures"):
        read_folder(str(tmp_path), ["a cube"])


@given(st.text(min_size=1, max_size=40))
def test_no_id_leaves_the_folder(name: str) -> None:
    try:
        checked([Item(name, "a.png", ("a",))], "m")
    except InputError:
        return
    assert not name.startswith("/") and ".." not in name.split("/") and "\\" not in name
    assert Path("/out/images", name).resolve().is_relative_to("/out/images")


def _listed(target: object) -> list[object]:
    return [target] if isinstance(target, str) else list(target)  # pyright: ignore
