"""The whole flow on a tiny random model: counts, batches, inversions as data, and refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, SOURCE, TARGET, VARIANTS, assert_close
from transfers import Transfers

from uam_jax import EditConfig, Editor
from uam_jax.engine import programs
from uam_jax.engine.parallel import Program
from uam_jax.engine.predictors import branch_predictor
from uam_jax.method.confidence import MASKED
from uam_jax.method.controls import Moment
from uam_jax.method.inversions import DDIMInversion
from uam_jax.method.masks import edit_mask, threshold
from uam_jax.method.schedule import Schedule
from uam_jax.models import StableDiffusion


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)


PROMPTED = {
    "guided": {"inversion": {"guidance": 2.0}},
    "guided, anchored": {"inversion": {"guidance": 2.0}, "source": {"latents": "anchored"}},
    "guided, as the auxiliary": {
        "inversion": {"guidance": 2.0, "uniformity": 1.0},
        "auxiliary": {"latents": "replay"},
    },
    "not guided": {
        "guidance": 1.0,
        "source": {"latents": "anchored"},
        "auxiliary": {"latents": "original"},
    },
    "looked at": {"guidance": 3.0},
    "in a region": {
        "inversion": {"guidance": 2.0, "outside_uniformity": 1.0},
        "mask": {"user": "replace"},
    },
}
"""Settings of a source with a prompt."""


@pytest.mark.parametrize(
    ("name", "source"),
    [
        *((name, SOURCE) for name in VARIANTS),
        *((name, source) for name in PROMPTED for source in ("", ("", " "), ("", SOURCE), SOURCE)),
    ],
)
def test_evaluations_are_those_that_ran(
    editor: Editor, images: np.ndarray, name: str, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompted = {"source": {"condition": "auto" if name == "looked at" else "prompt"}}
    condition = {} if name in VARIANTS else prompted
    config = SMALL.updated(VARIANTS[name] if name in VARIANTS else PROMPTED[name]).updated(
        condition
    )
    masks = np.ones((2, 8, 8), np.float32) if config.inversion.outside_uniformity else None
    calls: list[int] = []

    def counted(self, params, latent, time, condition, rules):
        # Called back as the loop runs, once per evaluation. No network: only the calls matter.
        jax.debug.callback(lambda: calls.append(latent.shape[0]))
        return 0.1 * latent + time / 1000, {}

    monkeypatch.setattr(StableDiffusion, "predict", counted)
    compiled = (programs.invert, programs.denoise, programs.edit, programs.agreement)
    for program in compiled:
        program.clear_cache()
    prompts = None if config.source.condition == "null" else source
    result = editor.edit(images[:2], [[TARGET, "a cube"]] * 2, prompts, masks=masks, config=config)
    jax.effects_barrier()
    for program in compiled:
        program.clear_cache()
    each = editor.evaluations(config, targets=2, user_mask=masks is not None, source=prompts)
    assert sum(calls) == result.evaluations == 2 * each
    # Prompts that say nothing are the null prompt; any that says something counts for all.
    if prompts is not None and not any(text.strip() for text in prompts):
        assert each == editor.evaluations(
            config.updated({"source": {"condition": "null"}}),
            targets=2,
            user_mask=masks is not None,
        )
    else:
        assert each == editor.evaluations(config, targets=2, user_mask=masks is not None)
    assert result.source_index.tolist() == [0, 0, 1, 1] and result.images.shape == (4, 8, 8, 3)
    assert np.isfinite(np.asarray(result.images)).all()


def test_counts_of_the_method(editor: Editor) -> None:
    released = EditConfig.load("released")
    assert editor.evaluations(released) == 300
    assert editor.evaluations(released.updated({"auxiliary": {"latents": "anchored"}})) == 220
    fewest = {
        "auxiliary": {"latents": "anchored"},
        "source": {"latents": "anchored"},
        "control": "none",
    }
    assert editor.evaluations(released.updated(fewest)) == 180
    assert editor.evaluations(released.updated({**fewest, "mask": {"t_mask": 21}})) == 153
    assert editor.evaluations(released, targets=3) == 150 + 3 * 150
    assert editor.evaluations(editor.preset("fast")) == 59
    assert editor.evaluations(editor.preset("default")) == 220
    assert editor.evaluations(editor.preset("captioned")) == 250


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_equals_its_singles(editor: Editor, seed: int) -> None:
    images = np.random.default_rng(seed).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    targets = [TARGET, "a cube", "a red ball"]
    config = SMALL.updated({"agreement": True})
    together = editor.edit(images, targets, config=config, keep_masks=True)
    share = float(np.asarray(together.masks).mean())
    assert 0.1 < share < 0.9
    for i, target in enumerate(targets):
        alone = editor.edit(images[i : i + 1], [target], config=config, keep_masks=True)
        assert_close(alone.step_masks[:, 0], together.step_masks[:, i])
        assert_close(alone.latents[0], together.latents[i], 1e-4)
        agreements = alone.signals["agreement"][0], together.signals["agreement"][i]
        assert_close(*agreements, 1e-4)


def test_a_batch_equals_its_singles_in_every_step(editor: Editor) -> None:
    """From shared latents, so that no earlier difference can tip a threshold."""
    plan, step = editor.plan(SMALL), jax.tree.map(lambda x: x[4], Schedule().denoising(6))
    target = editor.condition([TARGET, "a cube", "a red ball"])
    rng = np.random.default_rng(1)
    latents = {
        name: jnp.asarray(rng.normal(size=(3, 4, 4, 4)), jnp.float32)
        for name in ("source", "target")
    }

    @jax.jit
    def cleaned(latents, target):
        null = editor.condition("")
        predict = branch_predictor(
            editor.inverter.model(),
            editor.params,
            plan.rows,
            {"null": null, "negative": null, "source": null, "target": target},
            3.0,
            control=SMALL.control,
            control_data={},
            method=DDIMInversion(),
        )
        predictions, _ = predict(latents, Moment(step, 6, frozenset(SMALL.control.windows(6))))
        return [predictions[k].clean for k in latents]

    source, edited = cleaned(latents, target)
    quantile = jnp.float32(0.4)
    masks = edit_mask(source - edited, quantile, rule="released", radius=1)
    assert 0.1 < float(masks.mean()) < 0.95
    for i in range(3):
        row = slice(i, i + 1)
        alone = cleaned(*jax.tree.map(lambda x, row=row: x[row], (latents, target)))
        for one, every in zip(alone, (source, edited), strict=True):
            assert_close(one, every[row], 1e-5 * float(jnp.abs(every).max()))
        difference = source[row] - edited[row]
        margin = jnp.abs(jnp.abs(difference) / (2 * threshold(difference, quantile)) - 1)
        assert float(margin.min()) > 1e-4  # nothing near its threshold, so every mask must agree
        mask = edit_mask(alone[0] - alone[1], quantile, rule="released", radius=1)
        np.testing.assert_array_equal(mask, masks[row])


def test_pixels_outside_the_mask_are_the_originals(editor: Editor, images: np.ndarray) -> None:
    masks = np.zeros((3, 8, 8), np.float32)
    masks[:, :, :4] = 1
    config = SMALL.updated({"preserve": "pixels"})
    result = editor.edit(images, [TARGET] * 3, masks=masks, config=config)
    np.testing.assert_array_equal(np.asarray(result.images)[:, :, 4:], images[:, :, 4:])


def test_a_user_mask_from_the_start_keeps_the_rest(editor: Editor, images: np.ndarray) -> None:
    masks = np.zeros((3, 8, 8), np.float32)
    config = SMALL.updated(
        {"auxiliary": {"latents": "original"}, "mask": {"user": "replace", "user_from_start": True}}
    )
    result = editor.edit(images, [TARGET] * 3, masks=masks, config=config)
    assert float(np.asarray(result.masks).max()) == 0
    # The last level is not quite clean: a share √(1-ᾱ_0) = 0.03 of the predicted noise remains.
    z0, schedule = editor.encode(images), Schedule()
    level = schedule.final_alpha_bar
    noise = (result.latents - np.sqrt(level) * z0) / np.sqrt(1 - level)
    assert 0 < float(jnp.abs(noise).mean()) < 2


def test_generation_depends_on_seed_and_position_only(editor: Editor) -> None:
    first = editor.generate([SOURCE, TARGET, SOURCE], seed=1, steps=3)
    second = editor.generate([SOURCE, SOURCE, "a cube"], seed=1, steps=3)
    assert_close(first[0], second[0])
    assert float(jnp.abs(first[0] - first[2]).max()) > 1e-3


def test_new_prompts_and_scales_compile_nothing(editor: Editor, images: np.ndarray) -> None:
    editor.edit(images[:1], [TARGET], config=SMALL)
    before = programs.edit.compilations, programs.invert.compilations
    changed = SMALL.updated({"guidance": 2.0, "mask": {"quantile": 0.3}})
    editor.edit(images[1:2], ["a cube"], config=changed)
    assert (programs.edit.compilations, programs.invert.compilations) == before


@pytest.mark.long
def test_more_corrections_of_the_inversion_compile_the_inversions_alone(
    editor: Editor, images: np.ndarray
) -> None:
    all_of_them = [each for each in vars(programs).values() if isinstance(each, Program)]
    once, twice = (
        SMALL.updated({"inversion": {"kind": "fixed_point", "iterations": k}}) for k in (1, 2)
    )

    def compiled(config: EditConfig) -> int:
        editor.edit(images[:1], [TARGET], config=config)
        return sum(each.compilations for each in all_of_them)

    for each in all_of_them:
        each.clear_cache()
    size = (8, 8)
    first, second, text = editor.programs(once, size), editor.programs(twice, size), 1
    assert compiled(once) == len(first) + text
    assert {name[0] for name in second - first} == {"invert"}
    assert compiled(twice) == len(first | second) + text
    # One that takes part in the edit has programs of its own there, and where the auxiliary branch goes down.
    taking_part = SMALL.updated({"inversion": "my_module:MyInversion"})
    third = editor.programs(taking_part, size)
    assert {name[0] for name in third - first} == {"invert", "denoise", "edit"}
    assert compiled(taking_part) == len(first | second | third) + text


def test_pictures_go_to_the_device_once_and_only_results_come_back(
    editor: Editor, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.updated({"preserve": "pixels"})
    options = {"masks": np.ones((2, 8, 8), np.float32), "config": config}
    targets = [[TARGET, "a cube"]] * 2
    editor.edit(images[:2], targets, **options)
    transfers = Transfers(monkeypatch)
    editor.edit(images[:2], targets, **options)
    [results] = transfers.to_host
    assert [shape for shape in results if len(shape) == 4] == [(4, 8, 8, 3)]
    # Pictures, the masks at the latent's size, tokens of the targets, and the number of each target's picture.
    sent = sorted(shape for call in transfers.to_devices for shape in call)
    assert sent == [(2, 4, 4, 1), (2, 8, 8, 3), (4,), (4, 77)]


def test_masks_and_confidence_are_of_the_pictures_that_are_returned(
    editor: Editor, images: np.ndarray
) -> None:
    masks = np.zeros((3, 8, 8), np.float32)
    masks[:, 2:5, 2:5] = 1
    config = SMALL.updated({"preserve": "pixels", "mask": {"user": "replace"}})
    whole = editor.edit_latents(
        editor.encode(images), [TARGET] * 3, masks=masks, config=config, images=images
    )
    result = editor.edit(images, [TARGET] * 3, masks=masks, config=config)
    for i, image in enumerate(images):
        one = whole.deliver(i, image, within=masks[i])
        np.testing.assert_array_equal(result.images[i], one.pixels)
        np.testing.assert_array_equal(result.masks[i], one.mask)
        assert result.signals["share"][i] == pytest.approx(one.mask.mean())
        assert 0 < one.mask.mean() <= 9 / 64
        assert (result.confidence[i], result.review[i]) == (one.confidence, one.review)
    assert result.signals.keys() == whole.signals.keys()
    assert float(whole.signals["moved"][0]) > 1.5 * float(result.signals["moved"][0])


def test_an_edit_that_was_free_nowhere_is_not_trusted(editor: Editor, images: np.ndarray) -> None:
    config = SMALL.updated({"preserve": "pixels", "mask": {"user_from_start": True}})
    nothing = np.zeros((3, 8, 8), np.float32)
    result = editor.edit(images, [TARGET] * 3, masks=nothing, config=config)
    np.testing.assert_array_equal(result.images, images)
    assert not result.confidence.any() and list(result.review) == [MASKED] * 3


def test_an_edits_signals(editor: Editor, images: np.ndarray) -> None:
    result = editor.edit(images, [[TARGET, "a cube"]] * 3, config=SMALL)
    assert result.error_map.shape == (3, 8, 8)
    rebuilt = np.asarray(editor.decode(result.auxiliary_latents))
    assert_close(result.error_map, np.abs(rebuilt - images).mean(-1) / 2)
    error = np.square(rebuilt - images).mean((1, 2, 3)) / 4
    assert_close(result.signals["reconstruction"], np.repeat(-10 * np.log10(error), 2), 1e-3)
    assert all(np.isfinite(values).all() for values in result.signals.values())
    assert result.confidence.shape == (6,) and len(result.review) == 6
    assert ((result.confidence >= 0) & (result.confidence <= 1)).all()
    # Noise through a random model: nothing that it could reproduce.
    assert all("cannot reproduce" in why for why in result.review)
