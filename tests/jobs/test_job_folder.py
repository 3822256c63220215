"""The folder of a job: sizes and settings that all processes agree on, also where they start together."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, local

import numpy as np
import pytest

from uam_jax import EditConfig, InputError
from uam_jax.io.encoding import write_image
from uam_jax.io.storage import Folder
from uam_jax.jobs import sizes as size_module
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.ledger import Ledger
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.plan import JobPlan, JobSettings, plan_job
from uam_jax.jobs.sizes import Size

SETTINGS = JobSettings("tiny", "w", "h", "float32", EditConfig().to_dict(), 8, 4, 2)
PROCESSES = 8


def pictures(folder: Path, count: int) -> list[Item]:
    folder.mkdir(exist_ok=True)
    made = [Item(f"{n}", str(folder / f"{n}.png"), ("a cube",)) for n in range(count)]
    for item in made:
        write_image(item.image, np.zeros((8, 8, 3), np.float32))
    return made


def plan(
    items: list[Item], sizes: list[Size | InputError], settings: JobSettings = SETTINGS
) -> JobPlan:
    return plan_job(items, sizes, EditConfig(), settings)


def test_groups_stay_when_pictures_come_and_go(tmp_path: Path) -> None:
    items = pictures(tmp_path / "in", 6)
    folder = JobFolder(Folder(str(tmp_path)))
    assert folder.sizes.measure(items)[0] == (8, 8)
    absent = [Item("late", f"{tmp_path}/late.png", ("a ball",)), *items]
    sizes = folder.sizes.measure(absent)
    assert isinstance(sizes[0], InputError)
    folder.sizes.agree(absent, sizes)
    write_image(tmp_path / "late.png", np.zeros((8, 8, 3), np.float32))
    gone = [replace(item, image=f"{tmp_path}/gone.png") for item in absent[1:]]
    again = folder.sizes.measure([absent[0], *gone])
    assert isinstance(again[0], InputError) and again[1:] == sizes[1:]
    assert folder.sizes.measure(absent, again=True)[0] == (8, 8)


@pytest.mark.parametrize("again", [False, True])
def test_processes_that_start_together_agree_on_all_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Each finds another part of the pictures unreadable for a moment, as an overloaded server makes them."""
    items = [Item(f"{n}", f"{n}.png", ("a cube",)) for n in range(40)]
    begun, start, of = Folder(str(tmp_path)), Barrier(PROCESSES), local()
    if again:  # a job that goes on, in which some could not be read and some are new
        begun.write(
            "sizes.json",
            json.dumps({f"{n}": None if n % 2 else [8, 8] for n in range(30)}).encode(),
        )

    def measure(new: list[Item], seen: object) -> list[Size | InputError]:
        def size(item: Item) -> Size | InputError:
            return InputError("busy") if of.random.random() < 0.5 else (8, 8 + 4 * int(item.id))

        return [size(item) for item in new]

    monkeypatch.setattr(size_module, "measure", measure)

    def process(number: int) -> JobPlan:
        of.random = random.Random(number)
        job = JobFolder(Folder(str(tmp_path)))
        start.wait()
        sizes = job.sizes.measure(items, again=again)
        start.wait()
        return job.begin(plan(items, sizes))

    with ThreadPoolExecutor(PROCESSES) as pool:
        plans = list(pool.map(process, range(PROCESSES)))
    assert all(each.groups == plans[0].groups for each in plans)
    named = [item.id for number in range(PROCESSES) for group in plans[number].part((number, PROCESSES))
             for item in group.items]  # fmt: skip
    assert sorted(named) == sorted(item.id for item in items)
    later = JobFolder(Folder(str(tmp_path)))
    assert plan(items, later.sizes.measure(items)).groups == plans[0].groups
    if again:
        assert all(size == (8, 8) for size in plans[0].sizes[:30:2])


