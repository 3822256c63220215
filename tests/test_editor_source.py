"""Source prompts that are used where they describe their pictures (`source.condition = "auto"`)."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, SOURCE, TARGET, assert_close

from uam_jax import Editor, InputError
from uam_jax.engine.inverter import Inverter
from uam_jax.engine.prompts import SettledSource

AUTO = SMALL.updated({"source": {"condition": "auto"}})
PROMPT, NULL = (
    AUTO.updated({"source": {"condition": condition}}) for condition in ("prompt", "null")
)
SOURCES, TARGETS = [SOURCE, "a dog", "a cone"], [TARGET, "a cube", "a red ball"]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)


def with_agreement(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    monkeypatch.setattr(Inverter, "agreement", lambda *_: {"agreement": jnp.asarray(values)})


def test_a_prompt_that_does_not_describe_its_picture_gives_way_to_the_null_prompt(
    editor: Editor, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_agreement(monkeypatch, 0.5, -0.1, 0.0)
    with pytest.warns(UserWarning, match="does not describe its picture"):
        found = editor.edit(images, TARGETS, SOURCES, config=AUTO)
    by_hand = editor.edit(images, TARGETS, [SOURCE, "", "a cone"], config=PROMPT)
    assert_close(found.latents, by_hand.latents)
    np.testing.assert_allclose(found.figures["source_agreement"], [0.5, -0.1, 0.0], atol=1e-6)
    assert found.evaluations == by_hand.evaluations + 3 * 4 == 3 * editor.evaluations(AUTO)
    assert "source_agreement" not in by_hand.figures


def test_one_prompt_for_all_is_looked_at_for_each(
    editor: Editor, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_agreement(monkeypatch, 0.5, -0.1, np.nan)
    z0 = editor.encode(images)
    with pytest.warns(UserWarning, match="does not describe"):
        settled = editor.settle_source(z0, SOURCE, AUTO)
    assert settled.prompts == [SOURCE, "", ""] and settled.config == PROMPT
    assert editor.settle_source(z0, settled, AUTO) is settled


@pytest.mark.parametrize("source", [None, "", [" ", "", ""]])
def test_without_prompts_it_is_the_null_prompt(
    editor: Editor, images: np.ndarray, source: str | list[str] | None
) -> None:
    settled = editor.settle_source(editor.encode(images), source, AUTO)
    assert settled.config == NULL and not settled.figures and settled.evaluations == 0
    assert editor.evaluations(AUTO, source=source or "") == editor.evaluations(NULL)


def test_what_is_settled_says_which_inversions_are_needed(editor: Editor) -> None:
    settled = SettledSource(PROMPT, [SOURCE, "", "a cone"])
    shape = (3, 4, 4, 4)
    needed = editor.inversions_needed(settled, shape=shape, config=AUTO)
    assert needed == editor.inversions_needed(settled.prompts, shape=shape, config=PROMPT)
    assert any(key.prompts == (SOURCE, "", "a cone") for key in needed)


def test_agreement_is_a_number_per_picture(editor: Editor, images: np.ndarray) -> None:
    z0 = editor.encode(images)
    together = editor.agreement(z0, SOURCES)
    assert together.shape == (3,) and np.isfinite(np.asarray(together)).all()
    alone = [editor.agreement(z0[i : i + 1], SOURCES[i])[0] for i in range(3)]
    assert_close(together, alone, 1e-5)
    assert_close(editor.agreement(z0, ""), np.zeros(3))


def test_neither_one_prompt_nor_one_each_is_refused(editor: Editor, images: np.ndarray) -> None:
    with pytest.raises(InputError, match="2 prompts for 3 images: give one for all or one each"):
        editor.edit(images, TARGETS, SOURCES[:2], config=AUTO)
    with pytest.raises(InputError, match="2 prompts for 3 images"):
        editor.agreement(editor.encode(images), SOURCES[:2])


@pytest.mark.parametrize(
    "changes", [{"control": "prompt-to-prompt"}, {"inversion": "negative-prompt"}]
)
def test_what_lives_on_the_source_prompt_does_not_go_without_it(changes: dict) -> None:
    with pytest.raises(InputError, match='source.condition is "auto": set'):
        AUTO.updated(changes).check()
