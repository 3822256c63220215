"""Cross-attention that is uniform in one region and the text's in another."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, SOURCE, TARGET, assert_close

from uam_jax import Editor, InputError


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)


@pytest.mark.long
def test_regions_of_0_and_1_are_the_two_predictors(editor: Editor, images: np.ndarray) -> None:
    z0 = editor.encode(images)
    text = editor.invert(z0, SOURCE, uniformity=0.0, steps=4)
    uniform = editor.invert(z0, "", uniformity=1.0, steps=4)
    for share, expected in ((0.0, text), (1.0, uniform)):
        regions = np.full((1, 1, 1, 1), share, np.float32)
        found = editor.invert(z0, SOURCE, regions=regions, steps=4)
        assert_close(found.at(4), expected.at(4), 2e-6)
        assert_close(editor.reconstruct_latents(found), editor.reconstruct_latents(expected), 5e-6)
    assert float(jnp.abs(text.at(4) - uniform.at(4)).max()) > 1e-4


def test_regions_may_differ_by_layer_image_and_pixel(editor: Editor, images: np.ndarray) -> None:
    z0 = editor.encode(images)
    blocks = editor.checkpoint.unet.config.transformer_blocks
    _, h, w, _ = z0.shape
    rng = np.random.default_rng(0)
    regions = rng.uniform(size=(blocks, 3, h, w)).astype(np.float32)
    together = editor.invert(z0, SOURCE, regions=regions, steps=3)
    for i in range(3):
        alone = editor.invert(z0[i : i + 1], SOURCE, regions=regions[:, i : i + 1], steps=3)
        assert_close(alone.at(3)[0], together.at(3)[i])
        assert alone.key != together.key
    one = np.zeros((blocks, 1, 1, 1), np.float32)
    one[-1] = 1
    last = editor.invert(z0, SOURCE, regions=one, steps=3).at(3)
    text = editor.invert(z0, SOURCE, uniformity=0.0, steps=3).at(3)
    assert float(jnp.abs(last - text).max()) > 1e-6


@pytest.mark.parametrize(
    ("regions", "says"),
    [
        (np.zeros((1, 2, 4, 4), np.float32), r"regions have shape \(1, 2, 4, 4\)"),
        (np.zeros((1, 1, 5, 5), np.float32), r"regions have shape \(1, 1, 5, 5\)"),
        (np.full((1, 1, 1, 1), 1.5, np.float32), r"outside \[0, 1\]"),
    ],
)
def test_bad_regions_are_refused(
    editor: Editor, images: np.ndarray, regions: np.ndarray, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        editor.invert(editor.encode(images), regions=regions, steps=3)


def test_a_region_of_the_inversion_needs_a_mask(editor: Editor, images: np.ndarray) -> None:
    config = SMALL.updated({"inversion": {"outside_uniformity": 1.0}})
    with pytest.raises(InputError, match="inversion.outside_uniformity needs"):
        editor.edit(images, [TARGET] * 3, config=config)
    # All inside: nothing is uniform.
    masks = np.ones((3, 8, 8), np.float32)
    inside = editor.edit(images, [TARGET] * 3, masks=masks, config=config)
    plain = editor.edit(images, [TARGET] * 3, masks=masks, config=SMALL)
    assert_close(inside.latents, plain.latents, 1e-4)
    outside = editor.edit(images, [TARGET] * 3, masks=0 * masks, config=config)
    assert float(jnp.abs(outside.source_latents - plain.source_latents).max()) > 1e-4


@pytest.mark.long
def test_a_regional_edit_equals_its_singles(editor: Editor, images: np.ndarray) -> None:
    mask = {"rule": "auto", "radius": 0}
    config = SMALL.updated({"target": {"outside_uniformity": 1.0}, "mask": mask})
    targets = [TARGET, "a cube", "a red ball"]
    together = editor.edit(images, targets, config=config)
    assert 0.05 < float(np.asarray(together.masks).mean()) < 0.95
    for i, target in enumerate(targets):
        alone = editor.edit(images[i : i + 1], [target], config=config)
        assert_close(alone.latents[0], together.latents[i], 1e-4)
        for name, values in together.signals.items():
            assert_close(alone.signals[name][0], values[i], 1e-2)
