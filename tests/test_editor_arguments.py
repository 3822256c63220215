"""Bad arguments of an editor, each with its message."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import SMALL, SOURCE, TARGET

from uam_jax import Editor, InputError


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)


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


def test_unknown_words_give_a_warning(editor: Editor, tmp_path: Path) -> None:
    settings = {"words": ["a", "red", "cube"]}
    knowing = Editor(dataclasses.replace(editor.checkpoint, settings=settings))
    knowing.check_prompts(["a red, cube."])
    with pytest.warns(UserWarning, match=r"never seen dragon.*--model"):
        knowing.check_prompts(["a red dragon"])
