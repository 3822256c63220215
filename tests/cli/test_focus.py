"""`--focus` from outside: the crop is in the summary, and a focus without a mask is refused at once."""

import json
from pathlib import Path

import numpy as np
import pytest
from fake_editor import FakeEditor
from PIL import Image
from program import picture, pixels, uam


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    inside = np.zeros((480, 800), np.uint8)
    inside[100:130, 600:640] = 255
    Image.fromarray(inside).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.mark.parametrize("focus", ["auto", "on", "off"])
def test_the_crop_is_worked_on_and_told(
    tmp_path: Path, editor: FakeEditor, mask: Path, focus: str
) -> None:
    image, out = picture(tmp_path / "in.png", 480, 800, 3), tmp_path / "out.png"
    chosen = [] if focus == "auto" else ["--focus", focus]
    result = uam(
        "edit", image, "--target", "x", "--out", out, "--mask", mask, "--json", *chosen,
        "--set", "mask.threshold=0.2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    [row] = json.loads(result.stdout)["pictures"]
    before, after = pixels(image), pixels(out)
    outside = pixels(mask) == 0
    np.testing.assert_array_equal(after[outside], before[outside])
    [call] = editor.calls
    if focus == "off":
        assert row["crop"] is None and call["masks"].mean() < 0.01
    else:
        # The box with its context has 60 rows and 80 columns; the picture's shape makes them 100.
        assert (row["crop"], row["worked_at"]) == ("85,570,60,100", "80x48")
        assert 0.15 < call["masks"].mean() < 0.25
        assert (after[100:130, 600:620] != before[100:130, 600:620]).any(axis=-1).mean() > 0.5


def test_a_focus_without_a_mask_is_refused_before_the_model_is_loaded(
    tmp_path: Path, no_editor: None
) -> None:
    image = picture(tmp_path / "in.png")
    result = uam("edit", image, "--target", "x", "--out", tmp_path / "out.png", "--focus", "on")
    assert result.exit_code == 2 and "has no mask" in result.stderr
    assert not (tmp_path / "out.png").exists()
