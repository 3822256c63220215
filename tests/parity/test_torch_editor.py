"""The benchmark's PyTorch edit does what ours does: the same latents from the same weights, and as many evaluations."""

import importlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import TEXT, UNET, VAE, write_checkpoint

from uam_jax import EditConfig, Editor
from uam_jax.checkpoints import random

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from parity import torch_networks as both  # noqa: E402 (needs the three)

pytestmark = pytest.mark.parity

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TARGETS = ["a red cube", "a blue ball"]
STEPS = 10
WHOLE_RUN = 1e-3
"""The largest relative error of ten steps."""

# Half of the steps are blended, and of the four transformer blocks the last two are controlled.
SHORT = {
    "steps": STEPS,
    "mask": {"t_mask": 500},
    "control": {"step_start": 0, "block_start": 2},
}
CASES = {
    "released": ("released", {}),
    "masked": ("released", {"auxiliary": {"latents": "anchored"}, "control": {"step_start": 2}}),
    "own": (
        "released",
        {
            "guidance": 2.0,
            "source": {"latents": "anchored"},
            "auxiliary": {"latents": "anchored"},
            "control": {"kind": "none"},
            "mask": {"rule": "auto", "radius": 0},
        },
    ),
}


@pytest.fixture(scope="module")
def benchmark() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(
            BENCHMARKS
        )  # It imports its neighbour, as when a script of this folder runs.
        return importlib.import_module("torch_editor")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, scale=1 / 16)
    # Weights with which text and pixels matter, and a few steps stay tame.
    unet, text_encoder = (
        both.random_network(name, config)
        for name, config in (("unet", UNET), ("text_encoder", TEXT))
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            weight *= 0.3 if name.startswith("conv_out") else 2 if "attn2.to_out" in name else 1
    unet.save_pretrained(folder / "unet")
    text_encoder.save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Editor:
    return Editor.load(folder)


@pytest.fixture(scope="module")
def theirs(benchmark: Any, folder: Path) -> Any:
    return benchmark.TorchEditor(folder)


@pytest.fixture(scope="module")
def z0() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)


def config_of(case: str) -> EditConfig:
    preset, changes = CASES[case]
    return EditConfig.load(preset).updated(SHORT).updated(changes)


@pytest.mark.parametrize("case", CASES)
def test_latents_and_evaluations(ours: Editor, theirs: Any, z0: np.ndarray, case: str) -> None:
    config = config_of(case)
    result = ours.edit_latents(jnp.asarray(z0), TARGETS, config=config)
    assert 0.05 < float(result.masks.mean()) < 0.95
    theirs.rows = 0
    latents = theirs.edit_latents(both.as_torch(z0), TARGETS, config)
    assert theirs.rows == result.evaluations
    assert both.relative_error(result.latents, both.as_numpy(latents)) <= WHOLE_RUN
    if case == "released":
        theirs.rows = 0
        released = theirs.edit_latents(both.as_torch(z0), TARGETS, config, as_released=True)
        assert theirs.rows == 7 * STEPS * len(z0)
        assert both.relative_error(result.latents, both.as_numpy(released)) <= WHOLE_RUN


def test_what_tells_the_cases_apart_shows(theirs: Any, z0: np.ndarray) -> None:
    """Else equal latents would mean nothing."""
    config = config_of("released")
    changes = [
        {},
        {"control": "none"},
        {"mask": {"rule": "none"}},
        {"mask": {"radius": 0}},
        {"mask": {"source_line": False}},
        {"mask": {"rule": "auto"}},
        {"guidance": 2.0},
    ]
    made = [
        both.as_numpy(theirs.edit_latents(both.as_torch(z0), TARGETS, config.updated(change)))
        for change in changes
    ]
    others = theirs.edit_latents(both.as_torch(z0), TARGETS[::-1], config)
    made.append(both.as_numpy(others))
    for i, one in enumerate(made):
        for other in made[:i]:
            assert both.relative_error(one, other) > 3 * WHOLE_RUN


