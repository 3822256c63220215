"""Arguments of a caller: pictures, latents, masks and texts; wrong ones are refused with their remedy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.engine.arguments import (
    checked_images,
    checked_latents,
    checked_number,
    latent_masks,
    listed,
)
from uam_jax.engine.prompts import flatten_edits, prompt_list, settle_context
from uam_jax.errors import InputError
from uam_jax.method.config import EditConfig
from uam_jax.method.edits import Edit


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape or (2, 8, 8, 3)).astype(np.float32)


def spoiled(values: np.ndarray, bad: float) -> np.ndarray:
    values = values.copy()
    values[-1, 0, 0, 0] = bad
    return values


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (pictures(8, 8, 3), r"shape \(8, 8, 3\): \(b, h, w, 3\)"),
        (pictures(2, 8, 8, 4), r"shape \(2, 8, 8, 4\)"),
        (pictures(2, 8, 6, 3), "8x6: tiny takes multiples of 4"),
        (pictures(2, 0, 8, 3), "0x8"),
        (pictures(0, 8, 8, 3), "no images"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"uint8: .*images / 127.5 - 1"),
        (np.zeros((1, 8, 8, 3), np.int32), "int32: .*floating-point"),
        (np.zeros((1, 8, 8, 3), bool), "bool: .*floating-point"),
        (np.zeros((1, 8, 8, 3), complex), "complex128: .*floating-point"),
        (127 * pictures(), r"from -12\d[.\d]* to 12.*images / 127.5 - 1"),
        (spoiled(pictures(), 1.01), r"to 1.01: they must lie in \[-1, 1\]"),
        (spoiled(pictures(), -2), "from -2 to"),
        (spoiled(pictures(), np.nan), r"images\[1\] has values that are not finite"),
        (spoiled(pictures(), np.inf), r"images\[1\] has values that are not finite"),
    ],
)
def test_pictures_that_cannot_be_are_refused(images: np.ndarray, says: str) -> None:
    for given in (images, jnp.asarray(images)) if images.dtype != complex else (images,):
        with pytest.raises(InputError, match=says):
            checked_images(given, multiple=4, model="tiny")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16])
def test_pictures_of_any_precision_are_taken_as_they_are(dtype: Any) -> None:
    images = spoiled(pictures(), 1 + 1e-6).astype(dtype)
    for given in (images, jnp.asarray(images)):
        made = checked_images(given, multiple=4, model="tiny")
        assert made.dtype == jnp.float32
        np.testing.assert_array_equal(made, images.astype(np.float32))


@pytest.mark.parametrize(
    ("latents", "says"),
    [
        (np.zeros((4, 4, 4)), r"shape \(4, 4, 4\): \(b, h, w, 4\)"),
        (np.zeros((1, 4, 4, 3)), r"shape \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 4, 4)), r"shape \(0, 4, 4, 4\)"),
        (np.zeros((1, 4, 5, 4)), "latents are 4x5: the model takes multiples of 2"),
        (np.zeros((1, 4, 4, 4), int), "int64: floating-point"),
        (spoiled(np.zeros((3, 4, 4, 4)), np.nan), r"latents\[2\] has values that are not finite"),
    ],
)
def test_latents_that_cannot_be_are_refused(latents: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        checked_latents(latents, channels=4, multiple=2)


SHAPE = (2, 4, 3, 4)
"""Of the latents of pictures of 8x6."""


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        (np.ones((2, 4, 3)), r"shape \(2, 4, 3\): \(2, 8, 6\) is needed"),
        (np.ones((1, 8, 6)), r"shape \(1, 8, 6\)"),
        (np.ones((2, 16, 12)), r"shape \(2, 16, 12\)"),
        (np.ones((8, 6)), r"shape \(8, 6\)"),
        (np.ones((2, 8, 6, 1)), r"masks\[..., 0\]"),
        (np.full((2, 8, 6), 255, np.uint8), r"from 255 to 255: .*masks / 255"),
        (np.full((2, 8, 6), -0.5), "outside"),
        (np.full((2, 8, 6), np.nan), "outside"),
        (np.full((2, 8, 6), "1"), "<U1: numbers"),
    ],
)
def test_masks_that_cannot_be_are_refused(masks: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        latent_masks(masks, SHAPE, 2)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_a_mask_is_the_share_of_each_latent_pixel(dtype: Any) -> None:
    masks = np.zeros((2, 8, 6), dtype)
    masks[0, :3, 0] = 1
    shares = np.zeros((2, 4, 3, 1))
    shares[0, :2, 0, 0] = 2 / 4, 1 / 4
    for given in (masks, jnp.asarray(masks)):
        np.testing.assert_array_equal(latent_masks(given, SHAPE, 2), shares)


def test_prompts_are_texts() -> None:
    assert prompt_list("a cube") == ["a cube"]
    assert prompt_list(("a", " \t", np.str_("b"))) == ["a", "", "b"]
    for bad, says in ((3, "3"), (None, "None"), ([], "no prompts"), (["a", None], "None"),
                      ([b"a"], "b'a'"), (b"a", "b'a'"), ([["a"]], "must be a text")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            prompt_list(bad)


def test_targets_are_texts_in_their_order() -> None:
    edits, index = flatten_edits(["a", ["b", Edit("c", negative="x")], ("d",)], 3)
    texts = [edit.target for edit in edits]
    assert (
        texts == ["a", "b", "c", "d"]
        and edits[2].negative == "x"
        and index.tolist() == [0, 1, 1, 2]
    )
    unfit: list[Any] = ["a", None, 3, ["a", 3], [["a"], [None]], ["a", ["b", ""]], ["a", []], ["a"]]
    for target in unfit:
        with pytest.raises(InputError, match="target|prompt"):
            flatten_edits(target, 2)


def test_numbers_are_finite() -> None:
    assert checked_number("guidance", np.float32(2)) == 2.0
    for bad in (np.nan, np.inf, "much", None):
        with pytest.raises(InputError, match="guidance is .*: it must be a finite number"):
            checked_number("guidance", bad)


def test_inversions_are_inversions() -> None:
    assert listed(None) == []
    with pytest.raises(InputError, match="holds a ndarray: give what Editor.invert returned"):
        listed([np.zeros(3)])


@pytest.mark.parametrize(
    ("source", "context"),
    [(None, "prompt"), ("a", "prompt"), (["", "a"], "prompt"), ("", "null"), (["", " "], "null")],
)
def test_prompts_that_say_nothing_are_the_null_prompt(source: Any, context: str) -> None:
    config = EditConfig().updated({"source": {"condition": "prompt"}})
    assert settle_context(config, source).source.condition == context
    config = EditConfig().updated({"source": {"condition": "auto"}})
    assert settle_context(config, source).source.condition == context.replace("prompt", "auto")
