"""Input that the program refuses before anything is computed, and paths that it accepts."""

import json
from pathlib import Path

import pytest
from fake_editor import FakeEditor
from program import files, picture, pixels, uam

from uam_jax.runtime import backend


@pytest.mark.usefixtures("no_editor")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{in}", "--target", " ", "--out", "{new}.png"], "--target is empty"),
        (["{in}", "--target", "x", "--out", "{new}.xyz"], "cannot write .xyz files"),
        (["{in}", "{in}", "--target", "x", "--out", "{new}.png"], "one file for 2 pictures"),
        (["{in}", "{other}/in.png", "--target", "x", "--out", "{new}"], "both be written"),
        (["{in}", "{text}", "--target", "x", "--out", "{new}"], "convert it to PNG"),
        (["{missing}", "--target", "x", "--out", "{new}"], "no such file"),
        (["{other}", "--target", "x", "--out", "{new}"], "is a folder"),
        (["{in}", "--target", "x", "--out", "{text}/new"], "is a file"),
        (["{in}", "--target", "x", "--out", "{dir}.png/"], "is a folder, so"),
        (
            ["{in}", "--target", "x", "--out", "{new}", "--mask", "{small}"],
            "must have the same size",
        ),
        (["{in}", "--target", "x", "--out", "{new}", "--mask", "{missing}"], "no such file"),
        (["{in}", "--target", "x", "--out", "{long}.png"], "File name too long): choose"),
        (["{in}", "--target", "x", "--out", "{long}/x.png"], "File name too long): choose"),
        (["{in}", "--target", "x", "--out", "{fits}.png", "--save-mask"], "-mask.png cannot be"),
        (["{in}", "--target", "x", "--target", "y", "--out", "{fits}.png"], "-1.png cannot be"),
        (["{tall}", "--target", "x", "--out", "{new}", "--report"], "-error.png cannot be"),
        (["{in}", "--target", "x", "--out", "{paged}/", "--report"], "index.html is a folder"),
        (["{in}", "--target", "x", "--out", "{halls}/", "--report"], "gallery is a file"),
        (
            [
                "{in}",
                "{in1}",
                "--target",
                "x",
                "--target",
                "y",
                "--out",
                "{other}/..",
                "--overwrite",
            ],
            "in-1.png would be replaced by an edit of",
        ),
        (["{in}", "--target", "x", "--out", "{new}", "--set", "maks.radius=1"], "maks"),
        (["{in}", "--target", "x", "--out", "{new}", "--config", "nothing"], "nothing"),
        (["{in}", "--target", "x", "--out", "{new}", "--size", "0"], "--size"),
        (["{in}", "--target", "x", "--out", "{new}", "--dtype", "int8"], "--dtype"),
        (["{in}", "--out", "{new}"], "--target"),
        (["{in}", "--target", "x", "--out", "{new}", "--weight", "x"], "as WORD=NUMBER"),
        (["{in}", "--target", "x", "--out", "{new}", "--weight", "x=two"], "two is no number"),
        (["{in}", "--target", "x", "--out", "{new}", "--window", "x=0.5"], "give two shares"),
    ],
)
def test_bad_input_is_refused_before_anything_happens(
    tmp_path: Path, image: Path, arguments: list[str], message: str
) -> None:
    names = {"in": image, "new": tmp_path / "new", "missing": tmp_path / "missing.png"}
    names["other"] = picture(tmp_path / "other" / "in.png").parent
    names["small"] = picture(tmp_path / "small.png", 8, 8)
    names["text"] = tmp_path / "text.png"
    names["text"].write_text("not a picture")
    names["dir"] = tmp_path / "dir"
    (tmp_path / "dir.png" / "in.png").mkdir(parents=True)
    names["long"], names["fits"] = tmp_path / ("x" * 260), tmp_path / ("x" * 251)
    names["tall"] = picture(tmp_path / f"{'y' * 245}.png")
    names["in1"] = picture(tmp_path / "in-1.png")
    names["paged"], names["halls"] = tmp_path / "paged", tmp_path / "halls"
    (tmp_path / "paged" / "index.html").mkdir(parents=True)
    names["halls"].mkdir()
    (tmp_path / "halls" / "gallery").touch()
    before = files(tmp_path)
    result = uam("edit", *(argument.format(**names) for argument in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split()).replace("│ ", "")
    assert "Traceback" not in result.stderr and not result.stdout
    assert files(tmp_path) == before


@pytest.mark.usefixtures("no_editor")
@pytest.mark.parametrize(
    "arguments",
    [
        ["edit", "{in}", "--target", "x", "--out", "{url}"],
        ["edit", "{url}", "--target", "x", "--out", "new"],
        ["edit", "{in}", "--target", "x", "--out", "new", "--mask", "{url}"],
        ["edit", "{in}", "--target", "x", "--out", "new", "--config", "{url}"],
        ["edit", "{in}", "--target", "x", "--out", "new", "--model", "{url}"],
        ["edit", "{in}", "--target", "x", "--out", "new", "--cache-dir", "{url}"],
        ["reconstruct", "{in}", "--out", "{url}"],
        ["reconstruct", "{in}", "{url}", "--out", "new"],
        ["demo", "--out", "{url}"],
        ["info", "--cache-dir", "{url}"],
        ["info", "{url}"],
        ["convert", "scenes", "{url}"],
        ["convert", "{url}", "new"],
        ["batch", "{dir}", "--target", "x", "--out", "new", "--cache", "{url}"],
        ["batch", "{dir}", "--target", "x", "--out", "new", "--config", "{url}"],
        ["batch", "{dir}", "--target", "x", "--out", "new", "--model", "{url}"],
        ["eval", "scenes", "--out", "new", "--methods", "{url}"],
        ["eval", "scenes", "--out", "new", "--model", "{url}"],
        ["eval", "reconstruction", "--out", "new", "--cache-dir", "{url}"],
        ["bench", "--out", "new", "--model", "{url}"],
        ["bench", "--out", "new", "--shape", "sd15", "--config", "{url}"],
        ["bench", "compare", "{url}", "{url}"],
    ],
    ids=" ".join,
)
def test_a_url_is_refused_where_a_path_is_expected(
    tmp_path: Path, image: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    url = "gs://bucket/a//b.png"
    names = {"in": image, "dir": tmp_path, "url": url}
    result = uam(*(argument.format(**names) for argument in arguments), "--json")
    assert result.exit_code == 2, result.stderr
    error = json.loads(result.stdout)["error"]
    assert url in error and "URL" in error and "local" in error
    assert files(tmp_path) == before and not (tmp_path / "new").exists()


def test_a_path_below_the_home_folder_is_there(
    tmp_path: Path, editor: FakeEditor, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    result = uam("edit", str(image), "--target", "x", "--out=~/out/")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "home" / "out" / image.name).exists() and not (tmp_path / "~").exists()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "~/cache")
    assert backend.cache_folder() == tmp_path / "home" / "cache"


@pytest.mark.parametrize(
    "arguments",
    [
        ["edit", "{in}", "--target", "x", "--out", ""],
        ["batch", "", "--target", "x", "--out", "new"],
    ],
)
def test_an_empty_path_is_refused(
    tmp_path: Path, image: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = uam(*(argument.format(**{"in": image}) for argument in arguments))
    assert result.exit_code == 2 and "is empty" in result.stderr


def test_a_local_url_is_a_path(tmp_path: Path, editor: FakeEditor, image: Path) -> None:
    out = tmp_path / "a b.png"
    result = uam(
        "edit", f"file://{image}", "--target", "x", "--out", f"file://{tmp_path}/a%20b.png"
    )
    assert result.exit_code == 0, result.stderr
    assert pixels(out).shape == pixels(image).shape


def test_the_demo_checks_its_folder_before_it_computes(tmp_path: Path, no_editor: None) -> None:
    (tmp_path / "grid.png").mkdir()
    result = uam("demo", "--out", tmp_path)
    assert result.exit_code == 2 and "grid.png is a folder" in result.stderr