def test_calls_alone(benchmark: Any, ours: Editor, theirs: Any, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        one_call = importlib.import_module("one_call")
    config = one_call.calls_only(3).updated({"control": {"block_start": 2}})
    plan = benchmark.plan_of(config, theirs.schedule)
    assert [len(plan.rows_in(part)) for part in plan.segments] == [one_call.PARTS]
    assert plan.segments[0].active and len(plan.segments[0]) == 3
    made = one_call.evaluations(ours, 2, 4, config)()
    theirs.rows = 0
    start = one_call.start_of(2, 4, ours.latent_channels)
    reference = theirs.evaluations(start, [one_call.TARGET] * 2, config)()
    assert theirs.rows == 3 * 2 * one_call.PARTS
    assert both.relative_error(made, reference) <= WHOLE_RUN
    assert both.relative_error(made, start) > 10 * WHOLE_RUN
    for refused in (SHORT, {"source": {"latents": "anchored"}}):
        with pytest.raises(ValueError, match="there is a mask, or the source is anchored"):
            theirs.evaluations(
                start, [one_call.TARGET] * 2, EditConfig.load("released").updated(refused)
            )


def test_random_weights_of_a_published_shape_are_the_same_for_both(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With convolutions of 1x1 where Stable Diffusion 1.x has them."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    random_folder = importlib.import_module("random_folder")
    small = {
        "unet": {k: v for k, v in UNET.items() if k[0] != "_" and k != "use_linear_projection"},
        "text_encoder": {**TEXT, "vocab_size": 700, "num_hidden_layers": 1},
        "vae": {k: v for k, v in VAE.items() if k[0] != "_"},
    }
    for module in (random, random_folder):
        monkeypatch.setattr(module, "PUBLISHED", {"small": small})
        monkeypatch.setattr(module, "SCHEDULES", {"small": {"prediction_type": "v_prediction"}})
    checkpoint = random_folder.write_random_folder(tmp_path / "small", "small", "float32")
    assert random_folder.write_random_folder(tmp_path / "again", "small", "float32") is not None
    for component in ("unet", "vae", "text_encoder"):
        one, other = (tmp_path / name / component for name in ("small", "again"))
        [file] = one.glob("*.safetensors")
        assert file.read_bytes() == (other / file.name).read_bytes()
    theirs = benchmark.TorchEditor(tmp_path / "small")
    assert any(name.endswith("proj_in.weight") and weight.ndim == 4
               for name, weight in theirs.unet.named_parameters())  # fmt: skip
    pictures = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    config = config_of("released").updated({"preserve": "latent", "steps": 2})
    made = Editor(checkpoint).edit(pictures, TARGETS, config=config)
    np.testing.assert_allclose(theirs.edit(pictures, TARGETS, config), made.images, atol=WHOLE_RUN)


def test_pictures(ours: Editor, theirs: Any) -> None:
    pictures = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    config = config_of("released").updated({"preserve": "latent"})
    result = ours.edit(pictures, TARGETS, config=config)
    made = theirs.edit(pictures, TARGETS, config)
    assert np.abs(made).max() <= 1
    np.testing.assert_allclose(made, result.images, atol=WHOLE_RUN)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"source": {"condition": "prompt"}}, "source.condition"),
        ({"inversion": {"uniformity": 1.0}}, "inversion"),
        ({"auxiliary": {"latents": "original"}}, "auxiliary"),
        ({"target": {"outside_uniformity": 0.5}}, "outside_uniformity"),
        ({"mask": {"rule": "algorithm1"}}, "mask.rule"),
    ],
)
def test_refuses_what_it_does_not_do(
    benchmark: Any, theirs: Any, changes: dict, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        benchmark.plan_of(config_of("released").updated(changes), theirs.schedule)
    with pytest.raises(ValueError, match="replays"):
        benchmark.plan_of(config_of("masked"), theirs.schedule, as_released=True)
