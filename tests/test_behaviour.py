"""Edits, inversions and a small job give what they gave: float32 values that `behaviour.py` has recorded."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import behaviour
import numpy as np
import pytest

from uam_jax import Editor

AS_USERS = "UAM_TESTS_OPTIMISED" in os.environ
MORE = ["ddim", "mixed", "two targets", "region of the inversion"]
ALWAYS = {
    "tiny": ["released", "anchored, controlled", *(MORE if AS_USERS else [])],
    "scenes": ["own"] if AS_USERS else [],
}
"""The cases that are not slow: each compiles programs of its own, and those of the embedded model are large."""
CASES = [
    pytest.param(model, name, marks=[] if name in ALWAYS[model] else pytest.mark.slow)
    for model in behaviour.FEW_STEPS
    for name in behaviour.names(model)
]


@pytest.fixture(scope="module")
def editor_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Editor]:
    return cache(lambda model: behaviour.load(model, "float32", tmp_path_factory.mktemp(model)))


def assert_as_recorded(model: str, name: str, found: behaviour.Arrays) -> None:
    prefix = f"{model}/float32/{name}"
    recorded = behaviour.read(behaviour.COMMITTED / f"{model}.npz")
    recorded = {key: array for key, array in recorded.items() if key.startswith(f"{prefix}/")}
    assert recorded
    found = behaviour.committed(behaviour.within(prefix, found))
    wrong = [line for line, wrong in behaviour.differences(recorded, found) if wrong]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("model", "name"), CASES)
def test_an_edit_gives_what_it_gave(
    editor_of: Callable[[str], Editor], model: str, name: str
) -> None:
    assert_as_recorded(model, name, behaviour.run_case(editor_of(model), model, name))


def test_a_job_gives_what_it_gave(tmp_path: Path) -> None:
    assert_as_recorded("tiny", "job", behaviour.run_job("tiny", tmp_path))


@pytest.mark.parametrize(
    ("key", "factor", "wrong"),
    [
        ("a/float32/b/latents", 1 + 9e-6, False),
        ("a/float32/b/latents", 1 + 2e-5, True),
        ("a/bfloat16/b/latents", 1.01, False),
        ("a/bfloat16/b/latents", np.nan, True),
        ("a/float32/b/signals/share", 1 + 9e-5, False),
        ("a/float32/b/signals/share", 1 + 2e-4, True),
        ("a/float32/b/step_masks", 1 + 2e-6, True),
    ],
)
def test_a_difference_above_its_bound_is_wrong(key: str, factor: float, wrong: bool) -> None:
    old = {key: np.asarray([1.0, -2.0], np.float32)}
    new = {key: old[key] * np.asarray([1.0, factor], np.float32)}
    [(line, found)] = behaviour.differences(old, new)
    assert found == wrong and line.startswith(key)
    assert not list(behaviour.differences(old, old))


def test_other_files_numbers_and_texts_are_wrong() -> None:
    job = "tiny/float32/job"
    old = {
        f"{job}/files/0.png/pixels": np.zeros((2, 2), np.uint8),
        f"{job}/rows/status": np.asarray(["ok"]),
        f"{job}/rows/batch": np.asarray([2]),
    }
    for key, other in [
        (f"{job}/files/0.png/pixels", np.full((2, 2), 2, np.uint8)),
        (f"{job}/rows/status", np.asarray(["failed"])),
        (f"{job}/rows/batch", np.asarray([3])),
        (f"{job}/rows/batch", np.asarray([2, 2])),
        (f"{job}/files/1.png/pixels", np.zeros((2, 2), np.uint8)),
    ]:
        assert [wrong for _, wrong in behaviour.differences(old, old | {key: other})] == [True]
