"""Items to batches: neighbours that never change, and pictures that fail alone."""

import io
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock

import numpy as np
import pytest
from PIL import Image

from uam_jax.errors import InputError
from uam_jax.io.encoding import write_image
from uam_jax.jobs import batches as data
from uam_jax.jobs import originals, sizes
from uam_jax.jobs.batches import Batch, Bucket, Group, batches, group
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.sizes import measure
from uam_jax.runtime.host_memory import Budget


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Ten squares and four wide ones; one of each is no picture, one has a mask."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    made = []
    for number in range(14):
        wide = number % 4 == 3
        path = folder / f"{number}.png"
        pixels = rng.uniform(-1, 1, (16, 32 if wide else 16, 3)).astype(np.float32)
        write_image(path, pixels)
        made.append(Item(str(number), str(path), ("a cube",)))
    (folder / "2.png").write_text("no picture")
    write_image(
        folder / "mask.png",
        np.where(np.arange(16)[:, None, None] < 8, 1, -1) * np.ones((16, 16, 3), np.float32),
    )
    made[4] = Item("4", made[4].image, ("a cube",), mask=str(folder / "mask.png"))
    made[5] = Item("5", made[5].image, ("a cube", "a ball"))
    made[6] = Item("6", made[6].image, ("a cube",), settings=("guidance=3",))
    return made


def groups_of(items: list[Item], batch_per_device: int = 3):
    return group(items, measure(items), side=16, multiple=8, batch_per_device=batch_per_device)


def read(
    groups: list[Group], *, devices: int, batch_per_device: int, budget: Budget | None = None
) -> list[Batch]:
    how = {
        "devices": devices,
        "side": 16,
        "multiple": 8,
        "batch_per_device": batch_per_device,
        "budget": budget,
    }
    return list(batches(groups, **how))


def test_sizes_come_from_the_files_heads(items: list[Item]) -> None:
    seen = []
    sizes = measure(items, lambda: seen.append(1))
    assert len(seen) == 14 and sizes[0] == (16, 16) and sizes[3] == (16, 32)
    assert isinstance(sizes[2], InputError)
    [missing] = measure([Item("x", "none/at/all.png", ("a",))])
    assert isinstance(missing, InputError) and "no such file" in str(missing)


def test_a_group_shares_all_that_decides_its_program(items: list[Item]) -> None:
    groups = groups_of(items)
    assert sorted(item.id for each in groups for item in each.items) == sorted(
        item.id for item in items
    )
    plain = [each for each in groups if each.bucket == Bucket((16, 16))]
    assert [[item.id for item in each.items] for each in plain] == [
        ["0", "1", "8"],
        ["9", "10", "12"],
        ["13"],
    ]
    wide = [item.id for each in groups for item in each.items if each.bucket.size[1] > 16]
    assert wide == ["3", "7", "11"]
    assert {(each.bucket.masked, each.bucket.targets, each.bucket.settings) for each in groups} == {
        (False, 1, ()), (True, 1, ()), (False, 2, ()), (False, 1, ("guidance=3",)),
    }  # fmt: skip


def test_pictures_with_source_prompts_share_no_group_with_those_without(items: list[Item]) -> None:
    sources = {"0": "a cup", "8": " ", "12": "a cup"}
    given = [replace(item, source=sources.get(item.id)) for item in items]
    prompted = [each for each in groups_of(given) if each.bucket.prompted]
    assert [[item.id for item in each.items] for each in prompted] == [["0", "12"]]


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_batches_hold_every_item_once_in_its_own_slot(items: list[Item], devices: int) -> None:
    groups = groups_of(items)
    place = {item.id: slot for each in groups for slot, item in enumerate(each.items)}
    seen = []
    for batch in read(groups, devices=devices, batch_per_device=3):
        assert len(batch.items) == devices * 3 == len(batch.pixels)
        for slot, item in enumerate(batch.items):
            if item is None:
                assert batch.originals[slot] is None and not batch.pixels[slot].any()
                continue
            seen.append(item.id)
            assert slot % 3 == place[item.id]  # within its device's part, whatever the devices
            assert (batch.originals[slot] is None) == (item.id == "2"), batch.reasons[slot]
            assert bool(batch.reasons[slot]) == (item.id == "2")
    assert sorted(seen) == sorted(item.id for item in items)


