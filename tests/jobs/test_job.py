"""A data-set job on a tiny model: the same bytes however it was cut up, and failures that stay alone."""

import errno
import os
import uuid
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tiny_job import CONFIG, files_of, plan_tiny, run_tiny

from uam_jax import Editor, InputError
from uam_jax.engine import programs
from uam_jax.engine.parallel import Program
from uam_jax.io.encoding import write_image
from uam_jax.io.images import read_image, resize
from uam_jax.io.storage import Folder
from uam_jax.jobs import job as run
from uam_jax.jobs.job import finish_job
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.ledger import read_rows
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.plan import check_items
from uam_jax.jobs.runner import TooManyFailures
from uam_jax.jobs.sizes import measure
from uam_jax.runtime.host_memory import Budget


@pytest.mark.parametrize(
    "way", [pytest.param("devices", marks=pytest.mark.long), "shards", "resumed"]
)
def test_however_it_is_cut_up_the_bytes_are_the_same(
    editor: Editor, items: list[Item], whole: Path, tmp_path: Path, way: str
) -> None:
    if way == "devices":
        run_tiny(editor, items, tmp_path, devices=2)
    elif way == "shards":
        run_tiny(editor, items, tmp_path, shard=(1, 2))
        assert 0 < len(read_rows(Folder(str(tmp_path)))) < 8
        run_tiny(editor, items, tmp_path, shard=(0, 3))
    if way != "devices":  # what is left, in one process; some rows and files lost on the way
        run_tiny(editor, items, tmp_path, max_failures=9)
        ledgers = sorted(tmp_path.glob("results*.jsonl"))
        (tmp_path / "images/set/1.png").unlink()
        for ledger in ledgers:
            lines = ledger.read_text().splitlines(keepends=True)
            ledger.write_text("".join(line for line in lines if '"id": "set/1"' not in line))
        progress = run_tiny(editor, items, tmp_path)
        assert progress.done == 1
    assert files_of(tmp_path) == files_of(whole)
    assert run_tiny(editor, items, tmp_path).done == 0


def test_a_tight_bound_on_memory_changes_no_byte(
    editor: Editor, items: list[Item], whole: Path, tmp_path: Path
) -> None:
    run_tiny(editor, items, tmp_path, budget=Budget(1))
    assert files_of(tmp_path) == files_of(whole)


