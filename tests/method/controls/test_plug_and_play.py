"""Plug-and-Play: its rows, windows and blocks, and edits of a tiny model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import MODULES
from tiny import SMALL, SOURCE, TARGET, assert_close

from uam_jax import Edit, Editor, InputError
from uam_jax.method.controls import Moment, PlugAndPlay
from uam_jax.method.controls.plug_and_play import SharedFeatures
from uam_jax.method.plan import Row, branch_rows
from uam_jax.method.schedule import Schedule
from uam_jax.models import StableDiffusion, UNet, UNetConfig
from uam_jax.types import Rules

CONFIG = SMALL.updated(
    {
        "steps": 5,
        "mask": {"rule": "none"},
        "control": {"kind": "plug-and-play", "map_steps": 1.0, "feature_steps": 1.0},
    }
)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


def test_blocks_follow_from_the_networks_structure() -> None:
    config = UNetConfig.from_dict({"cross_attention_dim": 768})
    sites = StableDiffusion(UNet(config), MODULES["text_encoder"]).sites
    found = PlugAndPlay().fitted(sites)
    # The second ResNet block of the second level on the way up, and the transformer blocks from there on.
    assert (found.resnet, found.block_start) == (14, 8)
    assert PlugAndPlay(block_start=10, resnet=3).fitted(sites).resnet == 3
    up = [site for site in sites if site.part != "up"]
    with pytest.raises(InputError, match=r"set control.block_start and control.resnet"):
        PlugAndPlay(resnet=3).fitted(up)
    assert PlugAndPlay(block_start=10, resnet=3).fitted(up).block_start == 10


@pytest.mark.parametrize(("steps", "expected"), [(50, (40, 25)), (10, (8, 5)), (5, (4, 2))])
def test_windows_are_rounded_down(steps: int, expected: tuple[int, int]) -> None:
    found = PlugAndPlay().windows(steps)
    assert (found["features"], found["maps"]) == tuple(range(stop) for stop in expected)


@pytest.mark.parametrize("source", ["null", "prompt"])
def test_one_row_of_the_source_serves_both_halves(source: str) -> None:
    control = PlugAndPlay(block_start=8, resnet=14)
    rows = control.branches(branch_rows(guided=True, prompted=source == "prompt"))
    assert rows == (
        Row("source", "null"), Row("target", "negative", "unguided"), Row("target", "target")
    )  # fmt: skip
    step = jax.tree.map(lambda x: x[0], Schedule().denoising(10))

    def rules(*active: str) -> tuple:
        found = control.rules(rows, 2, {}, Moment(step, 10, frozenset(active)))
        return found.cross, found.own and found.own.source_of, found.residual

    everywhere = (0, 1, 0, 1, 0, 1)
    features = SharedFeatures(everywhere, 14)
    assert rules() == (None, None, None)
    assert control.rules(rows[1:], 2, {}, Moment(step, 10)) == Rules()  # the source is left out
    assert rules("features") == (None, None, features)
    assert rules("features", "maps") == (None, everywhere, features)
    h = jnp.arange(6.0).reshape(6, 1, 1, 1)
    for number, expected in ((13, [0, 1, 2, 3, 4, 5]), (14, everywhere)):
        site = MODULES_SITE._replace(number=number)
        assert features(site, h).ravel().tolist() == list(expected)


MODULES_SITE = StableDiffusion(MODULES["unet"], MODULES["text_encoder"]).sites[0]


def test_it_acts_on_each_picture_alone(editor: Editor, images: np.ndarray) -> None:
    targets = [TARGET, "a cube"]
    drawn = editor.edit(images, targets, config=CONFIG)
    none = editor.edit(images, targets, config=CONFIG.updated({"control": "none"}))
    assert np.abs(drawn.latents - none.latents).max() > 1e-3
    # Five steps of an inversion, and of a source, and of a target in two halves.
    assert drawn.evaluations == 2 * 5 * (1 + 3)
    alone = editor.edit(images[1:], targets[1:], config=CONFIG)
    assert_close(alone.latents[0], drawn.latents[1], 1e-4)


def test_the_inversion_has_its_own_prompt_and_the_target_a_negative_one(
    editor: Editor, images: np.ndarray
) -> None:
    own = CONFIG.updated({"source": {"condition": "prompt"}})
    edits = [Edit(TARGET, negative="a cone"), Edit(TARGET)]
    plain, prompted = (
        editor.edit(images, edits, source, config=config)
        for source, config in ((None, CONFIG), (SOURCE, own))
    )
    assert prompted.evaluations == plain.evaluations
    assert np.abs(prompted.latents - plain.latents).max() > 1e-4
    without = editor.edit(images, [TARGET] * 2, SOURCE, config=own)
    assert_close(without.latents[1], prompted.latents[1], 1e-5)
    assert np.abs(without.latents[0] - prompted.latents[0]).max() > 1e-4
