"""The world: pictures are functions of scenes, edits are exact, and captions describe the pictures."""

import itertools
import re

import jax
import numpy as np
import pytest

from uam_jax import scenes
from uam_jax.scenes import ATTRIBUTES, EMPTY, VOCABULARY, Scene, make_scene

BASE = make_scene(
    shape="cube", colour="red", surface="wooden", wall="blue", size="large", place="centre"
)


COUNT = 48


def show(scene: Scene) -> np.ndarray:
    """Renders scenes with one program for all tests, because it compiles slowly."""
    return scenes.render_in_chunks(scene, chunk=COUNT)


@pytest.fixture(scope="module")
def drawn() -> Scene:
    return scenes.sample(jax.random.key(3), COUNT, empty=0.1)


@pytest.fixture(scope="module")
def pictures(drawn: Scene) -> np.ndarray:
    return show(drawn)


def test_sample_is_uniform_and_repeatable():
    scene = scenes.sample(jax.random.key(0), 4000, empty=0.04)
    again = scenes.sample(jax.random.key(0), 4000, empty=0.04)
    jax.tree.map(np.testing.assert_array_equal, scene, again)
    assert 0.02 < np.mean(scene.shape == EMPTY) < 0.06
    for name, words in ATTRIBUTES.items():
        values = np.asarray(getattr(scene, name))
        counts = np.bincount(values[scene.shape != EMPTY], minlength=len(words))
        assert counts.min() > 0.7 * counts.max()
    assert np.abs(scene.jitter).max() <= 1.0


def test_pictures_are_images(pictures: np.ndarray):
    assert pictures.shape == (COUNT, 64, 64, 3)
    assert pictures.dtype == np.float32
    assert np.isfinite(pictures).all()
    assert np.abs(pictures).max() <= 1.0
    assert pictures.std(axis=(1, 2, 3)).min() > 0.05


def test_picture_does_not_depend_on_its_batch(drawn: Scene, pictures: np.ndarray):
    np.testing.assert_array_equal(scenes.render(drawn), pictures)
    order = np.random.default_rng(0).permutation(COUNT)
    np.testing.assert_array_equal(scenes.render(drawn[order]), pictures[order])
    np.testing.assert_array_equal(show(drawn[3:8]), pictures[3:8])


def test_size_changes_only_the_resolution(drawn: Scene, pictures: np.ndarray):
    large = np.asarray(scenes.render_in_chunks(drawn[:16], size=128, chunk=16))
    reduced = large.reshape(16, 64, 2, 64, 2, 3).mean((2, 4))
    error = np.abs(reduced - pictures[:16])
    assert error.mean() < 0.01
    assert np.sqrt((error**2).mean()) < 0.04


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_values_differ_visibly(attribute: str):
    options = scenes.flatten(scenes.alternatives(BASE, attribute))
    shown = show(options)
    for first, second in itertools.combinations(range(len(shown)), 2):
        changed = np.abs(shown[first] - shown[second]).max(-1) > 0.1
        assert changed.mean() > 0.02, (attribute, first, second)


@pytest.mark.long
def test_edit_changes_only_its_mask(drawn: Scene, pictures: np.ndarray):
    after = drawn.replace(colour=(drawn.colour + 1) % len(ATTRIBUTES["colour"]))
    mask = np.asarray(scenes.edit_mask(drawn, after))
    target = show(after)
    assert np.abs(target - pictures).max(-1)[~mask].max() <= 0.04 + 1e-6
    empty = np.asarray(drawn.shape) == EMPTY
    assert empty.any()
    assert not mask[empty].any()
    # A new colour stays on the object, whose antialiased edge may extend by one pixel.
    covered = np.asarray(scenes.object_mask(drawn))
    near = np.zeros_like(covered)
    for dy, dx in itertools.product((-1, 0, 1), repeat=2):
        near |= np.roll(covered, (dy, dx), (1, 2))
    assert not (mask & ~near).any()
    assert (mask & covered).sum() > 0.9 * covered.sum()
    assert not np.asarray(scenes.edit_mask(drawn, drawn)).any()


