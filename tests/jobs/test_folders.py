"""The pictures of a folder: all that can be read, nothing that is the system's or a result, and the rest counted."""

import os
import uuid
from pathlib import Path

import fsspec
import pytest

from uam_jax import InputError
from uam_jax.jobs import folders
from uam_jax.jobs.folders import find_pictures, refuse_results

HIDDEN = (
    ".ipynb_checkpoints/cat-checkpoint.png", "._cat.png", "__MACOSX/._cat.png", "sub/@eaDir/cat.png/T_M.jpg",
    ".thumbnails/cat.png", ".Trash-1000/files/old.jpg", "$RECYCLE.BIN/x.png", "lost+found/x.png", ".git/x.png",
)  # fmt: skip


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "in") if request.param == "local" else f"memory://{uuid.uuid4().hex}/in"


def make(root: str, *names: str) -> str:
    for name in names:
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(b"")
    return root


def test_every_suffix_that_can_be_read(root: str) -> None:
    names = ["a.JFIF", "b.jpe", "c.apng", "d.pbm", "e.pgm", "f.pnm", "g.dib", "h.mpo", "sub/i.tif"]
    make(root, *names, "notes.txt", "sub/j.xmp", "k.pdf")
    assert find_pictures(root) == (names, "")


def test_what_is_hidden_below_is_counted(root: str) -> None:
    make(root, "cat.png", ".DS_Store", "Thumbs.db", "notes.txt", *HIDDEN)
    names, message = find_pictures(root)
    assert names == ["cat.png"]
    assert message.startswith(f"{root}: left out are ")
    assert "8 hidden folders" in message and "1 hidden files" in message
    assert "1 other files (.txt)" in message


def test_a_folder_below_a_hidden_one_may_be_given(root: str) -> None:
    make(f"{root}/.cache/@eaDir", "a.png", "sub/b.png")
    assert find_pictures(f"{root}/.cache/@eaDir") == (["a.png", "sub/b.png"], "")


def test_heic_without_its_reader_is_counted(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "lacks_heif", lambda name: name.lower().endswith(".heic"))
    monkeypatch.setattr(folders, "readable_suffixes", lambda: (".png",))
    names, message = find_pictures(make(root, "a.png", "b.HEIC", "c.heic", ".d.heic"))
    assert names == ["a.png"] and message.endswith("2 HEIC (install the extra `heif`)")


def test_results_inside_never_come_back(root: str) -> None:
    make(root, "a.png", "results/images/a.png", "results2/b.png")
    for out in (f"{root}/results", f"{root}/sub/../results", f"{root}/results/"):
        assert find_pictures(root, out)[0] == ["a.png", "results2/b.png"]
    assert len(find_pictures(root, "memory://elsewhere")[0]) == 3


@pytest.mark.parametrize("inside", ["", "/images", "/originals/sub"])
def test_the_folder_of_the_results_is_no_input(root: str, inside: str) -> None:
    make(root, "images/a.png", "originals/sub/a.png", "in/b.png")
    with pytest.raises(InputError, match="be edited the next time: choose another folder"):
        find_pictures(root + inside, root)
    assert find_pictures(f"{root}/in", root)[0] == ["b.png"]


@pytest.mark.parametrize("place", ["images/a.png", "masks/sub/a.png", "x/../originals/a.jpg"])
def test_pictures_of_a_manifest_do_not_lie_where_results_go(root: str, place: str) -> None:
    make(root, place)
    with pytest.raises(InputError, match=f"{place} lies where results go.*another folder"):
        refuse_results([f"{root}/a.png", f"{root}/{place}"], root)
    refuse_results([f"{root}/a.png", f"{root}/images2/a.png", "/images/a", "nosuch://x"], root)
    refuse_results([f"{root}/{place}"], f"{root}/results")


def test_a_link_to_where_results_go_is_no_way_round(tmp_path: Path) -> None:
    make(str(tmp_path), "out/images/a.png")
    (tmp_path / "a.png").symlink_to(tmp_path / "out" / "images" / "a.png")
    with pytest.raises(InputError, match="lies where results go"):
        refuse_results([f"{tmp_path}/a.png"], f"{tmp_path}/out")


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    root, far = tmp_path / "in", tmp_path / "far"
    make(str(root), "z/a.png", "b.png")
    make(str(far), "c.png", "deep/d.png")
    (root / "a-link").symlink_to(root / "z")  # what it leads to is there already
    (root / "far").symlink_to(far)
    (root / "far2").symlink_to(far)
    (root / "z" / "loop").symlink_to(root)
    (far / "up").symlink_to(tmp_path)
    (root / "self").symlink_to(root / "self")
    names, message = find_pictures(str(root))
    assert names == ["b.png", "far/c.png", "far/deep/d.png", "z/a.png"] and not message
    (tmp_path / "link").symlink_to(root)
    assert find_pictures(str(tmp_path / "link"))[0] == names


def test_results_that_a_link_leads_to_never_come_back(tmp_path: Path) -> None:
    root, out = make(str(tmp_path / "in"), "a.png"), tmp_path / "out"
    make(str(out), "images/a.png")
    for name, target in {"b": out, "c": out / "images", "d.png": out / "images" / "a.png"}.items():
        (tmp_path / "in" / name).symlink_to(target)
    (tmp_path / "alias").symlink_to(out)
    for besides in (out, tmp_path / "alias", tmp_path / "in" / "b", tmp_path / "in" / ".." / "out"):
        assert find_pictures(root, str(besides)) == (["a.png"], "")


def test_what_may_not_be_read_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(str(tmp_path), "a.png", "shut/b.png", "shut2/c.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    scan = os.scandir

    def refuse(path: str) -> object:
        if os.path.basename(path).startswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    names, message = find_pictures(str(tmp_path))
    assert names == ["a.png"]
    assert (
        "2 folders that may not be read" in message
        and "2 broken links, pipes or devices" in message
    )
    with pytest.raises(InputError, match="shut: can't be read .Permission denied."):
        find_pictures(str(tmp_path / "shut"))


def test_names_that_are_no_unicode_are_names(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    assert find_pictures(str(tmp_path))[0] == ["caf\udce9.png"]


def test_a_remote_folder_that_cannot_be_listed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("403")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", fail)
    with pytest.raises(InputError, match="memory://x: can't be read .RuntimeError: 403."):
        find_pictures("memory://x")
