"""A data-set job on a tiny model: the same bytes however it was cut up, and failures that stay alone."""

import errno
import json
import os
import uuid
from dataclasses import asdict, replace
from pathlib import Path

import fsspec
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
from tiny import tiny_editor

from uam_jax import EditConfig, Editor, InputError
from uam_jax.engine import programs
from uam_jax.engine.cache import InversionCache
from uam_jax.engine.parallel import Devices, Program
from uam_jax.io.encoding import write_image
from uam_jax.io.images import read_image, resize
from uam_jax.io.storage import Folder
from uam_jax.jobs import job as run
from uam_jax.jobs import worker
from uam_jax.jobs.batches import measure
from uam_jax.jobs.job import finish_job, run_job
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.ledger import read_rows
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.plan import JobPlan, Settings, check_items, plan_job
from uam_jax.jobs.runner import Progress, TooManyFailures
from uam_jax.jobs.table import COUNTS, FLAGS, NUMBERS, TEXTS
from uam_jax.runtime.host_memory import Budget

CONFIG = EditConfig().updated(
    {"steps": 3, "guidance": 3.0, "mask": {"t_mask": 400, "radius": 0}, "control": "none"}
)


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    return tiny_editor(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Seven pictures of two sizes; one has two targets, one is damaged."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    made = []
    for number in range(7):
        pixels = rng.uniform(-1, 1, (12, 12, 3)).astype(np.float32)
        path = folder / f"{number}.{'jpg' if number == 3 else 'png'}"
        write_image(path, pixels)
        made.append(Item(f"set/{number}", str(path), ("a blue ball",)))
    made[2] = Item("set/2", made[2].image, ("a blue ball", "a cube"))
    Path(made[5].image).write_bytes(Path(made[5].image).read_bytes()[:200])
    return made


def job(editor: Editor, items: list[Item], out: object, **options: object) -> Progress:
    devices = options.pop("on", 1)
    config = options.pop("config", CONFIG)
    settings = Settings(
        "tiny", editor.weights_hash, editor.model_hash, "float32", config.to_dict(), 8, 4, 2
    )
    plan = plan_job(items, measure(items), config, settings)
    if devices != 1:
        editor = editor.on(Devices.local(devices))
    return run_job(editor, plan, JobFolder(Folder(str(out))), devices=devices, **options)


def files(folder: Path) -> dict[str, bytes]:
    found = (
        path
        for part in ("images", "masks", "originals", "errors")
        for path in (folder / part).rglob("*.*")
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def whole(editor: Editor, items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    progress = job(editor, items, folder)
    assert (progress.done, progress.failed) == (8, 1)
    return folder


def test_results_lie_under_their_ids_with_their_rows(whole: Path, items: list[Item]) -> None:
    names = {f"set/{number}" for number in (0, 1, "2-1", "2-2", 3, 4, 6)}
    made = files(whole)
    assert {name.split(".")[0] for name in made if name.startswith("images")} == {
        f"images/{name}" for name in names
    }
    assert "images/set/3.jpg" in made and "originals/set/2.jpg" in made
    rows = read_rows(Folder(str(whole)))
    assert rows["set/2-2"]["target"] == "a cube" and rows["set/2-2"]["item"] == "set/2"
    assert rows["set/5"]["status"] == "failed" and "damaged or truncated" in rows["set/5"]["reason"]
    good = rows["set/0"]
    assert (good["size"], good["worked_at"], good["batch"]) == ("12x12", "8x8", 2)
    assert good["config"] == CONFIG.fingerprint() and good["weights"] == "tiny"
    assert 0 < good["mask_share"] <= 1
    assert good["error"] in made and 0 <= good["confidence"] <= 1
    assert "cannot reproduce" in good["review"]  # a random model knows no picture
    assert rows["set/5"]["confidence"] is None and rows["set/5"]["review"] is None
    first, second = (read_image(whole / f"images/set/2-{n}.png").pixels for n in (1, 2))
    assert np.abs(first - second).max() > 0.01


@pytest.mark.parametrize("way", ["devices", "shards", "resumed"])
def test_however_it_is_cut_up_the_bytes_are_the_same(
    editor: Editor, items: list[Item], whole: Path, tmp_path: Path, way: str
) -> None:
    if way == "devices":
        job(editor, items, tmp_path, on=2)
    elif way == "shards":
        job(editor, items, tmp_path, shard=(1, 2))
        assert 0 < len(read_rows(Folder(str(tmp_path)))) < 8
        job(editor, items, tmp_path, shard=(0, 3))
    if way != "devices":  # what is left, in one process; some rows and files lost on the way
        job(editor, items, tmp_path, max_failures=9)
        ledgers = sorted(tmp_path.glob("results*.jsonl"))
        (tmp_path / "images/set/1.png").unlink()
        for ledger in ledgers:
            lines = ledger.read_text().splitlines(keepends=True)
            ledger.write_text("".join(line for line in lines if '"id": "set/1"' not in line))
        progress = job(editor, items, tmp_path)
        assert progress.done == 1
    assert files(tmp_path) == files(whole)
    assert job(editor, items, tmp_path).done == 0


def test_a_tight_bound_on_memory_changes_no_byte(
    editor: Editor, items: list[Item], whole: Path, tmp_path: Path
) -> None:
    job(editor, items, tmp_path, budget=Budget(1))
    assert files(tmp_path) == files(whole)


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
        job(editor, items, tmp_path)
    monkeypatch.undo()
    assert 0 <= len(read_rows(Folder(str(tmp_path)))) < 8
    job(editor, items, tmp_path)
    assert files(tmp_path) == files(whole) and len(read_rows(Folder(str(tmp_path)))) == 8


def test_an_interrupted_end_can_be_repeated(
    editor: Editor, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(editor, items[:2], tmp_path)
    folder = JobFolder(Folder(str(tmp_path)))

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "render_report", fail)
        with pytest.raises(KeyboardInterrupt):
            finish_job(folder)
    assert len(read_rows(folder.folder)) == 2
    assert finish_job(folder)["ok"] == 2 and (tmp_path / "index.html").exists()


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
    all_of_them = [each for each in vars(programs).values() if isinstance(each, Program)]

    def compiled() -> int:
        return sum(each.compilations for each in all_of_them)

    settings = Settings(
        "tiny", editor.weights_hash, editor.model_hash, "float32", config.to_dict(), 8, 4, 2
    )
    plan = plan_job(mixed, measure(mixed), config, settings)
    expected = plan.describe(editor, 0)["programs"]
    assert expected == 2 + 2 * 6 + 1  # text; for each size 6; for the other rule an edit
    for each in all_of_them:
        each.clear_cache()
    assert job(editor, mixed, tmp_path / "out", config=config).failed == 0
    assert compiled() == expected
    others = [replace(item, targets=("a red ball",)) for item in mixed[::-1]]
    assert job(editor, others, tmp_path / "again", config=config).failed == 0
    assert compiled() == expected


def test_what_was_not_edited_keeps_its_pixels(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    mask = np.full((12, 12, 3), -1, np.float32)
    mask[:6] = 1
    write_image(tmp_path / "mask.png", mask)
    masked = [Item("a", items[0].image, ("a blue ball",), mask=str(tmp_path / "mask.png"))]
    job(editor, masked, tmp_path / "out", config=CONFIG.updated({"mask": {"user": "replace"}}))
    before = read_image(items[0].image).pixels
    after = read_image(tmp_path / "out/images/a.png").pixels
    np.testing.assert_array_equal(after[6:], before[6:])
    assert np.abs(after[:6] - before[:6]).max() > 0.01


def test_a_result_that_browsers_do_not_show_has_a_copy_for_the_page(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    scan = tmp_path / "scan.tif"
    write_image(scan, read_image(items[0].image).pixels)
    out = tmp_path / "out"
    job(editor, [items[0], Item("scan", str(scan), ("a blue ball", "a cube"))], out)
    rows = read_rows(Folder(str(out)))
    assert rows["set/0"]["shown"] is None
    for name in ("scan-1", "scan-2"):
        assert rows[name]["output"] == f"images/{name}.tif"
        made = [read_image(out / rows[name][kind]).pixels for kind in ("output", "shown")]
        np.testing.assert_allclose(*made, atol=0.25)  # one is a JPEG


def test_what_is_said_of_a_result_is_of_its_files(whole: Path) -> None:
    for row in read_rows(Folder(str(whole))).values():
        if row["status"] == "ok":
            mask = (read_image(whole / row["mask"]).pixels[..., 0] + 1) / 2
            assert row["mask_share"] == pytest.approx(mask.mean(), abs=1 / 255)


def test_numbers_that_are_not_finite_fail_their_picture_alone(
    editor: Editor, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Editor.decode
    monkeypatch.setattr(Editor, "decode", lambda self, z: decode(self, z).at[1].set(jnp.nan))
    job(editor, items[:2], tmp_path)
    rows = read_rows(Folder(str(tmp_path)))
    assert rows["set/0"]["status"] == "ok"
    assert rows["set/1"]["status"] == "failed" and "not finite" in rows["set/1"]["reason"]
    assert not (tmp_path / "images/set/1.png").exists()
    monkeypatch.undo()
    assert job(editor, items[:2], tmp_path).done == 0
    assert job(editor, items[:2], tmp_path, retry_failed=True).done == 1
    assert read_rows(Folder(str(tmp_path)))["set/1"]["status"] == "ok"


def test_a_kept_inversion_is_not_made_again(
    editor: Editor, items: list[Item], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = InversionCache(tmp_path / "cache")
    job(editor, items[:5], tmp_path / "first", cache=cache)
    calls = []
    run = Program.__call__
    monkeypatch.setattr(
        Program, "__call__", lambda self, *a, **k: calls.append(self.__name__) or run(self, *a, **k)
    )
    other = [Item(item.id, item.image, ("a red cube",)) for item in items[:2]]
    job(editor, other, tmp_path / "second", cache=cache)
    assert "invert" not in calls and "edit" in calls
    calls.clear()
    job(editor, items[2:3], tmp_path / "third")  # two targets, one inversion of each kind
    assert calls.count("invert") == 2 and calls.count("edit") == 2
    monkeypatch.undo()

    job(editor, items[:5], tmp_path / "again", cache=cache)
    assert files(tmp_path / "again") == files(tmp_path / "first")
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.write_bytes(b"damaged")
    job(editor, items[:2], tmp_path / "mended", cache=cache)
    assert files(tmp_path / "mended").items() <= files(tmp_path / "first").items()


def test_a_kept_inversion_is_of_one_picture_whatever_its_batch(
    editor: Editor, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its region too: one picture's is not found by the masks of those beside it."""
    masked = []
    for number, item in enumerate(items[:2]):
        mask = -np.ones((12, 12, 3), np.float32)
        mask[: 4 + 4 * number] = 1
        write_image(tmp_path / f"mask{number}.png", mask)
        source, own = f"a cube {number}", f"{tmp_path}/mask{number}.png"
        masked.append(Item(item.id, item.image, item.targets, source=source, mask=own))
    config = CONFIG.updated(
        {"inversion": {"outside_uniformity": 0.5}, "source": {"condition": "prompt"}}
    )
    cache = InversionCache(tmp_path / "cache")
    job(editor, masked, tmp_path / "first", cache=cache, config=config)
    calls = []
    run = Program.__call__
    monkeypatch.setattr(
        Program, "__call__", lambda self, *a, **k: calls.append(self.__name__) or run(self, *a, **k)
    )
    job(editor, masked[::-1], tmp_path / "turned", cache=cache, config=config)
    job(editor, masked[1:], tmp_path / "alone", cache=cache, config=config)
    assert "invert" not in calls and "edit" in calls
    assert files(tmp_path / "turned") == files(tmp_path / "first")
    assert files(tmp_path / "alone").items() <= files(tmp_path / "first").items()


def test_a_cache_knows_shapes_and_keeps_no_nonsense(
    editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = InversionCache(tmp_path / "cache")
    grey = []
    for number, shape in enumerate([(8, 16), (16, 8), (8, 16)]):
        write_image(tmp_path / f"{number}.png", np.zeros((*shape, 3), np.float32))
        grey.append(Item(f"{number}", f"{tmp_path}/{number}.png", ("a blue ball",)))
    for out in ("first", "second"):
        assert job(editor, grey, tmp_path / out, cache=cache).failed == 0
    assert files(tmp_path / "first") == files(tmp_path / "second")

    empty = InversionCache(tmp_path / "empty")
    encode = Editor.encode
    monkeypatch.setattr(Editor, "encode", lambda self, x: encode(self, x).at[0].set(jnp.nan))
    assert job(editor, grey[::2], tmp_path / "third", cache=empty).failed == 1
    kept = len(list((tmp_path / "empty").rglob("*.safetensors")))
    assert kept == 2  # both kinds of inversion, of the other picture


def test_a_full_cache_forgets_what_was_used_longest_ago(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    cache = InversionCache(tmp_path / "cache", max_bytes=2000)
    job(editor, items[:5], tmp_path / "out", cache=cache)
    held = [file.stat().st_size for file in (tmp_path / "cache").rglob("*.safetensors")]
    assert 0 < sum(held) <= 2000


def test_inputs_and_outputs_may_be_remote(editor: Editor, items: list[Item], whole: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    for item in items:
        with fsspec.open(f"{root}/in/{Path(item.image).name}", "wb") as file:
            file.write(Path(item.image).read_bytes())
    remote = [Item(item.id, f"{root}/in/{Path(item.image).name}", item.targets) for item in items]
    job(editor, remote, f"{root}/out", shard=(0, 2))
    job(editor, remote, f"{root}/out")
    summary = finish_job(JobFolder(Folder(f"{root}/out")))
    assert (summary["ok"], summary["failed"], summary["missing"]) == (7, 1, 0)
    out = Folder(f"{root}/out")
    for name, content in files(whole).items():
        assert out.read(name) == content, name
    assert out.read("index.html") and out.read("results.parquet")


def test_an_error_of_one_picture_is_its_own(
    editor: Editor, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = worker.encode_image

    def fail(path: str, *arguments: object) -> bytes:
        if path == "images/set/0.png":
            raise ValueError("EXIF data is too long")
        return encode(path, *arguments)

    monkeypatch.setattr(worker, "encode_image", fail)
    job(editor, items[:2], tmp_path)
    rows = read_rows(Folder(str(tmp_path)))
    assert (rows["set/0"]["status"], rows["set/1"]["status"]) == ("failed", "ok")
    assert "EXIF data is too long" in rows["set/0"]["reason"] and rows["set/0"]["output"] is None


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
    assert job(editor, items, tmp_path).failed == 2
    assert [each.compilations for each in programs_of] == before
    rows = read_rows(Folder(str(tmp_path)))
    assert rows["set/1"]["reason"].startswith("TypeError: body_fun")
    made, expected = files(tmp_path), files(whole)
    assert made == {name: data for name, data in expected.items() if "/set/1." not in name}


def test_other_prompts_under_the_same_ids_are_refused(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    job(editor, items[:2], tmp_path)
    folder = JobFolder(Folder(str(tmp_path)))

    def plan(items: list[Item]) -> JobPlan:
        settings = Settings("tiny", "w", "h", "float32", CONFIG.to_dict(), 8, 4, 2)
        return plan_job(items, [(12, 12)] * len(items), CONFIG, settings)

    folder.refuse_changed(plan(items))
    folder.refuse_changed(plan([replace(items[0], image="moved/0.png")]))
    for key, change in {
        "target": {"targets": ("a red ball",)},
        "given_mask": {"mask": "m.png"},
        "config": {"settings": ("guidance=4",)},
        "image": {"image": "set/other.png"},
    }.items():
        with pytest.raises(InputError, match=f"holds set/1 with {key} .*--allow"):
            folder.refuse_changed(plan([items[0], replace(items[1], **change)]))
    with pytest.warns(UserWarning, match="source prompt is ignored"):
        other = plan([items[0], replace(items[1], source="a cube")])
    with pytest.raises(InputError, match=r"holds set/1 with source .*--allow"):
        folder.refuse_changed(other)


def test_merging_tells_what_is_missing(editor: Editor, items: list[Item], tmp_path: Path) -> None:
    folder = JobFolder(Folder(str(tmp_path)))
    job(editor, items, tmp_path, shard=(0, 2))
    summary = finish_job(folder)
    assert summary["missing"] == 8 - summary["ok"] - summary["failed"] > 0
    assert summary["first_missing"][0].startswith("set/")
    job(editor, items, tmp_path, shard=(1, 2))
    assert finish_job(folder)["missing"] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("results.*")}
    finish_job(folder)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("results.*")}
    order = pyarrow.parquet.read_table(tmp_path / "results.parquet").column("id").to_pylist()
    assert order == [name for item in items for name in item.results]
    with pytest.raises(InputError, match="holds no job"):
        finish_job(JobFolder(Folder(str(tmp_path / "images"))))


def test_other_settings_are_refused(editor: Editor, items: list[Item], tmp_path: Path) -> None:
    folder = JobFolder(Folder(str(tmp_path)))
    other = Settings("tiny", "weights", "hash", "float32", CONFIG.to_dict(), 8, 4, 2)
    folder.refuse_other(other)  # a new job
    job(editor, items[:1], tmp_path)
    with pytest.raises(InputError, match=r"weights was \"tiny\", is \"weights\".*--out, or wait"):
        folder.refuse_other(other, ", or wait")


def test_a_job_goes_on_by_the_model_not_by_its_name(editor: Editor, tmp_path: Path) -> None:
    config = CONFIG.to_dict()
    folder = JobFolder(Folder(str(tmp_path)))

    def settings(name: str, model_hash: str) -> Settings:
        return Settings(name, "tiny", model_hash, "float32", config, 8, 4, 2)

    begun = settings("m", "tiny-aaaaaa-bbbbbb-cccccc")
    Folder(str(tmp_path)).write("job.json", json.dumps(asdict(begun)).encode())
    for name in ("./m", "m/", "/somewhere/m"):
        folder.refuse_other(settings(name, begun.model_hash))
    with pytest.raises(InputError, match=r"model_hash was .*, with other scheduler[);]"):
        folder.refuse_other(settings("m", "tiny-aaaaaa-dddddd-cccccc"))
    assert folder.settings["model"] == "m"


def test_settings_of_an_item_are_its_own(
    editor: Editor, items: list[Item], whole: Path, tmp_path: Path
) -> None:
    own = [items[0], Item("own", items[0].image, ("a blue ball",), settings=("guidance=8",))]
    job(editor, own, tmp_path)
    rows = read_rows(Folder(str(tmp_path)))
    assert rows["own"]["config"] == CONFIG.updated({"guidance": 8.0}).fingerprint()
    made = files(tmp_path)
    assert made["images/own.png"] != made["images/set/0.png"]
    with pytest.raises(InputError, match="item own: --set guidanse=8: unknown"):
        job(editor, [Item("own", items[0].image, ("a",), settings=("guidanse=8",))], tmp_path)
    with pytest.raises(InputError, match="item set/0 has no source prompt"):
        job(editor, items[:1], tmp_path, config=CONFIG.updated({"source": {"condition": "prompt"}}))


def test_what_a_batch_may_not_be_asked_fails_that_batch_alone(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    bad = Item("bad", items[0].image, ("half a \ud83d",))  # a manifest would refuse it
    progress = job(editor, [bad, items[2]], tmp_path)
    assert (progress.done, progress.failed) == (3, 1)
    assert "Unicode" in read_rows(Folder(str(tmp_path)))["bad"]["reason"]


def test_regions_without_a_mask_are_refused_before_the_job(
    items: list[Item], editor: Editor, tmp_path: Path
) -> None:
    config = CONFIG.updated({"inversion": {"outside_uniformity": 0.5}})
    with pytest.raises(
        InputError, match="item set/0 has no mask, and inversion.outside_uniformity"
    ):
        job(editor, items[:1], tmp_path / "out", config=config)
    assert not (tmp_path / "out").exists()


def test_too_many_failures_end_a_job(editor: Editor, items: list[Item], tmp_path: Path) -> None:
    missing = [Item(str(n), f"{tmp_path}/{n}.png", ("a ball",)) for n in range(4)]
    with pytest.raises(TooManyFailures):
        job(editor, missing, tmp_path / "out", max_failures=1)
    assert len(JobFolder(Folder(str(tmp_path / "out"))).done()) >= 2


def test_a_check_reads_what_the_job_would(items: list[Item]) -> None:
    faults = check_items(items, measure(items), ".jpg")
    assert len(faults) == 1 and faults[0].startswith("set/5: ")
    assert len(check_items(items, measure(items), ".xyz")) == 7


def test_the_job_says_what_it_was_begun_with(whole: Path, items: list[Item]) -> None:
    told = json.loads((whole / "job.json").read_text())
    assert EditConfig().updated(told["config"]) == CONFIG and told["micro"] == 2
    assert [json.loads(line) for line in (whole / "expected.txt").read_text().splitlines()] == [
        name for item in items for name in item.results
    ]


def test_results_have_the_names_of_their_pictures(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    """Where no other result could have them, also on a disk to which case means nothing."""
    names = ["a.jpg", "b", "B", "c~1a2b3c4d.jpg"]
    images = [items[3].image, items[0].image, items[1].image, items[3].image]
    chosen = [Item(name, image, ("a ball",)) for name, image in zip(names, images, strict=True)]
    job(editor, chosen, tmp_path)
    made = [path.name for path in (tmp_path / "images").iterdir()]
    assert {"a.jpg", "c~1a2b3c4d.jpg"} < {*made} and len({name.lower() for name in made}) == 4
    rows = read_rows(Folder(str(tmp_path))).values()
    assert {row["output"] for row in rows} == {f"images/{name}" for name in made}
    assert all(
        (tmp_path / row[key]).exists() for row in rows for key in ("mask", "preview", "error")
    )
    assert {*next(iter(rows))} == {*TEXTS, *NUMBERS, *COUNTS, *FLAGS}
