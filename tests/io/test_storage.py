"""Local and remote folders: files appear whole, and unfinished files are not seen."""

import errno
import os
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from uam_jax import InputError
from uam_jax.io import local_disk
from uam_jax.io.storage import Folder, is_folder, open_binary, read_bytes, write_bytes


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


def test_an_empty_path_is_no_folder() -> None:
    for use in (Folder, is_folder, read_bytes):
        with pytest.raises(InputError, match="a path is empty"):
            use("")


def test_a_folder_that_cannot_be_read_is_named(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Access Denied")

    for name in ("cat_file", "ls"):
        monkeypatch.setattr(type(folder._files), name, fail)
    for ask in (folder.read, folder.names):
        with pytest.raises(InputError, match="can't be read .*Access Denied"):
            ask("job.json")


def test_below_a_file_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        folder = Folder(str(tmp_path / place))
        assert folder.read("a") is None and folder.names("*.x") == []


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
        for url in (path, f"file://{path}"):
            with pytest.raises(InputError, match="not a plain file"):
                read(url)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a", b"old")

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match=r"a can't be written \(broken\).*--out"):
        folder.write("a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and folder.read("a") == b"old"


@pytest.mark.parametrize("way", ["write", "create", "append"])
def test_a_full_disk_is_named_with_the_remedy_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    folder = Folder(str(tmp_path))
    folder.append("log", b"1\n")

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    name = "log" if way == "append" else "new"
    with pytest.raises(InputError, match=f"{tmp_path}: the disk is full.*free space.*same command"):
        getattr(folder, way)(name, b"2" * 10_000 + b"\n")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert folder.read("log") == b"1\n"
    folder.append("log", b"3\n")
    assert folder.read("log") == b"1\n3\n"


def test_a_line_that_the_disk_cannot_hold_is_no_half_line(tmp_path: Path) -> None:
    """Uses a real limit on the size of files, because a full disk cuts a write in the middle."""
    program = f"""
import resource
from uam_jax.io.storage import Folder
folder = Folder({str(tmp_path)!r})
folder.append("log", b"first\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for way in (folder.append, folder.write):
    try:
        way("log", b"x" * 1000 + b"\\n")
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.count("log can't be written") == 2, done.stderr
    assert (tmp_path / "log").read_bytes() == b"first\n"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_of_all_who_create_a_file_one_does(folder: Folder) -> None:
    start = Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return folder.create("a/sizes", str(number).encode() * 1000)

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, range(8)))
    assert (
        made.count(True) == 1 or not folder.is_local
    )  # fsspec's memory file system cannot decide it
    assert folder.read("a/sizes") in [str(n).encode() * 1000 for n, did in enumerate(made) if did]
    assert not folder.create("a/sizes", b"late") and folder.names("a/*") == ["a/sizes"]


def test_a_file_is_created_whole_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", fail)
    folder = Folder(str(tmp_path))
    assert folder.create("a", b"1") and not folder.create("a", b"2")
    assert folder.read("a") == b"1" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_lock_is_one_holders_and_ends_with_its_process(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    program = f"""
import sys
from uam_jax.io.storage import Folder
with Folder({str(tmp_path)!r}).locked("a") as held:
    print(held, flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    with folder.locked("a") as mine, folder.locked("b") as free:
        assert (mine, free) == (False, True)
    other.kill()
    other.communicate()
    with folder.locked("a") as first, folder.locked("a") as second:
        assert (first, second) == (True, False)


def test_only_what_was_abandoned_is_swept(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a/b", b"1")
    for name, age in (("old", 4000), ("new", 1000)):
        file = tmp_path / "a" / f".uam-{name}.tmp"
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    folder.sweep()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".uam-new.tmp", "b"]


def test_what_a_killed_process_was_writing_is_swept_and_what_another_writes_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"""
import os, time
from uam_jax.io.storage import Folder
os.replace = lambda *names: print(flush=True) or time.sleep(600)
Folder({str(tmp_path)!r}).write("a", b"1")
"""
    folder = Folder(str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        writer.stdout.readline()  # the file is written, but not renamed
        [file] = tmp_path.iterdir()
        os.utime(file, (time.time() - 10,) * 2)
        folder.sweep()
        assert file.exists()
        writer.kill()
    folder.sweep()
    assert not file.exists()
    file.touch()  # a process may be about to lock it
    folder.sweep()
    assert file.exists()
    os.utime(file, (time.time() - 10,) * 2)
    monkeypatch.setattr(
        local_disk, "lock_file", lambda file: None
    )  # as on a file system without locks
    folder.sweep()
    assert file.exists()


def test_a_place_that_cannot_be_written_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Folder(str(tmp_path / "new/er")).check()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        folder = Folder(str(tmp_path / place))
        with pytest.raises(InputError, match="file is not a folder"):
            folder.check()
        with pytest.raises(InputError, match="a file has the name of a folder above it"):
            folder.write("x", b"")

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "res/images").mkdir(parents=True)
    (tmp_path / "res/masks").touch()
    folder = Folder(str(tmp_path / "res"))
    folder.check(["images/a/b.png", "x"])
    with pytest.raises(InputError, match="res/masks is not a folder"):
        folder.check(["images/a.png", "masks/a/b.png"])
    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(
        InputError, match=f"{tmp_path}/.* can't be written .Permission denied.*--out"
    ):
        Folder(str(tmp_path / "new")).check()


def test_appending_adds(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "x"))
    folder.append("log", b"1\n")
    folder.append("log", b"2\n")
    assert folder.read("log") == b"1\n2\n"


@pytest.mark.parametrize("url", ["{}/none.png", "memory://none/at/all.png", "nosuch://x/y.png"])
def test_a_place_that_cannot_be_read_is_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read|no such file system"):
        read_bytes(url.format(tmp_path))


def test_an_unknown_file_system_is_named() -> None:
    with pytest.raises(InputError, match="no such file system"):
        Folder("nosuch://bucket/x")


@pytest.mark.parametrize(
    "name",
    ["a::b.png", "a#1.png", "what?.png", "a*[1].png", "~", "~x.png", "memory::a.png", "a%20b.png"],
)
def test_a_local_name_may_hold_anything(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"1")
    for url in (name, f"{tmp_path}/{name}", f"file://{tmp_path}/{name}"):
        assert read_bytes(url) == b"1"
        with open_binary(url) as file:
            assert file.read() == b"1"
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()  # as it is there, it is no one's home
    Folder(name).write("sub/x", b"2")
    assert (tmp_path / name / "sub" / "x").read_bytes() == b"2" and is_folder(name)
    write_bytes(f"{name}/y", b"3")
    assert (tmp_path / name / "y").read_bytes() == b"3"


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Folder("~/x").write("a", b"1")
    assert (tmp_path / "x" / "a").exists() and is_folder("~/x")


@pytest.mark.parametrize("url", ["https://host/a.png", "s3://bucket/a.png", "gs://bucket/a.png"])
def test_the_extra_for_remote_files_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("aiohttp", "s3fs", "gcsfs", "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, package, None)
    protocol = url.partition("://")[0]
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    for use in (read_bytes, open_binary, Folder, is_folder):
        with pytest.raises(InputError, match=r"a package is missing .*pip install '.\[remote\]'"):
            use(url)


@pytest.mark.parametrize("name", ["images/" + "x" * 252 + ".png", "/".join(["y" * 200] * 25)])
def test_names_that_are_too_long_are_refused_beforehand(tmp_path: Path, name: str) -> None:
    folder = Folder(str(tmp_path))
    folder.check(["images/" + "x" * 251 + ".png", "/".join(["y" * 200] * 15)])
    with pytest.raises(InputError, match="too long for this file system: give a shorter `id`"):
        folder.check(["a", name])
    with pytest.raises(InputError, match="can't be written .File name too long"):
        folder.write(name, b"")
