"""Local and remote folders: whole files, unfinished ones unseen."""

import os
import uuid
from pathlib import Path

import pytest

from uam_jax import InputError
from uam_jax.storage import Folder, join, open_binary, read_bytes


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(str(tmp_path / "new"))
    return Folder(f"memory://{uuid.uuid4().hex}")


def test_files_are_written_read_and_found(folder: Folder) -> None:
    assert folder.read("a/b.txt") is None
    folder.write("a/b.txt", b"1")
    folder.write("a/b.txt", b"2")
    folder.write("c.txt", b"")
    assert folder.read("a/b.txt") == b"2" and folder.read("c.txt") == b""
    assert folder.names("*.txt") == ["c.txt"] and folder.names("a/*") == ["a/b.txt"]


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "res[1] *?"))
    folder.write("a-1.txt", b"")
    assert folder.names("a-*.txt") == ["a-1.txt"] and folder.names("none/*") == []


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_has_no_end_is_not_read(kind: str, tmp_path: Path) -> None:
    path = {"device": "/dev/zero", "pipe": str(tmp_path / "pipe"), "folder": str(tmp_path)}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    for read in (read_bytes, open_binary):
        with pytest.raises(InputError, match="no plain file"):
            read(path)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a", b"old")

    def fail(*args: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        folder.write("a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and folder.read("a") == b"old"


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a/b", b"1")
    (tmp_path / "a" / ".uam-1.tmp").touch()
    folder.sweep(min_age=60)
    assert len(list((tmp_path / "a").iterdir())) == 2
    folder.sweep()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_appending_adds(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "x"))
    folder.append("log", b"1\n")
    folder.append("log", b"2\n")
    assert folder.read("log") == b"1\n2\n"


@pytest.mark.parametrize("url", ["{}/none.png", "memory://none/at/all.png", "nosuch://x/y.png"])
def test_what_cannot_be_read_is_told(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        read_bytes(url.format(tmp_path))


def test_an_unknown_file_system_is_told() -> None:
    with pytest.raises(InputError, match="no such file system"):
        Folder("nosuch://bucket/x")


def test_join() -> None:
    assert join("a/b/", "c.png") == "a/b/c.png" and join("", "c.png") == "c.png"
    assert join("a", "/c.png") == "/c.png" and join("gs://b", "s3://c/d") == "s3://c/d"
