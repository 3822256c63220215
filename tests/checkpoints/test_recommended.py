"""The file `uam.toml` beside a model: its settings are read, and every fault is named when the model is loaded."""

import re
from pathlib import Path

import pytest
from checkpoint_files import write_checkpoint

from uam_jax import EditConfig, Editor, InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder)
    return folder


def load(folder: Path, text: str) -> Editor:
    (folder / "uam.toml").write_text(text)
    try:
        return Editor.load(folder)
    finally:
        (folder / "uam.toml").unlink()


def test_a_model_without_settings_has_the_defaults(folder: Path) -> None:
    editor = Editor.load(folder)
    assert editor.default_config == EditConfig() and editor.calibration.fitted == ""
    assert editor.preset("fast") == EditConfig.load("fast")
    editor.check_prompts(["anything"])


def test_settings_are_read(folder: Path) -> None:
    editor = load(
        folder,
        'words = ["red"]\n[default]\nguidance = 5\n[default.mask]\nradius = 2\n[fast]\nsteps = 7\n'
        "[confidence]\nfamiliar = 22\n",
    )
    assert editor.default_config == EditConfig().updated({"guidance": 5.0, "mask": {"radius": 2}})
    assert editor.preset("fast") == EditConfig.load("fast", ["steps=7"])
    assert editor.preset("released") == EditConfig.load("released")
    assert editor.calibration.familiar == 22.0
    with pytest.warns(UserWarning, match="never seen blue"):
        editor.check_prompts(["red blue"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[default]\nstepz = 3", "[default] unknown key stepz"),
        ("[default]\nsteps = 0", "[default] steps is 0"),
        ("[default.mask]\nrule = 'x'", "[default] mask.rule is 'x'"),
        ("[fast]\nsteps = 0", "[fast] steps is 0"),
        ("default = 3", "default is 3; it must be a table"),
        ("[confidence]\nfamiliar = true", "[confidence] familiar = True"),
        ("[confidence]\nfamilar = 22", "[confidence] familar is unknown"),
        ("[confidence.weights]\nshare = 1", "[confidence] weights.share needs means.share"),
        ("words = 'red'", "words is 'red'; it must be a list of words"),
        ("words = [3]", "words must be a list of words"),
        (
            "[defualt]\nsteps = 3",
            "unknown key defualt; the keys are default, fast, confidence, words",
        ),
        ("guidance == 3", "not TOML"),
    ],
)
def test_a_fault_is_named_with_the_file_when_the_model_is_loaded(
    folder: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=rf"uam\.toml: .*{re.escape(message)}"):
        load(folder, text)
