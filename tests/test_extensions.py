"""A control and an inversion from outside the package, in Python, in a file of settings and on the command line."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from my_module import MyControl, MyInversion
from program import picture, pixels
from tiny import SMALL, TARGET, assert_close

from uam_jax import Edit, EditConfig, Editor, InputError
from uam_jax.method.edits import Words
from uam_jax.method.inversions import DDIMInversion


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


@pytest.mark.long
def test_an_inversions_figures_are_those_of_each_targets_picture(
    editor: Editor, images: np.ndarray
) -> None:
    config = SMALL.updated({"inversion": "my_module:MyInversion"})
    inversion = editor.invert(editor.encode(images), uniformity=0.0, steps=6, method=MyInversion())
    way = np.asarray(inversion.data["way"])
    length = np.abs(way[1:] - way[:-1]).sum(axis=(0, 2, 3, 4))
    found = editor.edit(images, [[TARGET, "a cube"], [TARGET]], config=config).figures
    # The auxiliary branch's inversion has uniform maps, and goes another way.
    assert {*found} == {"source_length", "auxiliary_length"}
    assert_close(found["source_length"], length[[0, 0, 1]], 1e-4)
    assert np.abs(found["auxiliary_length"] - length[[0, 0, 1]]).min() > 1e-3


def test_both_from_a_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        'control = "my_module:MyControl"\n[inversion]\nkind = "my_module:MyInversion"\n'
    )
    config = EditConfig.load(file, ["control.strength=0.25"])
    assert (config.control, config.inversion.method) == (MyControl(0.25), MyInversion())
    assert EditConfig().updated(config.to_dict()) == config
    assert EditConfig().inversion.method == DDIMInversion()


@pytest.mark.long
def test_both_from_the_command_line(tmp_path: Path) -> None:
    source = Path(__file__).with_name("my_module.py")
    (tmp_path / "my_module.py").write_text(source.read_text())
    shape = picture(tmp_path / "in.png", 16, 16, 3)
    write_checkpoint(tmp_path / "model")
    command = [sys.executable, "-m", "uam_jax", "edit", shape, "--target", "a red cube"]
    command += ["--model", tmp_path / "model"]
    command += ["--set", "steps=2", "--set", "mask.t_mask=1000"]
    command += ["--set", "control=my_module:MyControl", "--set", "control.strength={}"]

    def uam(out: str, strength: float, *more: str) -> subprocess.CompletedProcess[str]:
        run = [str(part).format(strength) for part in command]
        run += ["--out", str(tmp_path / out), *more]
        return subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)

    refused = uam("none.png", 2)
    assert refused.returncode == 2 and "control.strength is 2" in refused.stderr
    made = []
    figures = []
    for out, more in (("a.png", ()), ("b.png", ("--set", "inversion.kind=my_module:MyInversion"))):
        done = uam(out, 0.9, "--json", *more)
        assert done.returncode == 0, done.stderr
        made.append(pixels(tmp_path / out))
        figures.append(json.loads(done.stdout)["pictures"][0]["figures"])
    assert (made[0] != made[1]).any()
    assert "source_length" not in figures[0] and figures[1]["source_length"] > 0


@dataclass(frozen=True)
class Careless(MyInversion):
    """Returns what `fault` says."""

    fault: str = ""

    def run(self, *arguments: Any, **options: Any) -> Any:
        data = super().run(*arguments, **options)
        if self.fault == "levels":
            return {**data, "latents": data["way"]}
        if self.fault == "latents":
            return {"way": data["way"]}
        return {**data, "times": jnp.arange(6.0)} if self.fault == "batch" else data

    def figures(self, data: Any) -> Any:
        return {"length": jnp.ones(6)}

    def per_step(self, data: Any) -> Any:
        return {"below": data["way"]}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("levels", "run must return the latents of the 7 levels"),
        ("latents", "run must return the latents of the 7 levels"),
        ("batch", r"run returned times of shape \(6,\)"),
    ],
)
def test_an_inversion_that_returns_other_data_is_refused(
    editor: Editor, images: np.ndarray, fault: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        editor.invert(editor.encode(images), steps=6, method=Careless(fault=fault))


def test_figures_of_another_number_than_the_examples_are_refused(
    editor: Editor, images: np.ndarray
) -> None:
    made = editor.invert(editor.encode(images), steps=6, method=Careless())
    with pytest.raises(InputError, match=r"figures returned length of shape \(6,\)"):
        _ = made.figures


def test_a_control_gets_the_source_prompts(editor: Editor, images: np.ndarray) -> None:
    seen: list[Any] = []

    @dataclass(frozen=True)
    class Listening(MyControl):
        kinds_of_words = frozenset({"blend"})

        def prepare(self, tokenizer: Any, edits: Any) -> Any:
            seen.extend(edits)
            return {"rows": np.zeros((len(edits) - len(seen) // 6, 1))}

    config = replace(SMALL, control=Listening()).updated({"source": {"condition": "prompt"}})
    editor.edit(images, [Edit(TARGET, words=Words(("ball",))), TARGET], "a red cube", config=config)
    # Before any computation, and for the program.
    assert seen == [Edit(TARGET, "a red cube", Words(("ball",))), Edit(TARGET, "a red cube")] * 2
    with pytest.raises(InputError, match="prepare returned rows with 1 rows for 2 edits"):
        editor.edit(images, [TARGET, TARGET], "a red cube", config=config)
