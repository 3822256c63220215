"""Manifests: what is understood, and what is refused before anything is written."""

import json
import ntpath
import os
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uam_jax import EditConfig, InputError, files
from uam_jax.jobs import manifest
from uam_jax.jobs.manifest import Item, checked, read_folder, read_manifest
from uam_jax.method.controls import NoControl

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
    assert second.id.startswith("y~")  # it lies elsewhere, where another y.png may be
    assert second.results == (f"{second.id}-1", f"{second.id}-2")
    assert (second.image, second.mask) == ("/abs/y.png", f"{tmp_path}/m.png")
    assert second.source == "a cone"
    assert third == Item("own", "memory://far/z.png", ("a star",), settings=("guidance=3",))


def test_a_table_says_the_same_as_lines(tmp_path: Path) -> None:
    rows = [dict.fromkeys(["image", "source", "id", "mask"]) | row for row in ROWS]
    rows = [{**row, "target": list(_listed(row["target"])), "set": row.get("set")} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "m.parquet")
    table = read_manifest(str(tmp_path / "m.parquet"))
    assert table == read_manifest(write(tmp_path / "m.jsonl", ROWS))


def test_settings_keep_their_types_and_may_be_tables(tmp_path: Path) -> None:
    given = {
        "mask": {"quantile": 0.6, "rule": "auto"},
        "steps": 20,
        "control": "none",
        "mask.radius": 2,
    }
    [item] = read_manifest(
        write(tmp_path / "m.jsonl", [{"image": "a", "target": "x", "set": given}])
    )
    config = EditConfig().overridden(item.settings)
    assert (config.mask.quantile, config.mask.rule, config.mask.radius) == (0.6, "auto", 2)
    assert (config.steps, config.control) == (20, NoControl())


@pytest.mark.parametrize("value", ["20", "true", "0x10", 20.5, True, [20], "\u007f", "a\nb = 3"])
def test_a_value_of_another_type_is_none_of_the_right_one(value: object, tmp_path: Path) -> None:
    row = {"image": "a", "target": "x", "set": {"steps": value}}
    [item] = read_manifest(write(tmp_path / "m.jsonl", [row]))
    with pytest.raises(InputError, match=r"steps is .*; it must be an integer"):
        EditConfig().overridden(item.settings)


def test_nested_settings_of_a_table(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "target": "x", "set": {"mask": {"quantile": 0.6}}},
        {"image": "b.png", "target": "x", "set": {"mask": {"radius": 2}, "steps": 8}},
        {"image": "c.png", "target": "x", "set": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "m.parquet")
    assert [item.settings for item in read_manifest(str(tmp_path / "m.parquet"))] == [
        ("mask.quantile=0.6",),
        ("mask.radius=2", "steps=8"),
        (),
    ]
    kind = pyarrow.map_(pyarrow.string(), pyarrow.float64())
    table = {"image": ["a.png"], "target": ["x"], "set": pyarrow.array([[("guidance", 3.0)]], kind)}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "map.parquet")
    assert read_manifest(str(tmp_path / "map.parquet"))[0].settings == ("guidance=3.0",)


@pytest.mark.parametrize("index", ["__index_level_0__", "number", {"kind": "range"}])
def test_the_index_of_pandas_is_no_key(index: object, tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"image": ["a.png", "b.png"], "target": ["x", "y"]}
    if isinstance(index, str):
        columns[index] = [0, 2]
    plain = pyarrow.table(columns)
    metadata = {"pandas": json.dumps({"index_columns": [index, "gone"], "columns": []})}
    tables = [plain.replace_schema_metadata(metadata)]
    if index != "number":  # nothing says that this one is an index
        tables.append(plain)
    for table in tables:
        pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
        assert [item.id for item in read_manifest(str(tmp_path / "m.parquet"))] == ["a", "b"]


def test_an_index_of_pandas_that_is_the_id_counts(tmp_path: Path) -> None:
    table = pyarrow.table({"image": ["a.png"], "target": ["x"], "id": ["own"]})
    metadata = {"pandas": json.dumps({"index_columns": ["id"], "columns": []})}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "m.parquet")
    assert read_manifest(str(tmp_path / "m.parquet"))[0].id == "own"


