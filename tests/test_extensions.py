"""A control and an inversion from outside the package, in Python, in a file of settings and on the command line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from my_module import MyControl, MyInversion
from program import picture, pixels
from tiny import SMALL, TARGET, assert_close

from uam_jax import EditConfig, Editor
from uam_jax.method.inversions import DDIM


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


def own(**settings: object) -> EditConfig:
    return SMALL.updated({"control": {"kind": "my_module:MyControl", **settings}})


def test_a_control_draws_the_target_to_the_source(editor: Editor, images: np.ndarray) -> None:
    targets = [TARGET] * 2
    none = editor.edit(images, targets, config=SMALL.updated({"control": "none"}))
    still = editor.edit(images, targets, config=own(strength=0.0))
    drawn = editor.edit(images, targets, config=own(strength=0.9))
    assert own().control == MyControl()
    assert_close(still.latents, none.latents)
    distance = [np.abs(r.latents - r.source_latents).mean() for r in (still, drawn)]
    assert distance[1] < 0.8 * distance[0]
    # The state holds for each example: together and alone they are the same.
    alone = editor.edit(images[1:], targets[1:], config=own(strength=0.9))
    assert_close(alone.latents[0], drawn.latents[1])


def test_an_inversions_data_lead_the_source_back(editor: Editor, images: np.ndarray) -> None:
    settings = {"mask": {"rule": "none"}, "inversion": {"kind": "my_module:MyInversion"}}
    config = SMALL.updated(settings)
    assert config.inversion.method == MyInversion()
    # No branch's return is exact by itself; with the data of every step it is, for each target.
    targets = [[TARGET, "a cube"], [TARGET]]
    plain = editor.edit(images, targets, config=SMALL.updated({"mask": {"rule": "none"}}))
    led = editor.edit(images, targets, config=config)
    z0 = np.asarray(editor.encode(images))[led.source_index]
    assert np.abs(plain.source_latents - z0).max() > 1e-3
    np.testing.assert_array_equal(led.source_latents, z0)
    assert led.evaluations == plain.evaluations


def test_both_from_a_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        'control = "my_module:MyControl"\n[inversion]\nkind = "my_module:MyInversion"\n'
    )
    config = EditConfig.load(file, ["control.strength=0.25"])
    assert (config.control, config.inversion.method) == (MyControl(0.25), MyInversion())
    assert EditConfig().updated(config.to_dict()) == config
    assert EditConfig().inversion.method == DDIM()


def test_both_from_the_command_line(tmp_path: Path) -> None:
    source = Path(__file__).with_name("my_module.py")
    (tmp_path / "my_module.py").write_text(source.read_text())
    shape = picture(tmp_path / "in.png", 16, 16, 3)
    write_checkpoint(tmp_path / "model")
    command = [sys.executable, "-m", "uam_jax", "edit", shape, "--target", "a red cube"]
    command += ["--model", tmp_path / "model"]
    command += ["--set", "steps=2", "--set", "mask.t_mask=1000", "--no-cache"]
    made = {}
    for name, settings in {
        "own": ["--set", "control=my_module:MyControl", "--set", "control.strength=0.9",
                "--set", "inversion.kind=my_module:MyInversion"],
        "none": ["--set", "control=none"],
    }.items():  # fmt: skip
        out = tmp_path / f"{name}.png"
        run = [*command, "--out", out, *settings]
        done = subprocess.run([*map(str, run)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made[name] = pixels(out)
    assert (made["own"] != made["none"]).any()
