"""`uam check` on a tiny random model: the record, the page, and the bundled photographs."""

import base64
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from PIL import Image
from tiny import tiny_editor
from typer.testing import CliRunner, Result

from uam_jax import EditConfig, Editor
from uam_jax.cli import main
from uam_jax.evaluation import check, metrics
from uam_jax.evaluation.check import PHOTOS, CheckSettings, mean_reconstructions, run_check
from uam_jax.io.images import read_image

SHORT = (
    "steps=3",
    "mask.t_mask=600",
    "auxiliary.latents=original",
    "control=none",
    "source.latents=replay",
)
SIDE = 16


def uam_check(*arguments: object) -> Result:
    return CliRunner().invoke(main.app, ["check", *map(str, arguments)])


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a check of two photographs; the model's lies beside it."""
    folder = tmp_path_factory.mktemp("check")
    write_checkpoint(folder / "model <b>", scale=1 / 16)
    changes = [part for each in SHORT for part in ("--set", each)]
    result = uam_check(
        "--model", folder / "model <b>", "--out", folder / "out", "--steps", 2, "--steps", 3,
        "--photos", 2, "--size", SIDE, "--no-cache", "--json", *changes,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["json"] == str(folder / "out" / "check.json")
    return folder / "out"


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "check.json").read_text())


@pytest.mark.long
def test_the_record_says_what_was_measured(checked: Path) -> None:
    record = record_of(checked)
    assert {file.name for file in checked.iterdir()} == {"check.json", "check.html"}
    assert set(record) == {
        "format", "date", "notes", "model", "machine", "size", "config", "speed", "photos",
    }  # fmt: skip
    assert record["notes"] == [] and record["size"] == f"{SIDE}x{SIDE}"
    # The folder above is nobody's business.
    assert record["model"]["model"] == "model <b>" and str(checked.parent) not in json.dumps(record)
    assert record["config"]["steps"] == 3 and record["machine"]["versions"]["jax"]
    assert [photo["name"] for photo in record["photos"]] == [photo.name for photo in PHOTOS[:2]]
    speed = record["speed"]
    # Three steps of inversion with the null prompt; source and guided target in each.
    assert speed["evaluations"] == 3 + 3 * (1 + 2) and len(speed["seconds"]["all"]) == 1
    assert speed["images_per_second"] * speed["seconds"]["median"] == pytest.approx(1, rel=1e-4)
    assert speed["memory"]["gigabytes"] > 0
    for photo in record["photos"]:
        rows = [(each["maps"], each["steps"]) for each in photo["reconstructions"]]
        assert rows == [
            ("uniform maps", 2), ("uniform maps", 3), ("source prompt", 2), ("source prompt", 3),
        ]  # fmt: skip
        assert 0 <= photo["edit"]["mask_share"] <= 1 and 0 <= photo["edit"]["confidence"] <= 1


@pytest.mark.long
def test_the_figures_are_those_of_the_editor(checked: Path) -> None:
    editor = Editor.load(checked.parent / "model <b>")
    photo = PHOTOS[1]
    z0 = editor.encode(photo.read((SIDE, SIDE))[None])
    ceiling = np.asarray(editor.decode(z0))
    own = record_of(checked)["photos"][1]["reconstructions"]
    for row, prompt, uniformity in ((own[1], "", 1.0), (own[3], photo.source, 0.0)):
        inversion = editor.invert(z0, prompt, uniformity=uniformity, steps=3)
        made = np.asarray(editor.reconstruct(inversion))
        assert row["psnr"] == pytest.approx(metrics.psnr(made, ceiling).item(), abs=1e-2)
    means = mean_reconstructions(record_of(checked))
    other = record_of(checked)["photos"][0]["reconstructions"]
    assert means[3]["psnr"] == pytest.approx((own[3]["psnr"] + other[3]["psnr"]) / 2)
    assert (means[3]["maps"], means[3]["steps"], means[3]["evaluations"]) == ("source prompt", 3, 6)


@pytest.mark.long
def test_the_page_holds_its_pictures(checked: Path) -> None:
    page = (checked / "check.html").read_text()
    assert "model &lt;b&gt;" in page and "<b>" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="(\w+): ([^"]+)"', page)
    captions = [
        "original", "VAE", "uniform maps, 2 steps", "uniform maps, 3 steps",
        "difference to the VAE × 8", "edit", "taken from the edit",
    ]  # fmt: skip
    names = [photo.name for photo in PHOTOS[:2]]
    assert [each[1:] for each in found] == [(n, caption) for n in names for caption in captions]
    shown = {}
    for content, name, caption in found:
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert picture.size == (SIDE, SIDE)
        shown[name, caption] = np.asarray(picture, np.float32)
    original = PHOTOS[0].read((SIDE, SIDE)) * 127.5 + 127.5
    assert np.abs(shown["cat", "original"] - original).mean() < 4
    for name, value in (("psnr to source", None), ("device", "cpu: cpu"), ("dtype", "float32")):
        assert name in page and (value is None or value in page)


