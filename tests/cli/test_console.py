"""Messages and summaries reach any terminal, whatever values are in them."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from uam_jax.cli import console
from uam_jax.cli.console import Console
from uam_jax.errors import InputError, quoted, shortened

NAME = "写真-café-\udce9.png"
SIGNED = "https://me:pw@host/a.png?X-Amz-Signature=9f"


def wrapped(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def printed(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_any_name_can_be_printed(
    encoding: str, as_json: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = wrapped(encoding), wrapped(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def work(said: Console) -> dict[str, object]:
        said.stage(NAME)
        said.warn(NAME)
        if fails:
            raise InputError(NAME)
        return {"pictures": [{"output": Path(NAME), "target": NAME}], "gallery": NAME}

    assert console.run(work, as_json=as_json, debug=False) == (2 if fails else 0)
    text = printed(out)
    if as_json:
        document = json.loads(text)
        assert document["warnings"] == [NAME]
        assert (document["error"] if fails else document["pictures"][0]["output"]) == NAME
    else:
        assert fails or "\\udce9.png" in text.replace("\n", "")
    assert printed(err).count("\\udce9.png") == 2 + fails


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("arguments", [["--help"], ["edit", "--help"], ["edit", "写真", "--wrong"]])
def test_the_program_speaks_to_any_terminal(encoding: str, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uam_jax", *arguments],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == (2 if "--wrong" in arguments else 0), done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_a_summary_that_cannot_be_printed_is_an_error(as_json: bool, tmp_path: Path) -> None:
    """A full disk is an error, and a reader that stops reading is not."""
    program = f"""
import sys
from uam_jax.cli import console
sys.exit(console.run(lambda said: {{"gallery": "x" * 100_000}}, as_json={as_json}, debug=False))
"""
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and b"the summary can't be printed (No space left" in done.stderr
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    ends = os.pipe()
    os.close(ends[0])
    done = subprocess.run([sys.executable, "-c", program], stdout=ends[1], stderr=subprocess.PIPE)
    os.close(ends[1])
    assert done.returncode == 0 and b"Traceback" not in done.stderr


def test_secrets_are_neither_said_nor_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    def work(said: Console) -> dict[str, object]:
        for say in (said.say, said.stage, said.warn):
            say(f"reading {SIGNED}")
        return {"faults": [f"{SIGNED}: no picture"], "rows": [{"image": SIGNED}]}

    for as_json in (False, True):
        console.run(work, as_json=as_json, debug=False)

    def fail(said: Console) -> dict[str, object]:
        raise InputError(f"{SIGNED}: can't be read")

    console.run(fail, as_json=True, debug=True)
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "pw" not in text and "9f" not in text and "https://host/a.png" in text


def test_an_error_keeps_its_exit_code_where_the_streams_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(said: Console) -> dict[str, object]:
        raise InputError("no")

    for name in ("stdout", "stderr"):  # closed by the program's parent
        monkeypatch.setattr(sys, name, None)
    codes = [console.run(fail, as_json=as_json, debug=True) for as_json in (False, True)]
    monkeypatch.undo()
    assert codes == [2, 2]


def test_every_message_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 10**6

    def work(said: Console) -> dict[str, object]:
        said.say(long)
        said.warn(long)
        raise RuntimeError(f"{long}: the remedy")

    assert console.run(work, as_json=True, debug=False) == 1
    said = capsys.readouterr()
    assert len(said.out) < 5000 and len(said.err) < 8000 and "the remedy" in said.out
    assert len(str(InputError(f"{long}: the remedy"))) < 2100
    assert str(InputError(f"{long}: the remedy")).endswith("the remedy")
    assert len(quoted([{"a": long}] * 1000)) < 800 and quoted("a") == "'a'"
    assert (
        shortened("abc", 3) == "abc" and shortened("x" * 100, 8) == "xxxxxx … (92 characters) … xx"
    )
