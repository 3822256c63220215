"""`uam attention` from outside."""

from pathlib import Path

import pytest
from checkpoint_files import write_checkpoint
from program import picture, pixels, uam


def test_a_grid_of_the_words_asked_for(tmp_path: Path) -> None:
    image = picture(tmp_path / "in.png", 16, 16, 3)
    write_checkpoint(tmp_path / "model", scale=1 / 16)
    out = tmp_path / "maps.png"
    result = uam(
        "attention", image, "--prompt", "a red cube", "--word", "cube", "--out", out,
        "--model", tmp_path / "model", "--steps", 2,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert pixels(out).shape[2] >= 3
    assert "cube" in result.stdout and "red" not in result.stdout.replace(str(tmp_path), "")
    asked = [
        "--prompt",
        "a red cube",
        "--word",
        "ball",
        "--out",
        out,
        "--model",
        tmp_path / "model",
    ]
    refused = uam("attention", image, *asked)
    assert refused.exit_code == 2
    assert "'ball' is not in 'a red cube'" in refused.stderr and "a, red, cube" in refused.stderr


@pytest.mark.usefixtures("no_editor")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt", " ", "--out", "new.png"], "--prompt is empty"),
        (["--prompt", "a", "--out", "new.jpg"], "ends in .png"),
        (["--prompt", "a", "--out", "{in}"], "is the input"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, image: Path, more: list[str], message: str) -> None:
    result = uam("attention", image, *(text.format(**{"in": image}) for text in more))
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