@pytest.mark.long
def test_numbers_that_are_not_finite_are_said(tmp_path: Path) -> None:
    editor = tiny_editor(tmp_path)
    broken = jax.tree.map(lambda leaf: leaf + jnp.nan, editor.params["unet"])
    params = editor.params | {"unet": broken}
    checkpoint = dataclasses.replace(editor.checkpoint, params=params)
    config = EditConfig().overridden(SHORT)
    record, page = run_check(Editor(checkpoint), CheckSettings(config, (2,), 1, SIDE))
    json.dumps(record, allow_nan=False)
    [photo] = record["photos"]
    assert photo["reconstructions"][0]["psnr"] is None and photo["vae"]["psnr"] > 0
    assert mean_reconstructions(record)[0]["psnr"] is None
    assert any("not finite: try --dtype float32" in note for note in record["notes"])
    assert b"not finite" in page and b">nan" not in page


def test_models_that_do_not_know_photographs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = tiny_editor(tmp_path)
    shown = [{"VAE": np.zeros((2, 2, 3))}]
    assert check._notes(editor, shown) == []
    embedded = dataclasses.replace(editor.checkpoint, name="scenes")
    [note] = check._notes(Editor(embedded), shown)
    assert "never seen a photograph" in note
    random = dataclasses.replace(editor.checkpoint, weights_hash="random-sd15-0")
    [note] = check._notes(Editor(random), shown)
    assert "weights are random" in note


def test_a_shape_stands_for_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, asked = tiny_editor(tmp_path / "model").checkpoint, []
    speed = {"images_per_second": 2.0, "memory": {"gigabytes": 1.0, "of": "the process"}}

    def run(editor: Editor, settings: CheckSettings, progress: Any) -> tuple[Any, bytes]:
        asked.append((editor.checkpoint is checkpoint, settings.steps, settings.size))
        return {"model": {"model": "m"}, "photos": [], "speed": speed, "notes": []}, b"page"

    def draw(shape: str, *, dtype: str) -> Any:
        asked.append((shape, dtype))
        return checkpoint

    monkeypatch.setattr("uam_jax.checkpoints.random.random_checkpoint", draw)
    monkeypatch.setattr(check, "run_check", run)
    given = ("--shape", "sd15", "--dtype", "bfloat16", "--steps", 9, "--steps", 9, "--no-cache")
    result = uam_check("--out", tmp_path / "out", *given)
    assert result.exit_code == 0, result.stderr
    assert asked == [("sd15", "bfloat16"), (True, (9,), None)]
    assert (tmp_path / "out" / "check.html").read_bytes() == b"page"
    assert record_of(tmp_path / "out")["speed"] == speed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "sdxl"), "shape 'sdxl' is not known; choose one of sd15, sd21"),
        (("--shape", "sd15", "--model", "scenes"), "give one of them"),
        (("--shape", "sd15", "--variant", "fp16"), "--shape has none"),
        (("--photos", 5), "--photos"),
        (("--photos", 0), "--photos"),
        (("--steps", 0), "--steps"),
        (("--set", "guidence=2"), "guidence"),
        (("--model", "nowhere/at/all"), "nowhere/at/all"),
        (("--size", 1), "multiples of"),
    ],
)
def test_bad_options_are_refused(
    arguments: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    result = uam_check("--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_place_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        result = uam_check("--out", tmp_path / place)
        assert result.exit_code == 2 and "file" in result.stderr


def test_the_photographs_are_small_and_say_where_they_come_from() -> None:
    folder = Path(check.__file__).parent / "photos"
    readme = (folder / "README.md").read_text()
    assert {file.stem for file in folder.glob("*.jpg")} == {photo.name for photo in PHOTOS}
    for photo in PHOTOS:
        file = folder / f"{photo.name}.jpg"
        height, width = read_image(file).size
        assert width == height <= 512 and file.stat().st_size < 80_000
        [line] = [line for line in readme.splitlines() if f"`{photo.name}.jpg`" in line]
        assert "CC0" in line or "public domain" in line
        pixels = photo.read((64, 64))
        assert pixels.shape == (64, 64, 3) and np.abs(pixels).max() <= 1 and pixels.std() > 0.2
        assert photo.source != photo.target
