"""The embedded model as it ships: its own settings, and its confidence for pictures outside its world."""

import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data

from uam_jax import Editor, scenes
from uam_jax.checkpoints.load import EMBEDDED
from uam_jax.io.images import resize
from uam_jax.method.confidence import UNFAMILIAR


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor.load("scenes")


def test_its_own_settings_cost_a_fifth_of_the_released_run(editor: Editor) -> None:
    names = ("released", "default", "fast")
    assert [editor.evaluations(editor.preset(name)) for name in names] == [300, 60, 40]


def test_its_confidence_was_calibrated_with_its_weights(editor: Editor) -> None:
    assert editor.weights_hash in editor.calibration.fitted
    assert editor.calibration.weights


def test_it_knows_which_captions_describe_a_picture(editor: Editor) -> None:
    scene = scenes.make_scene(shape="cube", colour="red", place="centre")
    z0 = editor.encode(scenes.render_in_chunks(scene, size=editor.native_size))
    [right] = scenes.captions(scene)
    wrong = [
        scenes.caption(scene.replace(**changes)[0])
        for changes in ({"colour": "blue"}, {"surface": "linen"}, {"wall": "brick"})
    ]
    captions = [right, *wrong]
    found = np.asarray(editor.agreement(jnp.repeat(z0, len(captions), axis=0), captions))
    assert found[0] > 0.2 and (found[1:] < -0.2).all()


@pytest.mark.long
def test_photographs_and_noise_are_edited_with_low_confidence(editor: Editor) -> None:
    side = editor.native_size
    photographs = [data.astronaut(), data.chelsea()[:, :300]]
    pictures = [resize(p.astype(np.float32) / 127.5 - 1, (side, side)) for p in photographs]
    pictures.append(np.random.default_rng(0).uniform(-1, 1, (side, side, 3)).astype(np.float32))
    known = scenes.make_scene(shape="cube", colour="red", place="centre")
    pictures += [*scenes.render_in_chunks(known, size=side)]
    target = scenes.caption(known.replace(colour="blue")[0])
    config = editor.default_config.updated({"steps": 20})
    result = editor.edit(np.stack(pictures), [target] * 4, config=config)
    assert np.isfinite(np.asarray(result.images)).all()
    assert (result.confidence[:3] < 0.2).all() and result.confidence[3] > 0.3
    assert all(UNFAMILIAR in why for why in result.review[:3])
    assert np.asarray(result.error_map)[:3].mean() > 2 * np.asarray(result.error_map)[3].mean()


def test_the_larger_model_has_its_sizes_and_the_smaller_ones_settings_without_a_calibration(
    editor: Editor,
) -> None:
    larger = Editor.load("scenes-128")
    assert (larger.native_size, larger.size_factor, larger.latent_channels) == (128, 8, 16)
    assert larger.weights_hash == "8d5c5149dfd17b43"
    assert larger.recommended.configs == editor.recommended.configs
    assert larger.recommended.words == editor.recommended.words
    assert not larger.calibration.weights and not larger.calibration.fitted


def test_the_embedded_models_leave_room_in_a_package_of_64_mib() -> None:
    files = [file for folder in EMBEDDED.values() for file in folder.rglob("*")]
    assert sum(file.stat().st_size for file in files) < 60 * 2**20
