"""Files that can be written, and messages about those that cannot."""

import errno
import os
from pathlib import Path

import pytest

from uam_jax import InputError
from uam_jax.io import outputs
from uam_jax.io.outputs import check_places, key_of, write_files


def test_what_can_be_written_passes_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "old.png").touch()
    check_places([tmp_path / "old.png", tmp_path / "a/b/c.png", tmp_path / ("x" * 255)])
    assert os.listdir(tmp_path) == ["old.png"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("folder", "is a folder"),
        ("file/a.png", "file is a file"),
        ("x" * 256, "File name too long"),
        ("new/" + "x" * 256 + "/a.png", "File name too long"),
        ("/".join(["y" * 200] * 25), "File name too long"),
        ("nowhere/a.png", "a link that leads nowhere"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_beforehand(
    tmp_path: Path, name: str, says: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=says):
        check_places([tmp_path / "fine.png", tmp_path / name])


def test_a_folder_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # for root, everything may
    with pytest.raises(InputError, match=f"{tmp_path} cannot be written"):
        check_places([tmp_path / "a.png"])


def test_names_that_differ_in_case_alone_are_one_where_the_file_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = tmp_path / "new" / "IMG.jpg", tmp_path / "new" / "img.JPG"
    assert key_of(a) != key_of(b)
    monkeypatch.setattr(outputs, "_ignores_case", lambda folder: folder == tmp_path)
    assert key_of(a) == key_of(b)


# Writing.


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def full_after(count: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes a function of `os` fail from some call on, as on a full disk."""
    calls, whole = [], getattr(os, name)

    def fail(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) == count + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(*arguments, **options)

    monkeypatch.setattr(outputs.os, name, fail)


@pytest.mark.parametrize("links", [True, False])
def test_files_are_written_with_their_folders_and_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(outputs.os, "link", lambda *_, **__: os.stat("/no/links"))
    (tmp_path / "a").write_bytes(b"old")
    write_files({tmp_path / "a": b"1", tmp_path / "b/c/d": b"2", tmp_path / ("x" * 255): b"3"})
    assert contents(tmp_path) == {"a": b"1", "b/c/d": b"2", "x" * 255: b"3"}


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("count", range(3))
def test_all_files_are_written_or_all_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, failing: str, links: bool
) -> None:
    before = {"a": b"old", "c": b"older"}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    if not links:
        monkeypatch.setattr(outputs.os, "link", lambda *_, **__: os.stat("/no/links"))
    full_after(count, monkeypatch, failing)
    files = {tmp_path / name: b"new" for name in ("a", "new/b", "c")}
    with pytest.raises(InputError, match=f"{tmp_path}.* cannot be written .*: No space.*make room"):
        write_files(files)
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()


def test_an_interrupt_leaves_all_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_files({tmp_path / "b": b"new"})
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize("name", ["x" * 256, "folder"])
def test_a_place_that_is_none_leaves_all_as_before(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/b").touch()
    with pytest.raises(InputError, match=f"{tmp_path} cannot be written .{name}: "):
        write_files({tmp_path / "a": b"new", tmp_path / name: b"new"})
    assert contents(tmp_path) == {"a": b"old", "folder/b": b""}


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").symlink_to("a")
    write_files({tmp_path / "b": b"new"})
    assert contents(tmp_path) == {"a": b"old", "b": b"new"}
