"""`uam edit` from outside, with an editor in closed form: pictures, masks, names and pages."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_editor import FakeEditor
from PIL import Image
from program import files, picture, pixels, uam

from uam_jax import Editor
from uam_jax.method.config import EditConfig
from uam_jax.method.edits import Edit, Words


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((48, 80, 3), np.uint8), ((48, 80, 4), np.uint8), ((48, 80), np.uint16), ((64, 64), np.uint8)],
)
def test_an_edit_changes_what_it_may_and_nothing_else(
    tmp_path: Path, editor: FakeEditor, shape: tuple[int, ...], dtype: type
) -> None:
    image = picture(tmp_path / "in.png", *shape, dtype=dtype)
    assert uam("edit", image, "--target", "a cube", "--out", tmp_path / "out.png").exit_code == 0
    before, after = pixels(image), pixels(tmp_path / "out.png")
    assert after.shape == before.shape and after.dtype == before.dtype
    kept = int(shape[1] * 0.75)
    np.testing.assert_array_equal(after[:, kept:], before[:, kept:])
    assert (after[:, : kept // 3] != before[:, : kept // 3]).mean() > 0.5


def test_in_latent_mode_the_whole_picture_is_the_models(
    tmp_path: Path, editor: FakeEditor, image: Path
) -> None:
    out = tmp_path / "out.png"
    result = uam("edit", image, "--target", "x", "--out", out, "--config", "default",
                 "--set", "preserve=latent")  # fmt: skip
    assert result.exit_code == 0
    assert (pixels(out)[:, 60:] != pixels(image)[:, 60:]).any()


def test_the_editor_gets_what_was_asked(tmp_path: Path, editor: FakeEditor, image: Path) -> None:
    mask = np.zeros((48, 80), np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    result = uam(
        "edit", image, "--target", "a", "--target", "b", "--source", "c", "--out", tmp_path / "out",
        "--mask", tmp_path / "mask.png", "--size", 128, "--config", "default",
        "--set", "steps=7", "--set", "source.condition=prompt", "--save-mask",
        "--blend", "a, red cube", "--subtract", "sky", "--weight", "a=2", "--weight", "b=-0.5", "--window", "a=0:0.3",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "28 network evaluations per picture" in result.stderr
    [call] = editor.calls
    words = Words(("a", "red cube"), ("sky",), {"a": 2.0, "b": -0.5}, {"a": (0.0, 0.3)})
    assert call["target"] == [[Edit("a", words=words), Edit("b", words=words)]]
    assert call["source"] == "c"
    assert call["config"].steps == 7
    assert call["images"].shape == (1, 96, 168, 3)
    assert call["masks"].shape == (1, 96, 168)
    np.testing.assert_allclose(call["masks"].mean(), 0.25, atol=0.02)
    assert files(tmp_path / "out") == {"in-1.png", "in-2.png", "in-1-mask.png", "in-2-mask.png"}
    used = pixels(tmp_path / "out" / "in-1-mask.png")
    assert used[:, :10].min() > 200 and not used[:, 20:].any()
    np.testing.assert_array_equal(
        pixels(tmp_path / "out" / "in-1.png")[:, 20:], pixels(image)[:, 20:]
    )


def test_a_caption_that_is_needed_is_asked_for_before_a_model_is_loaded(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Editor, "load", load)
    edit = ("edit", image, "--target", "x", "--out", tmp_path / "out.png", "--config", "captioned")
    result = uam(*edit)
    assert result.exit_code == 2 and "describe the picture as it is (--source" in result.stderr
    assert files(tmp_path) == {image.name}


def test_a_models_own_form_of_a_preset_takes_its_place(
    tmp_path: Path, editor: FakeEditor, image: Path
) -> None:
    out = ("--target", "x", "--out", tmp_path / "out.png")
    assert uam("edit", image, *out, "--set", "guidance=3").exit_code == 0
    assert uam("edit", image, *out, "--config", "default").exit_code == 0
    assert uam("edit", image, *out, "--config", "released").exit_code == 0
    changed, own, preset = (call["config"] for call in editor.calls)
    assert own == editor.default_config != EditConfig.load("default")
    assert changed == replace(own, guidance=3.0)
    assert preset == EditConfig.load("released")


def test_several_pictures_keep_their_names(tmp_path: Path, editor: FakeEditor) -> None:
    images = [picture(tmp_path / name) for name in ("a.png", "b.webp", "c.gif")]
    result = uam("edit", *images, "--target", "x", "--out", tmp_path / "new" / "folder")
    assert result.exit_code == 0, result.stderr
    assert files(tmp_path / "new") == {"folder/a.png", "folder/b.webp", "folder/c.png"}
    assert "GIF cannot hold the result" in result.stderr


def test_what_a_format_cannot_hold_is_said_once(tmp_path: Path, editor: FakeEditor) -> None:
    deep = picture(tmp_path / "deep.png", 48, 80, dtype=np.uint16)
    targets = [part for text in "abc" for part in ("--target", text)]
    result = uam("edit", deep, *targets, "--out", tmp_path / "out.jpg", "--json")
    assert result.exit_code == 0, result.stderr
    [warning] = json.loads(result.stdout)["warnings"]
    assert "JPEG holds 8 bits of the original's 16" in warning


def test_an_input_is_replaced_only_on_demand(
    tmp_path: Path, editor: FakeEditor, image: Path
) -> None:
    before = image.read_bytes()
    link = tmp_path / "link.png"
    link.symlink_to(image)
    for out in (image, tmp_path, link):
        result = uam("edit", image, "--target", "x", "--out", out)
        assert result.exit_code == 2 and "--overwrite" in result.stderr
        assert image.read_bytes() == before
    assert uam("edit", image, "--target", "x", "--out", image, "--overwrite").exit_code == 0
    assert image.read_bytes() != before


def test_the_page_has_copies_of_what_browsers_do_not_show(
    tmp_path: Path, editor: FakeEditor
) -> None:
    images = [picture(tmp_path / name) for name in ("a.tif", "b.png", "c.ppm")]
    result = uam(
        "edit", *images, "--target", "x", "--target", "y", "--out", tmp_path / "out", "--report"
    )
    assert result.exit_code == 0, result.stderr
    gallery = tmp_path / "out" / "gallery"
    assert {path.name for path in gallery.glob("*.jpg")} == {
        "a.tif.jpg", "b.png.jpg", "c.ppm.jpg", "a-1.tif-shown.jpg", "a-2.tif-shown.jpg",
        "c-1.ppm-shown.jpg", "c-2.ppm-shown.jpg",
    }  # fmt: skip
    script = (gallery / "rows-0.js").read_text()
    columns = json.loads(script[len("addRows(") : -len(");\n")])["columns"]
    assert columns["output"][0] == "a-1.tif"
    assert columns["size"] == {"words": ["80x48"], "at": [0] * 6}  # or the page would show squares
    assert columns["shown"] == [
        "gallery/a-1.tif-shown.jpg", "gallery/a-2.tif-shown.jpg", None, None,
        "gallery/c-1.ppm-shown.jpg", "gallery/c-2.ppm-shown.jpg",
    ]  # fmt: skip
    np.testing.assert_allclose(
        pixels(gallery / "a-1.tif-shown.jpg"), pixels(tmp_path / "out" / "a-1.tif"), atol=60
    )
