"""Edits as values: a text stands for one, negative prompts act on the target alone, and sources belong to images."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import SMALL, SOURCE, TARGET, assert_close

from uam_jax import Edit, Editor, InputError
from uam_jax.method.edits import Words

PROMPTED = SMALL.updated({"source": {"condition": "prompt"}})


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


def test_a_text_is_an_edit_with_that_target(editor: Editor, images: np.ndarray) -> None:
    texts = editor.edit(images, [TARGET, ["a cube"]], config=SMALL)
    values = editor.edit(images, [Edit(TARGET), [Edit("a cube", negative="  ")]], config=SMALL)
    np.testing.assert_array_equal(texts.latents, values.latents)


def test_a_negative_prompt_acts_on_its_target_alone(editor: Editor, images: np.ndarray) -> None:
    plain = editor.edit(images, [TARGET, TARGET], SOURCE, config=PROMPTED)
    edits = [Edit(TARGET, negative="a cone"), Edit(TARGET)]
    negative = editor.edit(images, edits, SOURCE, config=PROMPTED)
    assert np.abs(negative.latents[0] - plain.latents[0]).max() > 1e-3
    assert_close(negative.latents[1], plain.latents[1])
    # The source's own unguided half keeps the null prompt: the branches meet only where they are blended.
    apart = PROMPTED.updated({"mask": {"rule": "none"}})
    plain, negative = (
        editor.edit(images, each, SOURCE, config=apart) for each in ([TARGET] * 2, edits)
    )
    assert_close(negative.source_latents, plain.source_latents)
    assert negative.evaluations == plain.evaluations


def test_a_negative_prompt_that_is_the_target_leaves_no_guidance(
    editor: Editor, images: np.ndarray
) -> None:
    one = SMALL.updated({"guidance": 1.0})
    expected = editor.edit(images, [TARGET, TARGET], config=one)
    same = [Edit(TARGET, negative=TARGET)] * 2
    assert_close(editor.edit(images, same, config=SMALL).latents, expected.latents, 1e-4)
    with pytest.warns(UserWarning, match="negative prompts are ignored: guidance is 1"):
        ignored = editor.edit(images, same, config=one)
    assert_close(ignored.latents, expected.latents)


def test_an_edit_gives_its_images_source(editor: Editor, images: np.ndarray) -> None:
    expected = editor.edit(
        images, [[TARGET, "a cube"], [TARGET]], [SOURCE, "a cone"], config=PROMPTED
    )
    edits = [[Edit(TARGET, SOURCE), Edit("a cube", SOURCE)], [Edit(TARGET, "a cone")]]
    np.testing.assert_array_equal(
        editor.edit(images, edits, config=PROMPTED).latents, expected.latents
    )
    with pytest.raises(InputError, match="given twice"):
        editor.edit(images, edits, SOURCE, config=PROMPTED)
    for other in (None, "a ball"):
        with pytest.raises(InputError, match="edits of image 0 give no common source"):
            editor.edit(
                images, [[Edit(TARGET, SOURCE), Edit(TARGET, other)], edits[1]], config=PROMPTED
            )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit(" "), "a target prompt is empty"),
        (Edit(TARGET, negative=3), "a prompt is 3"),  # type: ignore[arg-type]
        (Edit(TARGET, source=3), "a prompt is 3"),  # type: ignore[arg-type]
        (Edit(TARGET, words="cube"), "words is 'cube': give a list"),  # type: ignore[arg-type]
        (Edit(TARGET, words={"blends": ["a"]}), "give a list of words, or a table with blend, sub"),  # type: ignore[arg-type]
    ],
)
def test_faults_of_an_edit(editor: Editor, images: np.ndarray, edit: Edit, message: str) -> None:
    with pytest.raises(InputError, match=message):
        editor.edit(images, [edit, TARGET], config=SMALL)


def test_a_manifest_has_the_same_fields(tmp_path: Path) -> None:
    from uam_jax.jobs.manifest import read_manifest

    file = tmp_path / "m.jsonl"
    file.write_text('{"image": "a.png", "target": ["b", "c"], "negative": "d", "words": ["e"]}\n')
    (item,) = read_manifest(str(file))
    assert item.edits == (
        Edit("b", words=Words(("e",)), negative="d"),
        Edit("c", words=Words(("e",)), negative="d"),
    )
    file.write_text('{"image": "a.png", "target": "b", "words": "e"}\n')
    with pytest.raises(InputError, match="words is 'e': give a list"):
        read_manifest(str(file))


def test_words_of_a_manifest(tmp_path: Path) -> None:
    from uam_jax.jobs.manifest import read_manifest

    table = {"blend": ["e"], "weights": {"e": 2}, "windows": {"f": [0, 0.5]}}
    file = tmp_path / "m.jsonl"
    file.write_text(json.dumps({"image": "a.png", "target": "b", "words": table}) + "\n")
    (item,) = read_manifest(str(file))
    assert item.words == Words(("e",), (), {"e": 2.0}, {"f": (0.0, 0.5)})
    assert Words.of(item.words.to_json()) == item.words
    assert Words().to_json() is None and Words(("e",)).to_json() == ["e"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", 3], r"words.blend is \['a', 3\]: give a list of words"),
        ({"subtract": "a"}, "words.subtract is 'a': give a list"),
        ({"weights": ["a"]}, r"words.weights is \['a'\]: give a table by word"),
        ({"weights": {"a": "2"}}, "the weight of 'a' is '2': it must be a finite number"),
        ({"weights": {"a": float("nan")}}, "it must be a finite number"),
        ({"windows": {"a": 0.5}}, "the window of 'a' is 0.5: give two shares"),
        ({"windows": {"a": [0.5, 0.2]}}, "must begin and end from 0 to 1, in order"),
    ],
)
def test_faults_of_words(words: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Words.of(words)
