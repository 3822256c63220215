"""Where files can be written, and what is said when they can't."""

import errno
import os
from pathlib import Path

import pytest

from uam_jax import InputError, outputs
from uam_jax.outputs import check_places, key_of, save


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
def test_what_cannot_be_written_is_told_beforehand(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=says):
        check_places([tmp_path / "fine.png", tmp_path / name])


def test_a_folder_that_may_not_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # for root, everything may
    with pytest.raises(InputError, match=f"{tmp_path} may not be written"):
        check_places([tmp_path / "a.png"])


def test_names_that_differ_in_case_alone_are_one_where_the_file_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = tmp_path / "new" / "IMG.jpg", tmp_path / "new" / "img.JPG"
    assert key_of(a) != key_of(b)
    monkeypatch.setattr(outputs, "_ignores_case", lambda folder: folder == tmp_path)
    assert key_of(a) == key_of(b)


def test_a_full_disk_is_told_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(files: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, "write_files", full)
    with pytest.raises(InputError, match=f"{tmp_path} cannot be written .No space.*make room"):
        save({tmp_path / "a.png": b""})
