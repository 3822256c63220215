"""Scenes-Bench: its items are fixed and balanced, and edits are judged by the attributes that they change."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from uam_jax import InputError, scenes
from uam_jax.evaluation.scenes_bench import KINDS, VERSION, Items, draw_items, judge, render_truth

THIRDS = ("tune", "report", "reserve")


@pytest.fixture(scope="module")
def items() -> Items:
    return draw_items()


def test_the_benchmark_is_that_of_its_version(items: Items) -> None:
    """A changed item needs a new version, and a new digest here."""
    text = "\n".join(
        map(repr, zip(items.ids, items.thirds, items.sources, items.targets, strict=True))
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert (VERSION, digest) == (1, "79487669b3ac")


def test_counts(items: Items) -> None:
    assert len(items) == sum(KINDS.values()) == 700 and len(set(items.ids)) == 700
    assert Counter(items.kinds) == KINDS
    assert Counter(items.thirds) == {"tune": 238, "report": 234, "reserve": 228}


def test_words_to_blend_are_what_is_edited(items: Items) -> None:
    found = dict(zip(items.ids, items.words, strict=True))
    for name, source, target in zip(items.ids, items.sources, items.targets, strict=True):
        for word in found[name].blend:
            assert word in f"{source} {target}".replace(",", "").split()
    counts = {
        "colour": {1}, "shape": {2}, "wall": {1}, "light": {0}, "no-change": {0},
        "two-attributes": {2, 3}, "wrong-source": {2},
    }  # fmt: skip
    for kind, expected in counts.items():
        own = [words for name, words in found.items() if name.startswith(f"{kind}/")]
        assert {len(words.blend) for words in own} == expected
    assert {words.blend for name, words in found.items() if name.startswith("wall/")} == {("wall",)}


@pytest.mark.long
def test_an_item_changes_its_edited_attributes_and_nothing_else(items: Items) -> None:
    for row in range(len(items)):
        one = items.take([row])
        differ = {
            name
            for name in scenes.ATTRIBUTES
            if int(getattr(one.before, name)[0]) != int(getattr(one.after, name)[0])
        }
        assert differ == set(one.edited[0]), one.ids
        named = scenes.read_caption(one.targets[0])
        assert named["surface"] == int(one.after.surface[0])
        wrong = scenes.read_caption(one.sources[0])["colour"] != int(one.before.colour[0])
        assert wrong == (one.kinds[0] == "wrong source")
        if one.kinds[0] == "remove":
            assert named["shape"] == scenes.EMPTY
    np.testing.assert_array_equal(items.before.jitter, items.after.jitter)


def test_a_selection_is_a_prefix_with_every_kind_by_its_share(items: Items) -> None:
    few, more = items.select(["tune"], 50), items.select(["tune"], 100)
    assert few.ids == more.ids[:50] and set(few.thirds) == {"tune"}
    counts = Counter(more.kinds)
    for kind, count in KINDS.items():
        assert abs(counts[kind] - count / 7) <= 1
    assert len(items.select(THIRDS)) == 700
    assert not set(few.ids) & set(items.select(["report"]).ids)


def test_bad_selections_are_refused(items: Items) -> None:
    with pytest.raises(InputError, match="239 items are requested, but tune has 238"):
        items.select(["tune"], 239)
    with pytest.raises(InputError, match="no third 'test'"):
        items.select(["test"])


def test_another_seed_draws_other_items(items: Items) -> None:
    assert draw_items(1).sources != items.sources and draw_items(0).sources == items.sources


@pytest.mark.long
def test_exact_answers_succeed_and_sources_fail(items: Items) -> None:
    some = items.select(["tune"], 12)
    truth = render_truth(some, 32)
    assert judge(truth.answers, truth).all()
    changed = np.asarray([bool(edited) for edited in some.edited])
    assert changed.any() and not changed.all()
    np.testing.assert_array_equal(judge(truth.sources, truth), ~changed)
    np.testing.assert_array_equal(truth.region.any((1, 2)), changed)
    differ = np.abs(truth.sources - truth.answers).max(-1) > 0.04
    np.testing.assert_array_equal(truth.region, differ)


@pytest.mark.long
def test_a_picture_without_a_change_must_keep_what_it_shows(items: Items) -> None:
    row = next(row for row, kind in enumerate(items.kinds) if kind == "no change")
    one = items.take([row])
    truth = render_truth(one, 32)
    colour = (int(one.before.colour[0]) + 1) % len(scenes.COLOURS)
    other = scenes.render_in_chunks(one.before.replace(colour=colour), size=32)
    assert not judge(other, truth).any()
    assert judge(truth.sources + 0.02, truth).all()


def test_removing_leaves_an_empty_table(items: Items) -> None:
    row = next(row for row, kind in enumerate(items.kinds) if kind == "remove")
    truth = render_truth(items.take([row]), 32)
    [[(value, rivals)]] = truth.rivals
    assert value == scenes.EMPTY == len(rivals) - 1
    assert judge(rivals[-1:], truth).all() and not judge(rivals[:1], truth).any()
