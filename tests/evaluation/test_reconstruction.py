"""The reconstruction study on a tiny random model, and its drift against the exact error."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax.tree_util import Partial
from tiny import tiny_editor

from uam_jax import Editor
from uam_jax.evaluation.reconstruction import (
    Reconstruction,
    ReconstructionStudy,
    drift_by_level,
    invert,
    prompts_of,
    reconstructions,
    study_files,
    study_summary,
)
from uam_jax.evaluation.scenes_bench import Items, draw_items
from uam_jax.io.storage import Folder
from uam_jax.method import sample
from uam_jax.method.uniform import UniformMaps
from uam_jax.types import Rules, plain_attention


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    return tiny_editor(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def items() -> Items:
    return draw_items().select(["tune"], 3)


def test_the_study_has_every_method_once() -> None:
    methods = reconstructions(16)
    assert len(methods) == 4 * (4 + 4) + 16 == len(set(methods.values()))
    assert methods["uniform maps, 50 steps"] == Reconstruction("null", 50, uniform="all")
    assert methods["wrong prompt, guidance 7.5, 10 steps"] == Reconstruction("wrong", 10, 7.5)


def test_the_wrong_prompt_names_another_picture(items: Items) -> None:
    assert prompts_of(Reconstruction("null", 10), items) == [""] * 3
    right, wrong = (prompts_of(Reconstruction(p, 10), items) for p in ("source", "wrong"))
    assert right == list(items.sources)
    for a, b in zip(right, wrong, strict=True):
        assert a.split()[2:4] != b.split()[2:4]
    assert prompts_of(Reconstruction("wrong", 10), items.take([1])) == wrong[1:2]


def test_drift_ends_with_the_error_of_the_latent(editor: Editor, items: Items) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    z0 = editor.encode(images)
    method = Reconstruction("source", 5)
    inversion = invert(editor, method, z0, prompts_of(method, items))
    rebuilt, clean = editor.inverter.denoise(inversion, 5, last=5)
    drift = drift_by_level(editor, inversion, np.asarray(clean))
    assert drift.shape == (6, 3)
    np.testing.assert_array_equal(drift[0], 0)
    error = np.sqrt(np.mean(np.square(rebuilt - z0), axis=(1, 2, 3)))
    np.testing.assert_allclose(drift[-1], error, rtol=1e-3, atol=1e-6)


@pytest.mark.long
def test_uniform_in_one_layer_leaves_the_others(editor: Editor, items: Items) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    z0, prompts = editor.encode(images), list(items.sources)
    denoiser, schedule = editor.checkpoint.denoiser, editor.checkpoint.schedule
    condition, uniform = editor.condition(prompts), UniformMaps(editor.condition("").states)
    found = []
    for layer in (0, editor.checkpoint.unet.config.transformer_blocks - 1):
        one = invert(editor, Reconstruction("source", 3, uniform=layer), z0, prompts).at(3)

        def rule(site: Any, x: Any, context: Any, layer: int = layer) -> Any:
            return (uniform if site.number == layer else plain_attention)(site, x, context)

        rules = Rules(cross=Partial(rule))

        def predict(latent: Any, step: Any, rules: Rules = rules) -> Any:
            output, _ = denoiser.predict(editor.params, latent, step.time, condition, rules)
            return schedule.split(output, latent, step)

        expected, _ = sample.invert(predict, z0, schedule.inverting(3))
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-5)
        found.append(np.asarray(one))
    assert np.abs(found[0] - found[1]).max() > 1e-4


@pytest.mark.long
def test_a_run_is_summarised(editor: Editor, items: Items, tmp_path: Path) -> None:
    layers = editor.checkpoint.unet.config.transformer_blocks
    methods = {
        name: each
        for name, each in reconstructions(layers).items()
        if (each.steps == 10 and each.guidance == 1)
        or name in ("source prompt, 20 steps", "uniform in layer 00, 20 steps")
    }
    job = ReconstructionStudy(editor, methods, items, chunk=2, settings={})
    folder = Folder(str(tmp_path))
    progress = job.run(folder)
    assert (progress.done, progress.failed) == (3 * len(methods), 0)
    assert job.run(folder).total == 0
    rows = job.rows(folder)
    summary = {"facts": {"benchmark": "b"}, **study_summary(rows, methods)}
    found = summary["cases"]
    assert found["source prompt, 10 steps"]["gain"] == [0, 0, 0]
    mean = np.mean(
        [row["figures"]["psnr"] for row in rows if row["method"] == "null prompt, 10 steps"]
    )
    assert found["null prompt, 10 steps"]["psnr"][0] == pytest.approx(mean, abs=1e-4)
    assert len(found["null prompt, 10 steps"]["drift"]) == 11
    files = study_files(summary, methods)
    assert files["reconstruction.png"].startswith(b"\x89PNG") and "layers.png" in files
    assert "| uniform maps | " in files["summary.md"].decode()
    assert json.loads(files["summary.json"])["cases"].keys() == methods.keys()
