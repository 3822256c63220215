"""The program from outside, with an editor in closed form: exit codes, streams, and files after a failure."""

import errno
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_editor import FakeEditor
from program import files, picture, pixels, uam

from uam_jax.engine.delivery import EditResult
from uam_jax.errors import InputError
from uam_jax.io import outputs


def test_reconstruct(tmp_path: Path, editor: FakeEditor, image: Path) -> None:
    result = uam("reconstruct", image, "--out", tmp_path / "out.png", "--prompt", "a cube",
                 "--uniformity", 0.5, "--guidance", 2, "--steps", 9, "--spacing", "trailing", "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    options = {"prompts": "a cube", "uniformity": 0.5, "guidance": 2.0}
    assert editor.calls == [options | {"steps": 9, "spacing": "trailing"}]
    [row] = json.loads(result.stdout)["pictures"]
    assert 0 < row["psnr"] < 30 and row["psnr_of_vae"] is None  # infinite, which JSON can't say
    assert pixels(tmp_path / "out.png").shape == (48, 80, 3)


def test_convert_and_demo_are_passed_on(
    tmp_path: Path, editor: FakeEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    checkpoints, world = ModuleType("checkpoints"), ModuleType("demo")
    checkpoints.convert = lambda source, destination, variant: calls.append(source) or destination
    world.run_demo = lambda *call: (
        calls.append(call[:3]) or {"rows": [{"method": "a", "psnr": 1.5}]}
    )
    monkeypatch.setitem(sys.modules, "uam_jax.checkpoints.load", checkpoints)
    monkeypatch.setattr("uam_jax.checkpoints.load", checkpoints, raising=False)
    monkeypatch.setitem(sys.modules, "uam_jax.evaluation.demo", world)
    result = uam("convert", "some/model", tmp_path / "new", "--json")
    assert json.loads(result.stdout)["model"] == str(tmp_path / "new")
    result = uam("demo", "--out", tmp_path, "--seed", 3)
    assert result.exit_code == 0 and "method" in result.stdout and "1.5" in result.stdout
    assert calls == ["some/model", (editor, tmp_path, 3)]


# Streams.


def test_json_is_one_document_and_nothing_else_is_on_stdout(
    tmp_path: Path, editor: FakeEditor, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = editor.edit_latents

    def noisy(*args: Any, **options: Any) -> Any:
        print("a library's chatter")
        warnings.warn("seen\nonce", UserWarning, stacklevel=1)
        warnings.warn("not for the user", DeprecationWarning, stacklevel=1)
        return original(*args, **options)

    editor.edit_latents = noisy
    second = picture(tmp_path / "second.png")
    result = uam("edit", image, second, "--target", "x", "--out", tmp_path / "o", "--json")
    summary = json.loads(result.stdout)
    assert summary["ok"] and summary["command"] == "edit"
    assert [row["output"] for row in summary["pictures"]] == [
        str(tmp_path / "o" / name) for name in ("in.png", "second.png")
    ]
    assert all(0.3 < row["mask_share"] < 0.7 for row in summary["pictures"])
    assert all(row["confidence"] == 0.25 for row in summary["pictures"])
    assert all("cannot reproduce" in row["review"] for row in summary["pictures"])
    assert all(row["figures"] == {"source_residual": 0.1235} for row in summary["pictures"])
    assert summary["evaluations"] == 2 * 60
    assert summary["config"] == editor.default_config.fingerprint()
    assert summary["weights"] == editor.weights_hash
    assert summary["seconds"].keys() == {"compile", "run"}
    assert summary["warnings"] == ["seen once"]
    assert result.stderr.count("seen once") == 1
    assert "chatter" in result.stderr and "(2 of 2)" in result.stderr
    assert "not for the user" not in result.stderr


def test_a_summary_for_people_names_the_result(
    tmp_path: Path, editor: FakeEditor, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # a table folds long paths
    result = uam("edit", image, "--target", "[b]x", "--out", tmp_path / "out.png")
    assert "out.png" in result.stdout.replace("\n", "") and "[b]x" in result.stdout
    assert "weights: 0123456789abcdef" in result.stdout


# Failures.


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no model there"), 2, "error: no model there"),
        (RuntimeError("broken\ndetails"), 1, "error: RuntimeError: broken (--debug"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), 1, "out of memory: try a smaller --size"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_a_failure_on_the_way_keeps_what_is_done(
    tmp_path: Path,
    editor: FakeEditor,
    image: Path,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    original = editor.edit_latents

    def fail_second(*args: Any, **options: Any) -> Any:
        if editor.calls:
            raise error
        return original(*args, **options)

    editor.edit_latents = fail_second
    second, third = (picture(tmp_path / f"{name}.png") for name in ("second", "third"))
    before = files(tmp_path)
    command = ("edit", image, second, third, "--target", "x", "--out", tmp_path / "out")
    result = uam(*command)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr and "details" not in result.stderr
    assert not result.stdout
    assert files(tmp_path) == before | {"out/in.png"}
    left = f"1 of 3 pictures are done and written, up to {image}; left are {second}, {third}"
    assert left in result.stderr
    assert "Traceback" in uam(*command, "--debug").stderr
    editor.calls.clear()
    failed = json.loads(uam(*command, "--json").stdout)
    assert failed["ok"] is False and failed["error"] and failed["warnings"] == [left]


@pytest.mark.parametrize("verb", ["edit", "reconstruct"])
def test_results_are_written_one_by_one_and_stay_when_the_disk_is_full(
    tmp_path: Path, editor: FakeEditor, image: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    second = picture(tmp_path / "second.png")
    written: list[str] = []

    write = outputs._write

    def write_once(path: Path, data: bytes) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr(outputs, "_write", write_once)
    said = ("--target", "x") if verb == "edit" else ()
    result = uam(verb, image, second, "--out", tmp_path / "out", *said)
    assert result.exit_code == 2 and len(written) == 1
    full = "cannot be written (second.png: No space left on device)"
    assert f"{tmp_path / 'out'} {full}" in result.stderr
    assert "make room there" in result.stderr and f"left are {second}" in result.stderr
    assert files(tmp_path / "out") == {"in.png"}


@pytest.mark.parametrize("verb", ["edit", "reconstruct"])
def test_an_overflow_is_an_error_and_nothing_is_written(
    tmp_path: Path, editor: FakeEditor, image: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_latents = editor.edit_latents

    def overflow(*arguments: Any, **options: Any) -> EditResult:
        result = edit_latents(*arguments, **options)
        return replace(result, images=result.images.at[0, 3, 4].set(np.nan))

    monkeypatch.setattr(editor, "edit_latents", overflow)
    monkeypatch.setattr(editor, "reconstruct", lambda inversion: inversion * np.float32(np.inf))
    said = ("--target", "a cube") if verb == "edit" else ()
    result = uam(verb, image, "--out", tmp_path / "out.png", *said)
    assert result.exit_code == 2
    message = " ".join(result.stderr.split())
    assert "in.png: the network gave numbers that are not finite: try --dtype float32" in message
    assert not (tmp_path / "out.png").exists()
