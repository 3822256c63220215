"""Whole edits with every kind of inversion, by the tiny model."""

from typing import Any

import numpy as np
import pytest
from tiny import SMALL, SOURCE, TARGET, assert_close

from uam_jax import Edit, EditConfig, Editor, InputError
from uam_jax.method.inversions import BELMInversion, ResidualInversion

KINDS: dict[str, dict[str, Any]] = {
    "negative-prompt": {"inversion": "negative-prompt"},
    "residual": {"inversion": "residual"},
    "direct": {"inversion": "direct"},
    "edit-friendly": {"inversion": "edit-friendly"},
    "belm": {"inversion": "belm"},
    "proxnpi": {"inversion": {"kind": "proximal", "form": "proxnpi"}},
    "null-text": {"inversion": "null-text"},
}
SHORT = SMALL.updated(
    {
        "steps": 4,
        "source": {"condition": "prompt"},
        "control": {"step_start": 1, "block_start": 1},
        "mask": {"rule": "none"},
    }
)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)


def own(kind: str, **changes: Any) -> EditConfig:
    return SHORT.updated(KINDS[kind]).updated(changes)


# Those of the other kinds, which have tests of their own below, are counted there.
@pytest.mark.parametrize(
    "kind", ["edit-friendly", "belm", "proxnpi", pytest.param("null-text", marks=pytest.mark.long)]
)
def test_an_edit_counts_its_evaluations_and_shows_its_figures(
    editor: Editor, images: np.ndarray, kind: str
) -> None:
    config = own(kind)
    targets = [TARGET, "a red ball"]
    found = editor.edit(images[:2], targets, SOURCE, config=config)
    assert np.isfinite(found.latents).all()
    assert found.evaluations == 2 * editor.evaluations(config)
    for figure in found.figures.values():
        assert figure.shape == (2,) and np.isfinite(figure).all() and (figure >= 0).all()
    assert any(name.startswith("source_") for name in found.figures)
    # Beside another picture the first is the same.
    other = editor.edit(images[[0, 2]], targets, SOURCE, config=config)
    assert_close(other.latents[0], found.latents[0])
    assert not np.allclose(other.latents[1], found.latents[1], atol=1e-3)


@pytest.mark.parametrize("kind", ["residual", "edit-friendly", "belm"])
@pytest.mark.long
def test_an_edit_with_an_anchored_source_and_a_mask(
    editor: Editor, images: np.ndarray, kind: str
) -> None:
    config = own(
        kind,
        source={"latents": "anchored"},
        mask={"rule": "released"},
        auxiliary={"latents": "replay"},
    )
    found = editor.edit(images[:2], [TARGET] * 2, SOURCE, config=config)
    assert np.isfinite(found.latents).all() and found.source_latents is None
    assert found.evaluations == 2 * editor.evaluations(config)


@pytest.mark.long
def test_under_the_sources_prompt_the_source_goes_down_unguided(
    editor: Editor, images: np.ndarray
) -> None:
    config = own("negative-prompt")
    found = editor.edit(images[:2], [TARGET] * 2, SOURCE, config=config)
    assert found.evaluations == 2 * editor.evaluations(config) == 2 * 4 * (1 + 3)
    assert found.figures["source_estimated_residual"].shape == (2,)
    z0 = editor.encode(images[:2])
    inversion = editor.invert(z0, SOURCE, uniformity=0.0, steps=4)
    assert_close(found.source_latents, editor.reconstruct_latents(inversion))
    # At the other end of the arc it is plain guidance.
    end = own("negative-prompt").overridden(["inversion.interpolation=1.0"])
    plain = editor.edit(images[:2], [TARGET] * 2, SOURCE, config=end.updated({"inversion": "ddim"}))
    found = editor.edit(images[:2], [TARGET] * 2, SOURCE, config=end)
    assert_close(found.latents, plain.latents)
    assert_close(found.source_latents, plain.source_latents)


def test_a_negative_prompt_of_an_edit_is_refused_where_another_takes_its_place(
    editor: Editor, images: np.ndarray
) -> None:
    edits = [Edit(TARGET, negative="ugly")]
    with pytest.raises(InputError, match="negative is 'ugly', and inversion.kind negative-prompt"):
        editor.edit(images[:1], edits, SOURCE, config=own("negative-prompt"))


@pytest.mark.long
def test_directs_offsets_do_what_an_anchored_source_does(
    editor: Editor, images: np.ndarray
) -> None:
    config = own("direct")
    offsets = editor.edit(images[:2], [TARGET] * 2, SOURCE, config=config)
    assert_close(offsets.source_latents, editor.encode(images[:2]))
    assert offsets.evaluations == 2 * editor.evaluations(config) == 2 * 4 * (1 + 2 + 4)
    assert (offsets.figures["source_step_error"] > 1e-3).all()
    anchored = config.updated({"source": {"latents": "anchored"}})
    cleaner = editor.edit(images[:2], [TARGET] * 2, SOURCE, config=anchored)
    assert_close(offsets.latents, cleaner.latents)
    # Two more evaluations of the inversion; and the source in the step before the control's window.
    assert offsets.evaluations - cleaner.evaluations == 2 * (4 * 2 + 1 * 2)


def test_belm_returns_after_fifty_steps(editor: Editor, images: np.ndarray) -> None:
    shape = np.asarray(editor.encode(images[:2])).shape
    z0 = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    inversion = editor.invert(z0, SOURCE, sampler="belm", method=BELMInversion())
    error = np.abs(editor.reconstruct_latents(inversion) - z0).max()
    assert error <= 1e-4 * np.abs(z0).max()
    assert (np.asarray(inversion.figures["bend"]) > 0).all()


@pytest.mark.long
def test_the_residual_inversion_returns_exactly(editor: Editor, images: np.ndarray) -> None:
    z0 = np.asarray(editor.encode(images[:2]))
    options = {"uniformity": 1.0, "steps": 4}
    led = editor.invert(z0, SOURCE, method=ResidualInversion(), **options)
    assert_close(editor.reconstruct_latents(led), z0)
    plain = editor.invert(z0, SOURCE, **options)
    assert np.abs(editor.reconstruct_latents(plain) - z0).max() > 1e-3
    config = own("residual", source={"condition": "null"}, guidance=1.0)
    assert_close(editor.edit(images[:2], [TARGET] * 2, config=config).source_latents, z0)
