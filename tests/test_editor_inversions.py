"""Inversions as values: used where they fit, refused where they do not, and named by what decides them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, SOURCE, TARGET, assert_close

from uam_jax import Editor, InputError
from uam_jax.method.config import InversionConfig
from uam_jax.method.inversions import FixedPointInversion
from uam_jax.method.schedule import warn_of_little_noise


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)


@pytest.mark.long
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
    whole = editor.invert(z0, uniformity=0.0, steps=6)
    with pytest.raises(InputError, match='keep="all"'):
        editor.edit_latents(
            z0, [TARGET] * 3, config=SMALL.updated({"source": {"latents": "anchored"}}),
            inversions=dataclasses.replace(
                whole, latents=whole.latents[jnp.array([0, -1])], levels=(0, 6)
            ),
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


@pytest.mark.long
def test_a_spacing_of_ones_own_is_the_models_where_it_says_so(
    editor: Editor, images: np.ndarray
) -> None:
    trailing = Editor(
        dataclasses.replace(
            editor.checkpoint, schedule=editor.checkpoint.schedule.spaced("trailing")
        )
    )
    z0, own = editor.encode(images), SMALL.updated({"spacing": "trailing"})
    expected = trailing.edit_latents(z0, [TARGET] * 3, config=SMALL)
    found = editor.edit_latents(z0, [TARGET] * 3, config=own)
    np.testing.assert_array_equal(found.latents, expected.latents)
    assert editor.plan(own) == trailing.plan(SMALL)

    inversion = editor.invert(z0, steps=6, spacing="trailing", keep="all")
    plain = editor.invert(z0, steps=6, keep="all")
    assert float(jnp.abs(inversion.latents - plain.latents).max()) > 1e-3
    given = editor.edit_latents(z0, [TARGET] * 3, config=own, inversions=inversion)
    assert given.evaluations < found.evaluations
    assert_close(given.latents, found.latents)
    with pytest.raises(InputError, match="6 trailing steps.*no use in this edit"):
        editor.edit_latents(z0, [TARGET] * 3, config=SMALL, inversions=inversion)


def test_the_models_own_spacing_has_no_name(editor: Editor) -> None:
    plain, own = (
        editor.inverter.key(1, "", InversionConfig(), steps=6, spacing=name)
        for name in ("", "leading")
    )
    assert plain == own and plain.spacing == ""
    with pytest.raises(InputError, match="karras"):
        editor.invert(jnp.zeros((1, 4, 4, 4)), steps=6, spacing="karras")


def test_an_inversion_that_stops_short_of_the_noise_gives_a_warning(editor: Editor) -> None:
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
    own = editor.invert(editor.encode(images), SOURCE, uniformity=0.0, steps=6)
    difference = editor.reconstruct_latents(own, guidance=5.0) - editor.reconstruct_latents(own)
    assert float(jnp.abs(difference).max()) > 1e-3


def test_guidance_without_a_prompt_is_none(editor: Editor, images: np.ndarray) -> None:
    own, null = (
        editor.inverter.key(3, prompt, InversionConfig(guidance=5.0), steps=6)
        for prompt in (SOURCE, "")
    )
    assert (own.rows, null.rows, null.guidance) == (2, 1, 1.0)


def test_an_inversion_with_another_sampler_or_method_is_refused(
    editor: Editor, images: np.ndarray
) -> None:
    z0 = editor.encode(images)
    others = [{"sampler": "dpm++2m"}, {"method": FixedPointInversion(iterations=1)}]
    for other in others:
        inversion = editor.invert(z0, steps=6, keep="all", **other)
        with pytest.raises(InputError, match="has no use in this edit.*invert again"):
            editor.edit_latents(z0, [TARGET] * 3, config=SMALL, inversions=inversion)
    both = SMALL.updated({"sampler": "dpm++2m", "inversion": "fixed_point"})
    with pytest.raises(
        InputError, match=r"sampler is dpm\+\+2m, and FixedPointInversion works with ddim"
    ):
        editor.edit_latents(z0, [TARGET] * 3, config=both)
    with pytest.raises(InputError, match="FixedPointInversion works with ddim"):
        editor.invert(z0, steps=6, sampler="dpm++2m", method=FixedPointInversion())


def test_without_a_correction_fixed_point_is_ddim_to_the_bit(
    editor: Editor, images: np.ndarray
) -> None:
    z0 = editor.encode(images)
    plain = editor.invert(z0, SOURCE, uniformity=0.0, steps=6)
    none = editor.invert(
        z0, SOURCE, uniformity=0.0, steps=6, method=FixedPointInversion(iterations=0)
    )
    np.testing.assert_array_equal(none.latents, plain.latents)
    corrected = editor.invert(
        z0, SOURCE, uniformity=0.0, steps=6, method=FixedPointInversion(iterations=2)
    )
    assert corrected.data["residual"].shape == (6, 3)
    for each in (plain, none):
        np.testing.assert_array_equal(
            each.figures["estimated_residual"], np.asarray(plain.data["residual"]).max(axis=0)
        )
    assert (np.asarray(plain.figures["estimated_residual"]) > 0).all()
    assert editor.invert(z0, steps=1).figures == {}
    np.testing.assert_array_equal(
        corrected.figures["residual"], np.asarray(corrected.data["residual"]).max(axis=0)
    )
    assert corrected.key.fingerprint() != none.key.fingerprint() != plain.key.fingerprint()
