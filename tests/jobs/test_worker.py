"""The worker of a job: names, rows and files of results, and faults that stay with their pictures."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
from tiny_job import CONFIG, files_of, run_tiny
from transfers import Transfers

from uam_jax import Editor, InputError
from uam_jax.io.encoding import write_image
from uam_jax.io.images import read_image, resize
from uam_jax.io.storage import Folder
from uam_jax.jobs import result_files
from uam_jax.jobs.job import finish_job
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.ledger import read_rows
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.table import COUNTS, FLAGS, NUMBERS, TEXTS


def test_results_lie_under_their_ids_with_their_rows(whole: Path, items: list[Item]) -> None:
    names = {f"set/{number}" for number in (0, 1, "2-1", "2-2", 3, 4, 6)}
    made = files_of(whole)
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


def test_pixels_outside_the_edit_stay_those_of_the_original(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    mask = np.full((12, 12, 3), -1, np.float32)
    mask[:6] = 1
    write_image(tmp_path / "mask.png", mask)
    masked = [Item("a", items[0].image, ("a blue ball",), mask=str(tmp_path / "mask.png"))]
    run_tiny(editor, masked, tmp_path / "out", config=CONFIG.updated({"mask": {"user": "replace"}}))
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
    run_tiny(editor, [items[0], Item("scan", str(scan), ("a blue ball", "a cube"))], out)
    rows = read_rows(Folder(str(out)))
    assert rows["set/0"]["shown"] is None
    for name in ("scan-1", "scan-2"):
        assert rows[name]["output"] == f"images/{name}.tif"
        made = [read_image(out / rows[name][kind]).pixels for kind in ("output", "shown")]
        np.testing.assert_allclose(*made, atol=0.25)  # one is a JPEG


def test_the_figures_of_a_result_are_those_of_its_files(whole: Path) -> None:
    for row in read_rows(Folder(str(whole))).values():
        if row["status"] == "ok":
            mask = (read_image(whole / row["mask"]).pixels[..., 0] + 1) / 2
            assert row["mask_share"] == pytest.approx(mask.mean(), abs=1 / 255)


@pytest.mark.long
def test_a_row_holds_what_the_inversions_tell_of_its_picture(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    config = CONFIG.updated({"inversion": {"kind": "fixed_point", "iterations": 2}})
    run_tiny(editor, [items[0], items[2], items[5]], tmp_path, config=config)
    rows = read_rows(Folder(str(tmp_path)))
    assert rows["set/5"]["figures"] is None  # it could not be read
    own, first, second = (rows[name]["figures"] for name in ("set/0", "set/2-1", "set/2-2"))
    assert {*own} == {"source_residual", "auxiliary_residual"} and first == second != own
    pixels = np.stack([resize(read_image(items[n].image).pixels, (8, 8)) for n in (0, 2)])
    inversion = editor.invert(
        editor.encode(pixels), uniformity=0.0, steps=3, method=config.inversion.method
    )
    expected = np.asarray(inversion.data["residual"]).max(axis=0)
    assert [own["source_residual"], first["source_residual"]] == pytest.approx(expected, rel=1e-3)
    finish_job(JobFolder(Folder(str(tmp_path))))
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    [shown] = (row["figures"] for row in table if row["id"] == "set/0")
    assert json.loads(shown) == own
    assert "auxiliary residual" in (tmp_path / "gallery/rows-0.js").read_text()


def test_numbers_that_are_not_finite_fail_their_picture_alone(
    editor: Editor, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Editor.decode
    monkeypatch.setattr(Editor, "decode", lambda self, z: decode(self, z).at[1].set(jnp.nan))
    run_tiny(editor, items[:2], tmp_path)
    rows = read_rows(Folder(str(tmp_path)))
    assert rows["set/0"]["status"] == "ok"
    assert rows["set/1"]["status"] == "failed" and "not finite" in rows["set/1"]["reason"]
    assert not (tmp_path / "images/set/1.png").exists()
    monkeypatch.undo()
    assert run_tiny(editor, items[:2], tmp_path).done == 0
    assert run_tiny(editor, items[:2], tmp_path, retry_failed=True).done == 1
    assert read_rows(Folder(str(tmp_path)))["set/1"]["status"] == "ok"


def test_an_error_of_one_picture_is_its_own(
    editor: Editor, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = result_files.encode_image

    def fail(path: str, *arguments: object) -> bytes:
        if path == "images/set/0.png":
            raise ValueError("EXIF data is too long")
        return encode(path, *arguments)

    monkeypatch.setattr(result_files, "encode_image", fail)
    run_tiny(editor, items[:2], tmp_path)
    rows = read_rows(Folder(str(tmp_path)))
    assert (rows["set/0"]["status"], rows["set/1"]["status"]) == ("failed", "ok")
    assert "EXIF data is too long" in rows["set/0"]["reason"] and rows["set/0"]["output"] is None


def test_settings_of_an_item_are_its_own(
    editor: Editor, items: list[Item], whole: Path, tmp_path: Path
) -> None:
    own = [items[0], Item("own", items[0].image, ("a blue ball",), settings=("guidance=8",))]
    run_tiny(editor, own, tmp_path)
    rows = read_rows(Folder(str(tmp_path)))
    assert rows["own"]["config"] == CONFIG.updated({"guidance": 8.0}).fingerprint()
    made = files_of(tmp_path)
    assert made["images/own.png"] != made["images/set/0.png"]
    with pytest.raises(InputError, match="item own: --set guidanse=8: unknown"):
        run_tiny(editor, [Item("own", items[0].image, ("a",), settings=("guidanse=8",))], tmp_path)
    with pytest.raises(InputError, match="item set/0 has no source prompt"):
        run_tiny(
            editor, items[:1], tmp_path, config=CONFIG.updated({"source": {"condition": "prompt"}})
        )


def test_results_have_the_names_of_their_pictures(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    """Where no other result could have them, also on a disk to which case means nothing."""
    names = ["a.jpg", "b", "B", "c~1a2b3c4d.jpg"]
    images = [items[3].image, items[0].image, items[1].image, items[3].image]
    chosen = [Item(name, image, ("a ball",)) for name, image in zip(names, images, strict=True)]
    run_tiny(editor, chosen, tmp_path)
    made = [path.name for path in (tmp_path / "images").iterdir()]
    assert {"a.jpg", "c~1a2b3c4d.jpg"} < {*made} and len({name.lower() for name in made}) == 4
    rows = read_rows(Folder(str(tmp_path))).values()
    assert {row["output"] for row in rows} == {f"images/{name}" for name in made}
    assert all(
        (tmp_path / row[key]).exists() for row in rows for key in ("mask", "preview", "error")
    )
    assert {*next(iter(rows))} == {*TEXTS, *NUMBERS, *COUNTS, *FLAGS}


def test_pictures_go_to_the_device_and_results_leave_it_once_a_batch_whatever_the_number_of_targets(
    editor: Editor, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [replace(item, targets=("a blue ball", "a cube")) for item in (items[0], items[1])]
    run_tiny(editor, two, tmp_path / "warm")
    transfers = Transfers(monkeypatch)
    assert run_tiny(editor, two, tmp_path / "out").done == 4
    [_] = transfers.to_host
    pictures = [shape for call in transfers.to_devices for shape in call if 8 in shape]
    assert pictures == [(2, 8, 8, 3)]
    # So these would have been counted.
    np.asarray(jnp.ones(3)), float(jnp.ones(())), editor.encode(np.zeros((1, 8, 8, 3)))
    assert transfers.to_host[1:] == [[(3,)], [()]]
    assert transfers.to_devices[-1] == [(1, 8, 8, 3)]