def test_of_processes_with_different_settings_one_begins_the_job(tmp_path: Path) -> None:
    items, start = pictures(tmp_path / "in", 3), Barrier(PROCESSES)

    def process(number: int) -> str:
        job = JobFolder(Folder(str(tmp_path / "out")))
        own = plan(items, job.sizes.measure(items), replace(SETTINGS, batch_per_device=1 + number))
        start.wait()
        try:
            job.begin(own)
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(PROCESSES) as pool:
        message = list(pool.map(process, range(PROCESSES)))
    assert message.count("") == 1 and all(
        "other settings (batch_per_device was" in each for each in message if each
    )
    assert JobFolder(Folder(str(tmp_path / "out"))).settings[
        "batch_per_device"
    ] == 1 + message.index("")


def test_another_setting_may_be_allowed(tmp_path: Path) -> None:
    items, job = pictures(tmp_path / "in", 1), JobFolder(Folder(str(tmp_path / "out")))
    sizes = job.sizes.measure(items)
    job.begin(plan(items, sizes))
    other = plan(items, sizes, replace(SETTINGS, batch_per_device=1))
    job.begin(other, allow_change=True)
    assert job.settings["batch_per_device"] == 1 and job.expected == ["0"]


@pytest.mark.parametrize("name", ["job.json", "sizes.json"])
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_damaged_file_of_the_job_is_reported(tmp_path: Path, name: str, content: bytes) -> None:
    items, job = pictures(tmp_path / "in", 1), JobFolder(Folder(str(tmp_path)))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} is damaged: choose another --out, or remove"):
        job.begin(plan(items, job.sizes.measure(items)))


def test_a_data_set_that_has_moved_goes_on(tmp_path: Path) -> None:
    """Pictures and masks lie elsewhere, or their URLs are signed anew; another name is another one."""
    folder = JobFolder(Folder(str(tmp_path)))
    begun = Item("a", "https://h/1/a.png?X-Amz-Signature=1/2", ("x",), mask="/old/place/m.png")
    config = EditConfig()
    row = {
        "id": "a", "status": "ok", "image": begun.image, "given_mask": begun.mask, "target": "x",
        "source": None, "config": config.fingerprint(),
    }  # fmt: skip
    with Ledger(folder.folder) as ledger:
        ledger.add([row])

    def check(**changes: str) -> None:
        folder.refuse_changed(plan([replace(begun, **changes)], [(8, 8)]))

    check(image="https://h/1/a.png?X-Amz-Signature=3/4", mask="https://h/masks/m.png?sig=5")
    check(image="/new/a.png", mask="/new/m.png")
    for change in ({"mask": "/old/place/n.png"}, {"image": "https://h/1/b.png"}):
        with pytest.raises(InputError, match="[nb].png'.*--allow-change"):
            check(**change)


def test_results_under_the_ids_of_an_older_version_are_reported_before_they_are_made_again(
    tmp_path: Path,
) -> None:
    folder = JobFolder(Folder(str(tmp_path)))
    old = {"status": "ok", "image": "in/photo.jpg", "target": "a cube", "id": "photo"}
    gone = {**old, "id": "gone", "image": "in/gone.jpg"}
    failed = {**old, "id": "failed", "image": "in/failed.jpg", "status": "failed"}
    with Ledger(folder.folder) as ledger:
        ledger.add([old, gone, failed])
    item = Item("photo.jpg", "in/photo.jpg", ("a cube", "a ball"))
    job = plan([item], [(8, 8)])
    with pytest.raises(InputError, match="holds 1 results .*photo is photo.jpg-1.*--allow-change"):
        folder.refuse_changed(job)
    folder.refuse_changed(plan([replace(item, image="in/failed.jpg")], [(8, 8)]))
    for other in (replace(item, image="in/b.jpg"), replace(item, targets=("a cone", "a ball"))):
        folder.refuse_changed(plan([other], [(8, 8)]))
    with Ledger(folder.folder) as ledger:  # it was made again, as the person wanted
        ledger.add([{**old, "id": "photo.jpg-1"}])
    folder.refuse_changed(job)
