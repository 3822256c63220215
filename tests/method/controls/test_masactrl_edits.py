"""Edits of a tiny model under MasaCtrl's variants: with the user's mask, and with words."""

import numpy as np
import pytest
from tiny import SMALL, SOURCE, TARGET, assert_close

from uam_jax import Edit, EditConfig, Editor, InputError
from uam_jax.method.edits import Words

BASE = SMALL.updated({"steps": 4, "mask": {"rule": "none"}, "source": {"condition": "prompt"}})


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


def config(**control: object) -> EditConfig:
    return BASE.updated({"control": {"step_start": 1, "block_start": 0, **control}})


@pytest.mark.long
def test_a_users_mask_is_the_foreground_of_its_own_picture(
    editor: Editor, images: np.ndarray
) -> None:
    def edit(masks: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        count = len(images[rows])
        return np.asarray(
            editor.edit(
                images[rows], [TARGET] * count, SOURCE, masks=masks[rows],
                config=config(foreground="mask").updated({"mask": {"t_mask": 0}}),
            ).latents
        )  # fmt: skip

    masks = np.ones((2, 8, 8), np.float32)
    everything = edit(masks)
    masks[0, :, :4] = 0
    parted = edit(masks)
    assert np.abs(parted[0] - everything[0]).max() > 1e-3
    assert_close(parted[1], everything[1], 1e-5)
    assert_close(edit(masks, slice(1))[0], parted[0], 1e-4)
    with pytest.raises(InputError, match="works with the user's mask here, and there is none"):
        editor.edit(images, [TARGET] * 2, SOURCE, config=config(foreground="mask"))


@pytest.mark.long
def test_words_are_the_foreground(editor: Editor, images: np.ndarray) -> None:
    own = config(foreground="words", word_side=1.0, word_threshold=0.5, keys="both")
    edits = [Edit(TARGET, words=Words(("cube", "ball"))), Edit(TARGET, words=Words(("a",)))]
    made = np.asarray(editor.edit(images, edits, SOURCE, config=own).latents)
    alone = editor.edit(images[1:], edits[1:], SOURCE, config=own).latents
    assert np.isfinite(made).all()
    assert_close(alone[0], made[1], 1e-4)
    for words, message in (((), "no words to blend"), (("cat",), "'cat' is not in")):
        with pytest.raises(InputError, match=message):
            editor.edit(images, [Edit(TARGET, words=Words(words)), TARGET], SOURCE, config=own)
    with pytest.raises(InputError, match="MasaCtrl compares the prompts"):
        editor.plan(own.updated({"source": {"condition": "null"}}))