def test_masks_come_at_both_sizes(items: list[Item]) -> None:
    [batch] = [
        each for each in read(groups_of(items), devices=1, batch_per_device=3) if each.bucket.masked
    ]
    assert batch.user_masks is not None and batch.originals[0] is not None
    _, mask = batch.originals[0].read()
    assert mask is not None and mask[:8].all() and not mask[8:].any()
    np.testing.assert_array_equal(batch.user_masks[0], mask)


def test_a_mask_of_another_size_fails_its_picture_alone(items: list[Item], tmp_path: Path) -> None:
    write_image(tmp_path / "m.png", np.ones((4, 4, 3), np.float32))
    bad = Item("bad", items[0].image, ("a",), mask=str(tmp_path / "m.png"))
    [batch] = read(groups_of([bad, items[4]]), devices=1, batch_per_device=3)
    assert "same size" in str(batch.reasons[0]) and batch.valid == [1]


def test_a_picture_of_another_shape_than_before_is_not_squeezed(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    write_image(path, np.zeros((16, 32, 3), np.float32))
    groups = groups_of([Item("x", str(path), ("a",))])
    write_image(path, np.zeros((32, 64, 3), np.float32), overwrite=True)  # the same shape
    assert read(groups, devices=1, batch_per_device=1)[0].valid == [0]
    write_image(path, np.zeros((32, 32, 3), np.float32), overwrite=True)
    [batch] = read(groups, devices=1, batch_per_device=1)
    assert batch.valid == []
    assert batch.reasons[0] == (
        f"{path}: its shape has changed since the job began; edit it in a new job"
    )


def test_too_narrow_a_picture_fails_alone(items: list[Item], tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", np.zeros((1, 400, 3), np.float32))
    narrow = Item("x", str(tmp_path / "x.png"), ("a",))
    both = [narrow, items[0]]
    [fault, size] = data.working_sizes(both, measure(both), side=16, multiple=8)
    assert "x.png: a picture of 400x1 pixels is too narrow" in str(fault) and size == (16, 16)
    groups = groups_of(both)
    assert [each.bucket.size for each in groups] == [(0, 0), (16, 16)]
    first, second = read(groups, devices=1, batch_per_device=3)
    assert first.valid == [] and first.reasons[0] == str(fault)
    assert second.valid == [0]


def test_a_server_that_only_sends_whole_files(
    items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.BytesIO):
        def seek(self, *_: int) -> int:
            raise ValueError("Cannot seek streaming HTTP file")

    content = Path(items[3].image).read_bytes()
    monkeypatch.setattr(sizes, "open_binary", lambda url: Stream(content))
    monkeypatch.setattr(sizes, "read_bytes", lambda url: content)
    assert measure([Item("x", "https://host/3.png", ("a",))]) == [(16, 32)]


def test_reading_in_threads_silences_its_own_notes_alone(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:])
    item, done = Item("x", str(tmp_path / "in.gif"), ("a",)), Event()

    def read_on() -> None:
        while not done.is_set():
            originals.read_item(item)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(read_on)
        for number in range(100):
            warnings.warn(f"number {number}", UserWarning, stacklevel=1)
            time.sleep(0.002)
        done.set()
    assert [str(each.message) for each in recwarn] == [f"number {number}" for number in range(100)]


@pytest.mark.parametrize(("batch_per_device", "parts"), [(3, [1, 2]), (5, [2, 3]), (6, [3, 3])])
def test_odd_halves_keep_every_slot(
    items: list[Item], batch_per_device: int, parts: list[int]
) -> None:
    [batch] = read(
        groups_of(items[8:11], batch_per_device), devices=2, batch_per_device=batch_per_device
    )
    halves = batch.halves()
    assert [half.batch_per_device for half in halves] == parts
    assert [len(half.items) for half in halves] == [2 * part for part in parts]
    assert halves[0].items + halves[1].items == batch.items


def test_halves_are_the_whole(items: list[Item]) -> None:
    [first, *_] = read(groups_of(items[7:10], 4), devices=2, batch_per_device=4)
    halves = first.halves()
    assert [half.batch_per_device for half in halves] == [2, 2]
    assert halves[0].items + halves[1].items == first.items
    assert isinstance(halves[0], Batch) and len(halves[0].pixels) == 4


def test_a_picture_alone_keeps_its_slot(items: list[Item]) -> None:
    [batch] = read(groups_of([*items[8:10], items[2]], 4), devices=1, batch_per_device=4)[1:]
    singles = batch.singles()
    assert [single.valid for single in singles] == [[0], [1]]
    for slot, single in enumerate(singles):
        assert single.batch_per_device == 4 and single.bucket == batch.bucket
        assert single.items[slot] is batch.items[slot] and single.items.count(None) == 3
        assert single.originals[slot] is batch.originals[slot]


def test_a_tight_bound_changes_nothing(items: list[Item]) -> None:
    free, tight = (
        read(groups_of(items), devices=2, batch_per_device=3, budget=Budget(total))
        for total in (10**9, 1)
    )
    for one, other in zip(free, tight, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(np.asarray(one.user_masks), np.asarray(other.user_masks))
        assert one.reasons == other.reasons and one.items == other.items
        for a, b in zip(one.originals, other.originals, strict=True):
            assert (a is None) == (b is None)
            if a and b:
                assert a.content and b.content is None  # which is read again
                np.testing.assert_array_equal(a.read()[0].pixels, b.read()[0].pixels)


def test_no_more_pictures_are_decoded_at_a_time_than_the_bound_allows(
    items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, held, most, decode = Lock(), [0], [0], data.decode_files

    def slow(item: Item, content: tuple[bytes, bytes]) -> object:
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])
        time.sleep(0.005)
        with lock:
            held[0] -= 1
        return decode(item, content)

    monkeypatch.setattr(data, "decode_files", slow)
    square = [Item(f"{n}", items[0].image, ("a cube",)) for n in range(12)]
    for total, expected in ((2.5, 2), (0.5, 1)):
        most[0] = 0
        budget = Budget(int(total * 16 * 16 * data.DECODING))
        assert len(read(groups_of(square, 6), devices=1, batch_per_device=6, budget=budget)) == 2
        assert most[0] == expected


def test_batches_are_read_ahead_but_few(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    read_files = data.read_files
    monkeypatch.setattr(data, "read_files", lambda item: seen.append(item.id) or read_files(item))
    many = [Item(f"{n}", items[0].image, ("a cube",)) for n in range(20)]
    got = batches(groups_of(many, 2), devices=1, side=16, multiple=8, batch_per_device=2)
    next(got)
    time.sleep(0.3)
    assert len(seen) == 6  # the one that is used, and two
    got.close()
    assert len(seen) == 6


def test_a_picture_that_memory_cannot_hold_fails_alone_and_before_it_is_decoded(
    items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(originals, "free_bytes", lambda: 16 * 20 * 64)
    groups = groups_of([items[0], items[3]])  # 16 x 16 and 16 x 32
    large, good = read(groups, devices=1, batch_per_device=3, budget=Budget(10**9))
    assert good.valid == [0] and large.valid == []
    assert "32x16 pixels take about 0.0 GB of memory" in str(large.reasons[0])
    assert "--retry-failed" in str(large.reasons[0])


def test_a_file_that_is_read_again_must_be_the_same(items: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    write_image(path, np.zeros((16, 16, 3), np.float32))
    [batch] = read(
        groups_of([Item("x", str(path), ("a",))]), devices=1, batch_per_device=1, budget=Budget(1)
    )
    write_image(path, np.ones((16, 16, 3), np.float32), overwrite=True)
    assert batch.originals[0] is not None
    with pytest.raises(InputError, match="has changed while it was edited"):
        batch.originals[0].read()


def test_the_estimate_grows_with_pictures_up_to_the_bound(items: list[Item]) -> None:
    groups = groups_of([Item(f"{n}", items[0].image, ("a cube",)) for n in range(8)], 4)

    def estimate(side: int, budget: int) -> int:
        return data.host_bytes(groups, {f"{n}": (side, side) for n in range(8)}, 1, budget)

    held = estimate(0, 0)
    assert estimate(1000, 10**9) - held > 4 * 1000**2 * 36
    assert estimate(4000, 10**9) - estimate(4000, 0) < 1.3e9
    assert (
        estimate(4000, 0) - held == 4000**2 * 64
    )  # one picture needs that much, whatever the bound
