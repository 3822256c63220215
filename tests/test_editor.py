"""The whole flow on a tiny random model: counts, batches, inversions as data, and refusals."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, SOURCE, TARGET, VARIANTS, assert_close, tiny_editor

from uam_jax import EditConfig, Editor, InputError
from uam_jax.engine import programs
from uam_jax.engine.predictors import branch_predictor
from uam_jax.method.confidence import MASKED
from uam_jax.method.config import InversionConfig
from uam_jax.method.inversions import DDIM
from uam_jax.method.masks import edit_mask, threshold
from uam_jax.method.schedule import Schedule, warn_of_little_noise
from uam_jax.models import StableDiffusion


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    return tiny_editor(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)


TOLD = {
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
    "in a region": {
        "inversion": {"guidance": 2.0, "outside_uniformity": 1.0},
        "mask": {"user": "replace"},
    },
}
"""Settings of a source that is told a prompt."""


@pytest.mark.parametrize(
    ("name", "source"),
    [
        *((name, SOURCE) for name in VARIANTS),
        *((name, source) for name in TOLD for source in ("", ("", " "), ("", SOURCE), SOURCE)),
    ],
)
def test_evaluations_are_those_that_ran(
    editor: Editor, images: np.ndarray, name: str, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    condition = {} if name in VARIANTS else {"source": {"condition": "prompt"}}
    config = SMALL.updated(VARIANTS[name] if name in VARIANTS else TOLD[name]).updated(condition)
    masks = np.ones((2, 8, 8), np.float32) if config.inversion.outside_uniformity else None
    calls: list[int] = []

    def counted(self, params, latent, time, condition, rules):
        # Called back as the loop runs, once per evaluation. No network: only the calls matter.
        jax.debug.callback(lambda: calls.append(latent.shape[0]))
        return 0.1 * latent + time / 1000, {}

    monkeypatch.setattr(StableDiffusion, "predict", counted)
    compiled = (programs.invert, programs.denoise, programs.edit)
    for program in compiled:
        program.clear_cache()
    told = source if config.source.condition == "prompt" else None
    result = editor.edit(images[:2], [[TARGET, "a cube"]] * 2, told, masks=masks, config=config)
    jax.effects_barrier()
    for program in compiled:
        program.clear_cache()
    each = editor.evaluations(config, targets=2, user_mask=masks is not None, source=told)
    assert sum(calls) == result.evaluations == 2 * each
    # Prompts that say nothing are the null prompt; any that says something counts for all.
    if told is not None and not any(text.strip() for text in told):
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


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_equals_its_singles(editor: Editor, seed: int) -> None:
    images = np.random.default_rng(seed).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    targets = [TARGET, "a cube", "a red ball"]
    together = editor.edit(images, targets, config=SMALL, keep_masks=True)
    share = float(np.asarray(together.masks).mean())
    assert 0.1 < share < 0.9
    for i, target in enumerate(targets):
        alone = editor.edit(images[i : i + 1], [target], config=SMALL, keep_masks=True)
        assert_close(alone.step_masks[:, 0], together.step_masks[:, i])
        assert_close(alone.latents[0], together.latents[i], 1e-4)


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
            prepared={},
            inversion=DDIM(),
        )
        predictions, _ = predict(latents, step, frozenset(SMALL.control.windows(6)))
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


def test_given_inversions_are_used_and_not_spent_again(editor: Editor, images: np.ndarray) -> None:
    z0 = editor.encode(images)
    source = editor.invert(z0, uniformity=0.0, steps=6)
    auxiliary = editor.invert(z0, steps=6, keep="all")
    targets = [TARGET] * 3
    fresh = editor.edit_latents(z0, targets, config=SMALL)
    given = editor.edit_latents(z0, targets, config=SMALL, inversions=[source, auxiliary])
    assert_close(given.latents, fresh.latents)
    blended = editor.plan(SMALL).blended
    assert fresh.evaluations - given.evaluations == 3 * (6 + blended)


def test_an_inversion_is_a_pytree_that_keeps_what_it_knows(
    editor: Editor, images: np.ndarray
) -> None:
    inversion = editor.invert(editor.encode(images), steps=6, keep="all")
    doubled = jax.tree.map(lambda x: 2 * x, inversion)
    assert doubled.key == inversion.key and doubled.levels == tuple(range(7))
    assert_close(inversion.at(0), editor.encode(images))
    assert inversion.key.fingerprint() != dataclasses.replace(inversion.key, steps=5).fingerprint()


def test_foreign_inversions_are_refused(editor: Editor, images: np.ndarray) -> None:
    z0 = editor.encode(images)
    inversion = editor.invert(z0, steps=6, keep="all")

    def edit(given, latents=z0):
        return editor.edit_latents(latents, [TARGET] * 3, config=SMALL, inversions=given)

    key = dataclasses.replace(inversion.key, model_hash="other")
    with pytest.raises(InputError, match="another model .other. than this"):
        edit(dataclasses.replace(inversion, key=key))
    with pytest.raises(InputError, match="uniformity 0.5.*no use"):
        edit(dataclasses.replace(inversion, key=dataclasses.replace(inversion.key, uniformity=0.5)))
    with pytest.raises(InputError, match="other pictures"):
        edit(inversion, z0[::-1])
    with pytest.raises(InputError, match='keep="all"'):
        editor.edit_latents(
            z0, [TARGET] * 3, config=SMALL.updated({"source": {"latents": "anchored"}}),
            inversions=editor.invert(z0, uniformity=0.0, steps=6),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"schedule": "prediction_type"}, "scheduler"),
        ({"vae": "scaling_factor"}, "networks' configs"),
        ({"weights_hash": "other"}, "weights"),
    ],
)
def test_an_inversion_of_another_model_is_refused_by_what_differs(
    editor: Editor, images: np.ndarray, change: dict, part: str
) -> None:
    """Its weights may be the same: an inversion for noise means nothing to a model of velocity."""
    given = editor.checkpoint
    values = {
        "prediction_type": dataclasses.replace(given.schedule, prediction_type="v_prediction"),
        "scaling_factor": given.vae.clone(
            config=dataclasses.replace(given.vae.config, scaling_factor=0.5)
        ),
    }
    [(name, key)] = change.items()
    other = Editor(dataclasses.replace(given, **{name: values.get(key, key)}))
    inversion = editor.invert(editor.encode(images), steps=6)
    for use in (
        lambda: other.reconstruct_latents(inversion),
        lambda: other.edit_latents(
            inversion.at(0), [TARGET] * 3, config=SMALL, inversions=inversion
        ),
    ):
        with pytest.raises(InputError, match=f"differ in {part}; invert again"):
            use()


def test_a_spacing_of_ones_own_is_the_models_where_it_says_so(
    editor: Editor, images: np.ndarray
) -> None:
    trailing = Editor(
        dataclasses.replace(
            editor.checkpoint, schedule=editor.checkpoint.schedule.spaced("trailing")
        )
    )
    z0, told = editor.encode(images), SMALL.updated({"spacing": "trailing"})
    expected = trailing.edit_latents(z0, [TARGET] * 3, config=SMALL)
    found = editor.edit_latents(z0, [TARGET] * 3, config=told)
    np.testing.assert_array_equal(found.latents, expected.latents)
    assert editor.plan(told) == trailing.plan(SMALL)

    inversion = editor.invert(z0, steps=6, spacing="trailing", keep="all")
    plain = editor.invert(z0, steps=6, keep="all")
    assert float(jnp.abs(inversion.latents - plain.latents).max()) > 1e-3
    given = editor.edit_latents(z0, [TARGET] * 3, config=told, inversions=inversion)
    assert given.evaluations < found.evaluations
    assert_close(given.latents, found.latents)
    with pytest.raises(InputError, match="6 trailing steps.*no use in this edit"):
        editor.edit_latents(z0, [TARGET] * 3, config=SMALL, inversions=inversion)


def test_the_models_own_spacing_has_no_name(editor: Editor) -> None:
    plain, told = (
        editor.inverter.key(1, "", InversionConfig(), steps=6, spacing=name)
        for name in ("", "leading")
    )
    assert plain == told and plain.spacing == ""
    with pytest.raises(InputError, match="karras"):
        editor.invert(jnp.zeros((1, 4, 4, 4)), steps=6, spacing="karras")


def test_an_inversion_that_stops_short_of_the_noise_is_told(editor: Editor) -> None:
    warn_of_little_noise.cache_clear()
    with pytest.warns(UserWarning, match="6 steps in leading spacing stop short of the noise"):
        editor.inverter.key(1, "", InversionConfig(), steps=6)


def test_the_key_of_one_image_has_its_prompt_and_region(editor: Editor) -> None:
    regions = np.random.default_rng(0).uniform(size=(1, 3, 4, 4)).astype(np.float32)
    prompts = ["a", "b", ""]
    key = editor.inverter.key(3, prompts, InversionConfig(guidance=2.0), steps=6, regions=regions)
    for index, prompt in enumerate(prompts):
        own = InversionConfig(guidance=2.0), regions[:, index : index + 1]
        alone = editor.inverter.key(1, prompt, own[0], steps=6, regions=own[1])
        assert key.of(index) == alone and key.of(index).fingerprint() == alone.fingerprint()
    same = editor.inverter.key(3, "a", InversionConfig(), steps=6, regions=regions[:, [0, 0, 0]])
    assert len(same.regions) == 1 and same.of(2) == same == same.of(0)


def test_guidance_changes_a_reconstruction(editor: Editor, images: np.ndarray) -> None:
    told = editor.invert(editor.encode(images), SOURCE, uniformity=0.0, steps=6)
    difference = editor.reconstruct_latents(told, guidance=5.0) - editor.reconstruct_latents(told)
    assert float(jnp.abs(difference).max()) > 1e-3


def test_guidance_without_a_prompt_is_none(editor: Editor, images: np.ndarray) -> None:
    told, null = (
        editor.inverter.key(3, prompt, InversionConfig(guidance=5.0), steps=6)
        for prompt in (SOURCE, "")
    )
    assert (told.rows, null.rows, null.guidance) == (2, 1, 1.0)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": [""]}, "empty"),
        ({"target": [[]]}, "empty"),
        ({"target": "a cube"}, "list"),
        ({"target": ["a", "b"]}, "2 entries for 1 images"),
        ({"target": ["a"], "masks": np.ones((1, 9, 8), np.float32)}, "masks have shape"),
        ({"target": ["a"], "masks": np.ones((1, 4, 4), bool)}, r"\(1, 8, 8\) is needed"),
        ({"target": ["a"], "masks": np.full((1, 8, 8), 2, np.float32)}, "outside"),
        ({"target": ["a"], "masks": np.full((1, 8, 8), 255, np.uint8)}, "masks / 255"),
        (
            {"target": ["a"], "config": SMALL.updated({"source": {"condition": "prompt"}})},
            "source prompt",
        ),
        ({"target": ["a"], "images": np.zeros((1, 9, 8, 3), np.float32)}, "multiples of 4"),
        ({"target": ["a"], "images": np.zeros((1, 8, 8, 3), np.uint8)}, "uint8"),
        (
            {"target": ["a"], "images": np.full((1, 8, 8, 3), 2, np.float32)},
            r"from 2 to 2.*\[-1, 1\]",
        ),
        ({"target": ["a"], "images": np.full((1, 8, 8, 3), np.nan)}, r"images\[0\].*not finite"),
        ({"target": [], "images": np.zeros((0, 8, 8, 3), np.float32)}, "no images"),
        ({"target": ["a"], "config": SMALL.updated({"steps": 1000})}, "steps is 1000"),
    ],
)
def test_bad_input_is_named(
    editor: Editor, images: np.ndarray, arguments: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        editor.edit(**{"images": images[:1], "config": SMALL, **arguments})


NAN = np.full((2, 4, 4, 4), np.nan, np.float32)
ZEROS = np.zeros((2, 4, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda it: it.encode(np.zeros((1, 8, 8, 3), np.uint8)), "uint8"),
        (lambda it: it.decode(np.zeros((2, 4, 4, 4), int)), "int64"),
        (lambda it: it.decode(ZEROS[0]), r"shape \(4, 4, 4\)"),
        (lambda it: it.invert(NAN), r"latents\[0\].*not finite"),
        (lambda it: it.invert(ZEROS[..., :3]), r"\(b, h, w, 4\)"),
        (lambda it: it.invert(ZEROS[:, :3]), "multiples of 2"),
        (lambda it: it.invert(ZEROS, steps=1001), "steps is 1001"),
        (lambda it: it.invert(ZEROS, steps=0), "steps is 0"),
        (lambda it: it.invert(ZEROS, guidance=np.nan), "guidance is nan"),
        (lambda it: it.invert(ZEROS, ["a", "b", "c"]), "3 prompts for 2 images"),
        (lambda it: it.invert(ZEROS, ["a"] * 3), "3 prompts for 2 images"),
        (lambda it: it.invert(ZEROS, []), "no prompts"),
        (lambda it: it.generate(["a"], guidance=np.inf), "guidance is inf"),
        (lambda it: it.generate([]), "no prompts"),
        (lambda it: it.condition([]), "no prompts"),
        (lambda it: it.prepare(ZEROS.astype(int)), "int64"),
        (lambda it: it.edit_latents(NAN, ["a", "b"]), r"latents\[0\].*not finite"),
        (lambda it: it.edit_latents(ZEROS, ["a", "b", "c"]), "3 entries for 2 images"),
        (lambda it: it.prepare(ZEROS, masks=np.ones((2, 4, 4))), r"\(2, 8, 8\) is needed"),
        (
            lambda it: it.inversions_needed(shape=ZEROS.shape, masks=np.ones((2, 4, 4))),
            r"\(2, 8, 8\) is needed",
        ),
        (lambda it: it.prepare(ZEROS, images=np.zeros((1, 8, 8, 3))), r"\(2, 8, 8, 3\) is needed"),
        (lambda it: it.prepare(ZEROS, images=np.zeros((2, 4, 4, 3))), r"\(2, 8, 8, 3\) is needed"),
        (lambda it: it.prepare(ZEROS, images=np.full((2, 8, 8, 3), 9.0)), "from 9 to 9"),
        (
            lambda it: it.prepare(
                ZEROS, ["a"] * 3, config=SMALL.updated({"source": {"condition": "prompt"}})
            ),
            "3 prompts for 2 images",
        ),
    ],
)
def test_every_door_is_watched(editor: Editor, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(editor)


def test_a_part_of_an_inversion_of_several_prompts_is_refused(
    editor: Editor, images: np.ndarray
) -> None:
    inversion = editor.invert(editor.encode(images), ["a", "b", "c"], steps=3)
    part = dataclasses.replace(inversion, latents=inversion.latents[:, :2])
    with pytest.raises(InputError, match="3 images with a prompt each, and 2 are left"):
        editor.reconstruct(part)


def test_what_another_model_prepared_is_refused(editor: Editor) -> None:
    prepared = editor.prepare(ZEROS, config=SMALL)
    other = Editor(dataclasses.replace(editor.checkpoint, weights_hash="other"))
    with pytest.raises(InputError, match="another model .* differ in .*weights"):
        other.edit_prepared(prepared, ["a", "b"])


def test_an_ignored_source_gives_a_warning(editor: Editor, images: np.ndarray) -> None:
    with pytest.warns(UserWarning, match="source prompt is ignored"):
        editor.edit(images[:1], [TARGET], SOURCE, config=SMALL)


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


def test_known_words_are_told(editor: Editor, tmp_path: Path) -> None:
    settings = {"words": ["a", "red", "cube"]}
    knowing = Editor(dataclasses.replace(editor.checkpoint, settings=settings))
    knowing.check_prompts(["a red, cube."])
    with pytest.warns(UserWarning, match=r"never seen dragon.*--model"):
        knowing.check_prompts(["a red dragon"])


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


def test_a_regional_edit_equals_its_singles(editor: Editor, images: np.ndarray) -> None:
    config = SMALL.updated({"target": {"outside_uniformity": 1.0}, "mask": {"rule": "auto"}})
    targets = [TARGET, "a cube", "a red ball"]
    together = editor.edit(images, targets, config=config)
    assert 0.05 < float(np.asarray(together.masks).mean()) < 0.95
    for i, target in enumerate(targets):
        alone = editor.edit(images[i : i + 1], [target], config=config)
        assert_close(alone.latents[0], together.latents[i], 1e-4)
        for name, values in together.signals.items():
            assert_close(alone.signals[name][0], values[i], 1e-2)


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


def test_an_edit_tells_about_itself(editor: Editor, images: np.ndarray) -> None:
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
