"""A small region of a large picture is edited as a picture of its own, and everything around it stays as it was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_job import CONFIG, plan_tiny, run_tiny

from uam_jax import Edit, Editor, InputError, edit_picture
from uam_jax.io.encoding import write_image
from uam_jax.io.focus import Crop
from uam_jax.io.images import read_image
from uam_jax.io.storage import Folder
from uam_jax.jobs.batches import batches
from uam_jax.jobs.ledger import read_rows
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.plan import check_items, plan_job
from uam_jax.jobs.single import edit_file, plan_files
from uam_jax.jobs.sizes import measure, working_sizes

TARGETS = ["a blue ball", "a cube"]
CROP = Crop(8, 12, 12, 18)


def photograph() -> np.ndarray:
    values = np.random.default_rng(1).integers(0, 256, (40, 60, 3))
    return values.astype(np.float32) / np.float32(127.5) - 1


def small_mask() -> np.ndarray:
    mask = np.zeros((40, 60), np.float32)
    mask[11:17, 17:25] = 1
    return mask


@pytest.mark.parametrize("preserve", [pytest.param("pixels", marks=pytest.mark.long), "latent"])
def test_the_edit_of_a_crop_is_that_of_a_picture_of_its_own(editor: Editor, preserve: str) -> None:
    config = CONFIG.updated({"preserve": preserve, "mask": {"user": "replace"}})
    picture, mask = photograph(), small_mask()
    edit = edit_picture(editor, picture, TARGETS, mask=mask, config=config)
    assert edit.crop == CROP
    alone = edit_picture(
        editor, CROP.cut(picture), TARGETS, mask=CROP.cut(mask), config=config, focus="off"
    )
    results = [edit.deliver(target) for target in range(2)]
    same = edit_picture(editor, picture, TARGETS, mask=mask > 0, config=config)
    np.testing.assert_array_equal(same.deliver().pixels, results[0].pixels)
    for target, result in enumerate(results):
        made = CROP.cut(result.pixels)
        inside = CROP.cut(mask) > 0
        if preserve == "pixels":
            np.testing.assert_array_equal(made, alone.deliver(target).pixels)
        assert np.abs(made - CROP.cut(picture))[inside].max() > 0.01
        np.testing.assert_array_equal(result.pixels[mask == 0], picture[mask == 0])
    assert np.abs(results[0].pixels - results[1].pixels).max() > 0.001


def test_without_a_mask_or_with_a_large_one_the_whole_picture_is_edited(editor: Editor) -> None:
    large = np.zeros((40, 60), np.float32)
    large[:30, :40] = 1
    for mask in (None, large):
        edit = edit_picture(editor, photograph(), TARGETS[0], mask=mask, config=CONFIG)
        whole = edit_picture(
            editor, photograph(), TARGETS[0], mask=mask, config=CONFIG, focus="off"
        )
        assert edit.crop == Crop(0, 0, 40, 60) and edit.deliver().crop is None
        np.testing.assert_array_equal(edit.deliver().pixels, whole.deliver().pixels)


def test_bad_arguments_are_told(editor: Editor) -> None:
    for options, message in (
        ({"focus": "on"}, "has no mask"),
        ({"mask": np.ones((40, 40), np.float32)}, "40x40 pixels, its picture 60x40"),
    ):
        with pytest.raises(InputError, match=message):
            edit_picture(editor, photograph(), TARGETS, config=CONFIG, **options)


def written(folder: Path, name: str, pixels: np.ndarray) -> Path:
    write_image(folder / name, pixels)
    return folder / name


def as_picture(mask: np.ndarray) -> np.ndarray:
    return np.repeat(mask[..., None] * 2 - 1, 3, axis=-1)


def test_files_of_every_kind_keep_what_the_edit_does_not_touch(
    editor: Editor, tmp_path: Path
) -> None:
    values = np.random.default_rng(2).integers(0, 65536, (40, 60))
    grey, opacity = values.astype(np.uint16), (values % 256).astype(np.uint8)
    colour = np.dstack([opacity, opacity.T.reshape(40, 60), 255 - opacity])
    turned = Image.Exif()
    turned[0x0112], turned[0x010F] = 6, "a maker"
    pictures = {
        "grey16.png": (Image.fromarray(grey), {}),
        "alpha.png": (Image.fromarray(np.dstack([colour, opacity])), {}),
        "turned.tif": (Image.fromarray(np.rot90(colour).copy()), {"exif": turned}),
    }
    mask = written(tmp_path, "mask.png", as_picture(small_mask()))
    for name, (image, options) in pictures.items():
        image.save(tmp_path / name, **options)
        config = CONFIG.updated({"mask": {"user": "replace"}})
        [plan] = plan_files([tmp_path / name], str(tmp_path / f"out-{name}"), mask=mask)
        files, [row] = edit_file(editor, plan, edits=[Edit(TARGETS[0])], source=None, config=config)
        assert (row["crop"], row["size"], row["worked_at"]) == (str(CROP), "60x40", "8x8")
        before = read_image(tmp_path / name)
        after = read_image(plan.outputs[0], files[plan.outputs[0]])
        outside = small_mask() == 0
        levels = before.channel_max / 2
        np.testing.assert_array_equal(
            np.rint(before.pixels[outside] * levels), np.rint(after.pixels[outside] * levels)
        )
        assert np.abs(before.pixels - after.pixels).max() > 0.01
        assert (after.channel_max, after.grey, after.exif) == (
            before.channel_max,
            before.grey,
            before.exif,
        )
        assert np.array_equal(after.alpha, before.alpha)


def test_a_job_edits_crops_beside_whole_pictures_and_records_them(
    editor: Editor, tmp_path: Path
) -> None:
    mask = written(tmp_path, "mask.png", as_picture(small_mask()))
    half = written(tmp_path, "half.png", as_picture(np.ones((40, 60), np.float32)))
    image = written(tmp_path, "photograph.png", photograph())
    parts = [
        written(tmp_path, f"part-{name}", CROP.cut(values))
        for name, values in (("photo.png", photograph()), ("mask.png", as_picture(small_mask())))
    ]
    items = [
        Item("small", str(image), tuple(TARGETS), mask=str(mask)),
        Item("large", str(image), tuple(TARGETS), mask=str(half)),
        Item("none", str(image), tuple(TARGETS)),
        Item("alone", str(parts[0]), tuple(TARGETS), mask=str(parts[1])),
    ]
    config = CONFIG.updated({"mask": {"user": "replace"}})
    run_tiny(editor, items, tmp_path / "out", config=config)
    rows = read_rows(Folder(str(tmp_path / "out")))
    crops = {name: row["crop"] for name, row in rows.items()}
    assert {name for name, crop in crops.items() if crop} == {"small-1", "small-2"}
    assert crops["small-1"] == str(CROP)
    plan = plan_tiny(editor, items, config)
    assert len({members.bucket for members in plan.groups if members.bucket.masked}) == 1
    for number in ("1", "2"):
        made, alone = (
            read_image(tmp_path / f"out/images/{name}-{number}.png").pixels
            for name in ("small", "alone")
        )
        np.testing.assert_allclose(CROP.cut(made), alone, atol=2 / 255)
        before = read_image(image).pixels
        np.testing.assert_array_equal(made[small_mask() == 0], before[small_mask() == 0])
        assert np.abs(made - before).max() > 0.01
    # Error maps lie on the originals, as masks do.
    with Image.open(tmp_path / "out" / rows["small-1"]["error"]) as error:
        assert error.size == (60, 40)
        assert np.asarray(error).any() and not np.asarray(error)[20:].any()


def test_focus_is_a_setting_of_the_job_and_is_told_before_it_runs(
    editor: Editor, tmp_path: Path
) -> None:
    mask = written(tmp_path, "mask.png", as_picture(small_mask()))
    image = written(tmp_path, "photograph.png", photograph())
    items = [Item("a", str(image), ("a cube",), mask=str(mask)), Item("b", str(image), ("a cube",))]
    plan = plan_tiny(editor, items)
    assert plan.settings.focus == "auto"
    sizes = working_sizes(items, plan.sizes, side=8, multiple=4)
    assert check_items(items, sizes, None, "auto") == ([], 1)
    assert check_items(items, sizes, None, "off") == ([], 0)
    for focus, crop in (("auto", CROP), ("off", Crop(0, 0, 40, 60))):
        [batch] = [
            each
            for each in batches(
                plan.groups, devices=1, side=8, multiple=4, batch_per_device=2, focus=focus
            )
            if each.bucket.masked
        ]
        assert batch.originals[0] is not None and batch.originals[0].crop == crop
    with pytest.raises(InputError, match="item b has no mask"):
        plan_job(items, measure(items), CONFIG, replace(plan.settings, focus="on"))
