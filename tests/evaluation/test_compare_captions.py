"""The comparison of captions: its cases, what it rebuilds, its record, table and figure."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tiny import tiny_editor

from uam_jax import Editor

pytestmark = pytest.mark.long

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("compare_captions")


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    return tiny_editor(tmp_path_factory.mktemp("model"))


def test_every_inversion_has_every_caption(script: ModuleType) -> None:
    cases = list(script.cases(script.STEPS))
    assert len(set(cases)) == len(cases) == 3 * (8 * (5 + 3) + 3 * 3) + 2 * (5 + 3)
    for case in cases:
        assert (
            case.config.plan(np.arange(1000 - 1000 // case.steps + 1, 0, -1000 // case.steps))
            .segments[-1]
            .source
        )


def test_what_comes_back_is_that_of_the_inversion(script: ModuleType, editor: Editor) -> None:
    z0 = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    back = {}
    for inversion, guidance in (("residual", 1.0), ("negative-prompt", 2.0), ("ddim", 1.0)):
        case = script.Case(inversion, "right caption", 3, guidance)
        [found] = script.rebuild(editor, [case], z0, ["a red cube", "a blue ball"])
        back[inversion] = np.asarray(found)
    assert np.abs(back["residual"] - z0).max() < 1e-4 < np.abs(back["ddim"] - z0).max()
    # Negative-prompt inversion takes guidance away, and returns as DDIM does without it.
    np.testing.assert_allclose(back["negative-prompt"], back["ddim"], atol=1e-4)


def test_guidance_acts_on_one_inversion_alone(script: ModuleType, editor: Editor) -> None:
    z0 = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    alike = [script.Case("ddim", "wrong caption", 3, guidance) for guidance in (1.0, 2.0)]
    prompts = ["a red cube", "a blue ball"]
    together = [np.asarray(back) for back in script.rebuild(editor, alike, z0, prompts)]
    for case, back in zip(alike, together, strict=True):
        [alone] = script.rebuild(editor, [case], z0, prompts)
        np.testing.assert_array_equal(back, alone)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_a_record_is_resumed_and_shown(
    script: ModuleType, editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, steps = tmp_path / "kept" / "summary.json", (10, 20)
    made: list[Any] = []

    def rebuild(editor: Editor, alike: list[Any], z0: Any, prompts: list[str]) -> Iterator[Any]:
        for case in alike:
            made.append((case, prompts[0]))
            # The more steps, the closer; a wrong caption is the worst, and uniform maps are the best.
            rank = script.CAPTIONS.index(case.caption)
            yield z0 + (1 + rank) / case.steps

    monkeypatch.setattr(script, "rebuild", rebuild)
    record = script.measure(editor, 3, steps, kept)
    captions = {case.caption: prompt for case, prompt in made}
    assert captions["uniform maps"] == captions["null prompt"] == ""
    assert captions["vague caption"] == script.VAGUE
    assert len(set(captions.values())) == 4
    count = len(made)
    assert script.measure(editor, 3, steps, kept) == record and len(made) == count
    kept.write_text(json.dumps(record | {"rows": record["rows"][:-1]}))
    assert script.measure(editor, 3, steps, kept) == record and len(made) == count + 1
    text = script.as_markdown(record)
    [line] = [line for line in text.splitlines() if line.startswith("| ddim | 10 |")][:1]
    assert line.count("; 3)") == 1 and line.index("; 3)") < line.index("; 0)")
    assert re.search(r"agrees \d of 3 times for a right caption, .* wrong caption\.", text)
    assert "| null-text | 20 |" in text and "Guidance 2:" in text
    assert script.draw(record).startswith(b"\x89PNG")