@pytest.mark.parametrize("shape", ["struct", "bytes"])
def test_pictures_inside_a_table_are_refused_shortly(shape: str, tmp_path: Path) -> None:
    content = b"\x89PNG" * 100_000
    value = {"bytes": content, "path": "0.png"} if shape == "struct" else content
    table = pyarrow.table({"image": [value] * 2, "target": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(InputError, match="the column 'image' holds pictures") as caught:
        read_manifest(str(tmp_path / "m.parquet"))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("key", ["image", "source", "id", "mask", "set", "more"])
def test_a_message_is_short_whatever_a_line_holds(key: str, tmp_path: Path) -> None:
    row = {"image": "a", "target": "x", key: [{"x": "y" * 10**6}] * 10, "z" * 10**6: 0}
    for each in (row, {name: value for name, value in row.items() if len(name) < 10}):
        with pytest.raises(InputError) as caught:
            read_manifest(write(tmp_path / "m.jsonl", [each] * 10))
        assert len(str(caught.value)) < 2500


def test_paths_of_windows_are_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jpg").touch()
    (tmp_path / "odd\\name.jpg").touch()
    rows = [
        {"image": name, "target": "x"} for name in ("sub\\b.jpg", "odd\\name.jpg", "none\\c.jpg")
    ]
    found, odd, missing = read_manifest(write(tmp_path / "m.jsonl", rows))
    assert (found.id, found.image) == ("sub/b.jpg", f"{tmp_path}/sub/b.jpg")
    assert odd.image == f"{tmp_path}/odd\\name.jpg" and odd.id.startswith("odd_name~")
    assert missing.image == f"{tmp_path}/none\\c.jpg"


def test_paths_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (manifest, files):
        monkeypatch.setattr(module, "os", SimpleNamespace(path=ntpath, sep="\\"))
    monkeypatch.setattr(
        manifest,
        "read_bytes",
        lambda url: b"".join(
            json.dumps({"image": image, "target": "x"}).encode() + b"\n"
            for image in ("sub\\b.jpg", "C:\\data\\c.jpg", "D:\\far\\d.jpg", "CON.png")
        ),
    )
    inside, below, far, device = read_manifest("C:\\data\\m.jsonl")
    assert (inside.id, ntpath.normpath(inside.image)) == ("sub/b.jpg", "C:\\data\\sub\\b.jpg")
    assert (below.id, below.image) == ("c.jpg", "C:\\data\\c.jpg")
    assert far.id.startswith("d~") and far.image == "D:\\far\\d.jpg"
    assert device.id.startswith("CON~")


def test_pictures_elsewhere_have_ids_of_their_own(tmp_path: Path) -> None:
    names = ["/one/y.png", "/two/y.png", "../y.png", "y.png", f"{tmp_path}/d/in/z.png"]
    names += [f"https://h/{n}/y.png?X-Amz-Signature=9" for n in (1, 2)] + [
        "https://h/get?id=1",
        "https://h/get?id=2",
    ]
    (tmp_path / "d").mkdir()
    rows = [{"image": name, "target": "x"} for name in names]
    items = read_manifest(write(tmp_path / "d" / "m.jsonl", rows))
    ids = [item.id for item in items]
    assert len({*ids}) == len(names) and ids[3:5] == ["y", "in/z"]
    # Signed anew, in another order, with others gone: the same.
    rows = [{**row, "image": row["image"].replace("=9", "=8")} for row in rows[::-2]]
    again = read_manifest(write(tmp_path / "d" / "m.jsonl", rows))
    assert [item.id for item in again] == ids[::-2]


def test_a_manifest_behind_a_signed_url(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"image": ["x.png"], "target": ["x"]}), sink)
    url = "https://bucket/data/m.PARQUET?X-Amz-Credential=A/2026/s3&X-Amz-Signature=9f"
    asked: list[str] = []
    content = sink.getvalue().to_pybytes()
    monkeypatch.setattr(manifest, "read_bytes", lambda name: asked.append(name) or content)
    [item] = read_manifest(url)
    assert asked == [url] and item == Item("x", "https://bucket/data/x.png", ("x",))


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'\xef\xbb\xbf{"image": "x.png", "target": "x"}\r\n')
    assert read_manifest(str(tmp_path / "m.jsonl"))[0].id == "x"


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
    '{"image": "a.png", "target": "a"}\n{"image": "x", "id": "a", "target": ["b", "c"]}': "both be 'a'",
    '{"image": "a.png", "target": "a", "set": 3}': "set is 3",
    "": "has no lines",
    '{"image": "a.png", "target": "a", "id": "../../etc/x"}': "must be a relative path",
    '{"image": "a.png", "target": "a", "id": "/etc/x"}': "must be a relative path",
    '{"image": "a.png", "target": "a", "id": ""}': "must be a relative path",
    '{"image": "a.png", "target": "a", "id": "C:\\\\x"}': "backslashes, colons",
    '{"image": "a.png", "target": "a", "id": "a\\u0000b"}': "control characters",
    '{"image": "a.png", "target": "a", "id": ".uam-x"}': "start with",
    json.dumps({"image": "a.png", "target": "a", "id": "a" * 300}): "more than 200 bytes",
    '{"image": "a.png", "target": "a", "target": "b"}': "line 1: 'target' is given twice",
    "image,target": "line 1: not JSON .*; give a JSON object a line",
    '{"image": "get", "id": "x", "target": "a"}\n{"image": "y.jpg", "id": "x.jpg", "target": "b"}': "both be 'x.jpg'",
    '{"image": "a.png", "target": "a"}\n{"image": "./a.png", "target": "b"}': "would both be 'a'",
    '{"image": "b.jpg", "id": "a", "target": "a"}\n{"image": "a.jpg", "target": "b"}': "would both be 'a.jpg'",
    '{"image": "a.png", "target": ["a", "b"]}\n{"image": "b", "id": "a-1", "target": "b"}': "both be 'a-1'",
    '{"image": "a.png", "target": "a", "id": "what?"}': "control characters",
    '{"image": "a.png", "target": "a", "id": "sub/aux.x"}': "Windows keeps for a device",
    '{"image": "C:\\\\a\\\\b.jpg", "target": "a"}': "this system has no drive C:",
    '{"image": "a.jpg", "mask": "D:/b.png", "target": "a"}': "this system has no drive D:",
    '{"image": "a.png", "target": "a", "set": {"mask": {"quantile": 1}, "mask.quantile": 2}}': "set twice",
    '{"image": "a.png", "target": "a", "set": {"guidance=3 #": 5}}': "set has the key 'guidance=3 #'",
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_are_reported(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(InputError, match=FAULTS[text]):
        read_manifest(str(tmp_path / "m.jsonl"))


@pytest.mark.parametrize("key", ["target", "source"])
def test_half_a_character_is_no_prompt(key: str, tmp_path: Path) -> None:
    row = {"image": "x.png", "target": "a shoe", key: "a red shoe \ud83d"}
    with pytest.raises(InputError, match="line 1.*no valid Unicode text"):
        read_manifest(write(tmp_path / "m.jsonl", [row]))


@pytest.mark.parametrize("key", ["image", "mask"])
def test_what_results_would_replace_is_refused(key: str, tmp_path: Path) -> None:
    row = {"image": "in/a.png", "target": "x", "id": "a", key: "images/a.png"}
    url = write(tmp_path / "m.jsonl", [row])
    with pytest.raises(InputError, match="images/a.png lies where results go"):
        read_manifest(url, besides=str(tmp_path))
    assert read_manifest(url, besides=f"{tmp_path}/out")[0].id == "a"


def test_a_table_is_known_by_its_content(tmp_path: Path) -> None:
    table = pyarrow.table({"image": ["a.png"], "target": ["x"]})
    pyarrow.parquet.write_table(table, tmp_path / "m.pq")
    assert read_manifest(str(tmp_path / "m.pq"))[0].id == "a"


def test_many_faults_are_a_short_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: .* and 95 more$"):
        read_manifest(write(tmp_path / "m.jsonl", [{"image": "a.png"}] * 100))


@pytest.mark.parametrize(("name", "content"), [("m.parquet", b"PAR1 no"), ("m.jsonl", b"\xff\xfe")])
def test_files_of_another_kind_are_reported(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="not a Parquet file|save it as UTF-8"):
        read_manifest(str(tmp_path / name))


def test_a_folder_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "sub/a.webp", "sub/a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    items = read_folder(str(tmp_path), ["a cube"], source="a ball")
    assert [item.id for item in items] == ["a.jpg", "b", "sub/a", "sub/a.webp"]
    assert items[0].image == f"{tmp_path}/a.jpg" and items[0].source == "a ball"


ODD = {
    "colon": ["cat.png", "Screenshot 2024-05-01 12:30:59.png"],
    "blank": ["cat.png", "dog .png", " dog.png", "dog.png "],
    "dot": ["holiday 3..png", "holiday 3.png"],
    "long": ["写真" * 36 + ".png", "x" * 250 + ".jpg"],
    "no Unicode": ["caf\udce9.png", "caf_.png"],
    "case": ["IMG_1.JPG", "img_1.png", "IMG_1.jpg", "img_1.jpg", "IMG_1.PNG", "img_1.PNG"],
    "numbers": ["photo.jpg", "photo-1.jpg", "photo.png", "photo-1.png", "photo-2.webp"],
    "devices": ["CON.png", "aux.jpg"],
}


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("kind", ODD)
def test_no_name_stops_a_job(kind: str, targets: int, tmp_path: Path) -> None:
    """Every picture has an id, and the same one whatever others there are."""
    names = [name for name in ODD[kind] if not name.endswith(" ")]
    together = tmp_path / "together"
    together.mkdir()
    for number, name in enumerate(names):
        (tmp_path / f"{number}").mkdir()
        for folder in (together, tmp_path / f"{number}"):
            os.close(os.open(os.fsencode(folder / name), os.O_CREAT))
    items = read_folder(str(together), ["x"] * targets)
    assert sorted(item.image for item in items) == sorted(f"{together}/{name}" for name in names)
    assert len({name for item in items for name in item.results}) == len(names) * targets
    alone = {read_folder(f"{tmp_path}/{number}", ["x"])[0].id for number in range(len(names))}
    assert {item.id for item in items} == alone


def test_results_inside_the_folder_do_not_come_back(tmp_path: Path) -> None:
    for name in ("a.png", "results/images/a.png", "results2/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    items = read_folder(str(tmp_path), ["a cube"], besides=f"{tmp_path}/results")
    assert [item.id for item in items] == ["a", "results2/b"]


def test_pictures_that_are_left_out_are_reported(tmp_path: Path) -> None:
    (tmp_path / "._a.png").touch()
    with (
        pytest.warns(UserWarning, match="1 hidden files"),
        pytest.raises(InputError, match="no pictures"),
    ):
        read_folder(str(tmp_path), ["x"])


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
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