@pytest.mark.parametrize("what", ["write", "append"])
def test_a_full_disk_ends_a_job_that_goes_on_when_there_is_room(
    editor: Editor,
    items: list[Item],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    sync, left = os.fsync, [12 if what == "write" else 10**9]

    def full(number: int) -> None:
        left[0] -= 1
        ledger = tmp_path / "results.jsonl"
        is_ledger = ledger.exists() and os.path.samestat(os.fstat(number), ledger.stat())
        if left[0] < 0 or (what == "append" and is_ledger):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full.*free space and start the same command"):
        run_tiny(editor, items, tmp_path)
    monkeypatch.undo()
    assert 0 <= len(read_rows(Folder(str(tmp_path)))) < 8
    run_tiny(editor, items, tmp_path)
    assert files_of(tmp_path) == files_of(whole) and len(read_rows(Folder(str(tmp_path)))) == 8


def test_an_interrupted_end_can_be_repeated(
    editor: Editor, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tiny(editor, items[:2], tmp_path)
    folder = JobFolder(Folder(str(tmp_path)))

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "render_report", fail)
        with pytest.raises(KeyboardInterrupt):
            finish_job(folder)
    assert len(read_rows(folder.folder)) == 2
    assert finish_job(folder)["ok"] == 2 and (tmp_path / "index.html").exists()


@pytest.mark.long
def test_programs_are_counted_beforehand_and_no_picture_prompt_or_tail_compiles_another(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    wide = tmp_path / "wide.png"
    write_image(wide, np.zeros((8, 16, 3), np.float32))
    mixed = [
        *items[:3],
        Item("wide", str(wide), ("a cube",)),
        Item("own", items[0].image, ("a cube",), settings=("guidance=2", "mask.quantile=0.2")),
        Item("shared", items[1].image, ("a cube",), settings=("mask.rule=auto",)),
    ]
    config = CONFIG.updated({"steps": 4, "auxiliary": {"latents": "original"}})
    editor = Editor(editor.checkpoint)  # an editor keeps the null prompt's condition
    all_of_them = [each for each in vars(programs).values() if isinstance(each, Program)]

    def compiled() -> int:
        return sum(each.compilations for each in all_of_them)

    expected = plan_tiny(editor, mixed, config).describe(editor, 0)["programs"]
    assert expected == 2 + 2 * 6 + 1  # text; for each size 6; for the other rule an edit
    for each in all_of_them:
        each.clear_cache()
    assert run_tiny(editor, mixed, tmp_path / "out", config=config).failed == 0
    assert compiled() == expected
    others = [replace(item, targets=("a red ball",)) for item in mixed[::-1]]
    assert run_tiny(editor, others, tmp_path / "again", config=config).failed == 0
    assert compiled() == expected


def test_inputs_and_outputs_may_be_remote(editor: Editor, items: list[Item], whole: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    for item in items:
        with fsspec.open(f"{root}/in/{Path(item.image).name}", "wb") as file:
            file.write(Path(item.image).read_bytes())
    remote = [Item(item.id, f"{root}/in/{Path(item.image).name}", item.targets) for item in items]
    run_tiny(editor, remote, f"{root}/out", shard=(0, 2))
    run_tiny(editor, remote, f"{root}/out")
    summary = finish_job(JobFolder(Folder(f"{root}/out")))
    assert (summary["ok"], summary["failed"], summary["missing"]) == (7, 1, 0)
    out = Folder(f"{root}/out")
    for name, content in files_of(whole).items():
        assert out.read(name) == content, name
    assert out.read("index.html") and out.read("results.parquet")


def test_an_error_on_the_devices_is_its_pictures_alone_and_compiles_nothing(
    editor: Editor, items: list[Item], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = resize(read_image(items[1].image).pixels, (8, 8))
    prepare = Editor.prepare

    def fail(self: Editor, *arguments: object, images: np.ndarray, **more: object) -> object:
        if any(np.array_equal(each, bad) for each in images):
            raise TypeError("body_fun output and input must have identical types")
        return prepare(self, *arguments, images=images, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Editor, "prepare", fail)
    programs_of = [each for each in vars(programs).values() if isinstance(each, Program)]
    before = [each.compilations for each in programs_of]
    assert run_tiny(editor, items, tmp_path).failed == 2
    assert [each.compilations for each in programs_of] == before
    rows = read_rows(Folder(str(tmp_path)))
    assert rows["set/1"]["reason"].startswith("TypeError: body_fun")
    made, expected = files_of(tmp_path), files_of(whole)
    assert made == {name: data for name, data in expected.items() if "/set/1." not in name}


def test_a_prompt_that_is_no_text_fails_its_batch_alone(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    bad = Item("bad", items[0].image, ("half a \ud83d",))  # a manifest would refuse it
    progress = run_tiny(editor, [bad, items[2]], tmp_path)
    assert (progress.done, progress.failed) == (3, 1)
    assert "Unicode" in read_rows(Folder(str(tmp_path)))["bad"]["reason"]


def test_regions_without_a_mask_are_refused_before_the_job(
    items: list[Item], editor: Editor, tmp_path: Path
) -> None:
    config = CONFIG.updated({"inversion": {"outside_uniformity": 0.5}})
    with pytest.raises(
        InputError, match="item set/0 has no mask, and inversion.outside_uniformity"
    ):
        run_tiny(editor, items[:1], tmp_path / "out", config=config)
    assert not (tmp_path / "out").exists()


def test_too_many_failures_end_a_job(editor: Editor, items: list[Item], tmp_path: Path) -> None:
    missing = [Item(str(n), f"{tmp_path}/{n}.png", ("a ball",)) for n in range(4)]
    with pytest.raises(TooManyFailures):
        run_tiny(editor, missing, tmp_path / "out", max_failures=1)
    assert len(JobFolder(Folder(str(tmp_path / "out"))).done()) >= 2


def test_a_check_reads_what_the_job_would(items: list[Item]) -> None:
    faults, cropped = check_items(items, measure(items), ".jpg", "auto")
    assert cropped == 0 and len(faults) == 1 and faults[0].startswith("set/5: ")
    assert len(check_items(items, measure(items), ".xyz", "auto")[0]) == 7