def test_objects_fit_and_are_legible():
    shapes = scenes.flatten(scenes.alternatives(BASE, "shape"))
    edge = np.array([-1.0, 1.0, 0.0])
    moved = [
        shapes.replace(size="small"),
        shapes.replace(size="large"),
        shapes.replace(place="left", size="large", jitter=edge),
        shapes.replace(place="right", size="large", jitter=-edge * (1, -1, 1)),
        shapes.replace(place="left", size="small", jitter=edge),
        shapes.replace(place="right", size="small", jitter=edge),
    ]
    masks = np.asarray(scenes.object_mask(scenes.concatenate(*moved))).reshape(6, -1, 64, 64)
    for mask, low, high in ((masks[0], 16, 25), (masks[1], 24, 38)):
        rows = mask.any(2).sum(1)
        assert rows.min() >= low
        assert rows.max() <= high
    for border in (masks[:, :, [0, -1]], masks[:, :, :, [0, -1]]):
        assert not border.any()


def test_captions_say_the_scene(drawn: Scene):
    text = scenes.caption(BASE[0])
    thing, place = "a large red cube", "in the centre of a wooden table in front of a blue wall"
    assert text == f"{thing} {place}, lit from the left"
    short = scenes.caption(BASE[0], detail="short")
    assert short == "a red cube on a wooden table in front of a blue wall"
    empty = scenes.caption(BASE.replace(shape="empty")[0], detail="short")
    assert empty == "an empty wooden table in front of a blue wall"
    for i, text in enumerate(scenes.captions(drawn)):
        named = scenes.read_caption(text)
        assert named == {k: int(getattr(drawn, k)[i]) for k in named}
        assert len(named) == (3 if int(drawn.shape[i]) == EMPTY else 7) + (named["shape"] == EMPTY)


def test_random_captions_name_object_colour_surface_and_wall():
    scene = scenes.sample(jax.random.key(5), 400)
    texts = scenes.captions(scene, 1)
    assert texts == scenes.captions(scene, np.random.default_rng(1))
    assert len({len(text.split()) for text in texts}) > 5
    for i, text in enumerate(texts):
        assert set(re.findall(r"\w+", text)) <= VOCABULARY
        named = scenes.read_caption(text)
        assert {"shape", "surface", "wall"} <= set(named)
        assert named["shape"] == EMPTY or "colour" in named
        assert named == {k: int(getattr(scene, k)[i]) for k in named}


def test_full_captions_are_unique():
    scene = scenes.sample(jax.random.key(6), 500, empty=0.0)
    values = np.stack([np.asarray(getattr(scene, name)) for name in ATTRIBUTES], axis=1)
    specs = np.unique(values, axis=0)
    assert len(set(scenes.captions(scene))) == len(specs)


@pytest.mark.parametrize(("attribute", "count"), [("shape", 6), ("place", 16)])
def test_nearest_alternative_finds_the_value(
    attribute: str, count: int, drawn: Scene, pictures: np.ndarray
):
    there = np.flatnonzero(np.asarray(drawn.shape) != EMPTY)[:count]
    found = scenes.nearest_alternative(pictures[there], drawn[there], attribute)
    np.testing.assert_array_equal(found, getattr(drawn, attribute)[there])


@pytest.mark.long
def test_nearest_attributes_survive_noise():
    scene = scenes.sample(jax.random.key(8), COUNT, empty=0.1)
    scene = scene.replace(surface=scene.surface % 2, wall="blue")
    noisy = show(scene)
    noisy = noisy + 0.1 * np.random.default_rng(0).standard_normal(noisy.shape, np.float32)
    found = scenes.nearest_attributes(noisy)
    np.testing.assert_array_equal(found.shape, scene.shape)
    there = np.asarray(scene.shape) != EMPTY
    for name in ("colour", "size", "place"):
        np.testing.assert_array_equal(getattr(found, name)[there], getattr(scene, name)[there])
    for name in ("surface", "wall", "light"):
        np.testing.assert_array_equal(getattr(found, name), getattr(scene, name))


def test_nearest_attributes_take_the_known_background(drawn: Scene, pictures: np.ndarray):
    some = np.flatnonzero(np.asarray(drawn.shape) != EMPTY)[:1]
    found = scenes.nearest_attributes(pictures[some], drawn[some])
    np.testing.assert_array_equal(found.shape, drawn.shape[some])
    with pytest.raises(ValueError, match="averaged down"):
        scenes.nearest_attributes(pictures[:1], size=48)
