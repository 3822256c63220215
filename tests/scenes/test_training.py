"""The training script: its time budget, its data, its steps and the folder that it writes."""

import dataclasses
import functools
import importlib
import json
import time
from collections.abc import Iterable
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax import scenes
from uam_jax.checkpoints.load import load_checkpoint
from uam_jax.models import VAE, TextConfig, TextEncoder, UNet, UNetConfig, VAEConfig
from uam_jax.models.layers import expected_params

pytestmark = pytest.mark.long

SCRIPTS = Path(__file__).parents[2] / "scripts"
CALL = 4


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the scripts."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


@pytest.fixture
def preset(script: Any) -> Any:
    presets = script("scenes_presets")
    phase = presets.Phase(8, batch=4, steps=8, rate=1e-3, kl_weight=1e-4, detail=0.5, end=0.5)
    return dataclasses.replace(
        presets.PRESETS["rehearsal"],
        size=16,
        vae_channels=(8, 8),
        vae_phases=(phase,),
        unet_channels=(16, 16, 16, 16),
        text_width=16,
        steps_per_call=CALL,
    )


def counting(script: Any, seconds: Iterable[float] = repeat(0.0)) -> Any:
    """Steps that add their number to a sum, with calls that take so long."""
    advance = script("scenes_networks").Steps(
        lambda state, data, step, steps: ({"sum": state["sum"] + data * step}, {"number": step}),
        CALL,
    )
    pauses = iter(seconds)

    def slow(*args: Any) -> Any:
        time.sleep(next(pauses))
        return advance(*args)

    return slow


def train(
    script: Any,
    preset: Any,
    folder: Path,
    minutes: float,
    seconds: Iterable[float] = repeat(0.0),
    steps: int = 40,
) -> tuple[int, bool, int]:
    """The sum, whether the stage is complete, and the number of its steps."""
    run = script("training_run").Run(preset, folder, minutes=minutes, dtype=None, every=1000)
    state = {"sum": np.zeros((), np.int32)}
    advance = counting(script, seconds)
    data = jnp.int32(1)
    state, complete = run.train("count", state, data, lambda: advance, steps=steps, end=0.5)
    return int(state["sum"]), complete, run.stages["count"]["steps"]


def test_without_a_budget_all_steps_are_made_once(script: Any, preset: Any, tmp_path: Path) -> None:
    for _ in range(2):
        assert train(script, preset, tmp_path, float("inf")) == (sum(range(40)), True, 40)


def test_steps_are_whole_calls(script: Any, preset: Any, tmp_path: Path) -> None:
    assert train(script, preset, tmp_path, float("inf"), steps=9) == (sum(range(12)), True, 12)


def test_a_budget_reduces_the_steps_so_that_the_stage_completes_in_its_share(
    script: Any, preset: Any, tmp_path: Path
) -> None:
    began = time.monotonic()
    total, complete, steps = train(script, preset, tmp_path, 10 / 60, repeat(0.3), steps=10_000)
    assert complete and time.monotonic() - began < 8
    assert CALL <= steps <= 5 / 0.3 * CALL and steps % CALL == 0
    assert total == sum(range(steps))


def test_calls_that_were_slow_for_a_while_do_not_shorten_the_stage(
    script: Any, preset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_LOG_SECONDS", "_TRIAL_SECONDS"):
        monkeypatch.setattr(script("training_run"), name, 0.1)
    seconds = chain(repeat(0.4, 3), repeat(0.05))  # As slow as the first, 10 calls would fit.
    made = train(script, preset, tmp_path, 8 / 60, seconds, steps=100)
    assert made == (sum(range(100)), True, 100)


def test_a_run_whose_time_is_over_resumes_where_it_stopped(
    script: Any, preset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = script("training_run").Run
    monkeypatch.setattr(run, "budgeted", False)
    total, complete, steps = train(script, preset, tmp_path, 0.6 / 60, repeat(0.1))
    made = next(n for n in range(0, 44, CALL) if sum(range(n)) == total)
    assert not complete and 0 < made < 40 and steps == 40
    assert train(script, preset, tmp_path, float("inf")) == (sum(range(40)), True, 40)


def test_a_folder_of_another_preset_is_refused(script: Any, preset: Any, tmp_path: Path) -> None:
    train(script, preset, tmp_path, float("inf"))
    with pytest.raises(SystemExit, match="another preset"):
        train(script, dataclasses.replace(preset, seed=1), tmp_path, float("inf"))


def test_pictures_are_the_renderers_in_every_order_of_work(script: Any) -> None:
    data = script("scenes_data")
    world = scenes.sample(jax.random.key(0), 6).replace(
        shape=np.array([0, 2, scenes.EMPTY, 0, 0, 2])
    )
    world = jax.tree.map(np.asarray, world)
    truth = np.asarray(scenes.render(world, size=16)) * 127.5 + 127.5
    assert np.abs(data.render_all(world, 16) - truth).max() < 1.01
    rows = np.array([0, 3, 4, 4])
    together = data._render(world[rows], shape=0, size=16, together=2)
    assert np.abs(np.asarray(together) - truth[rows]).max() < 1.01


def test_captions_their_tokens_and_the_values_that_they_name_belong_together(
    script: Any, preset: Any, tmp_path: Path
) -> None:
    data = script("scenes_data")
    world = scenes.sample(jax.random.key(1), 40, empty=0.2)
    tokenizer = data.learn_tokenizer(preset, world, tmp_path)
    texts = data.make_texts(preset, world, tokenizer)
    assert texts.ids.shape == (40, 4, 77) and texts.named.shape == (40, 4, 7)
    for i, name in enumerate(scenes.ATTRIBUTES):
        unnamed = script("scenes_networks").CLASSES[i] - 1
        truth = np.asarray(getattr(world, name))[:, None]
        named = texts.named[:, :, i]
        assert ((named == truth) | (named == unnamed)).all()
        assert (named == truth).mean() > 0.4
    assert (texts.named[:, :, 0] == np.asarray(world.shape)[:, None]).all()
    assert tokenizer.encode([""]).max() == tokenizer.vocab_size - 1
    # The rest of the world changes nothing.
    more = scenes.concatenate(world, scenes.sample(jax.random.key(2), 9))
    again = data.draw_captions(preset, more)
    assert [texts[:40] for texts in again] == data.draw_captions(preset, world)


def pretend_gpu(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the programs that a GPU runs."""
    for module in ("scenes_networks", "training_run"):
        monkeypatch.setattr(
            script(module), "default_device", lambda: SimpleNamespace(platform="gpu")
        )


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_steps_that_are_compiled_ahead_are_the_same(
    script: Any, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if platform == "gpu":
        pretend_gpu(script, monkeypatch)
    steps = script("scenes_networks").Steps(
        lambda state, data, step, steps: (state + data[step] * steps, {"number": step}), CALL
    )
    data = jnp.arange(9.0)
    arguments = data, jnp.int32(3), jnp.int32(10)
    state, losses = steps(jnp.float32(0), *arguments)
    ahead = steps.compiled(np.float32(0), data)
    again, losses_again = ahead(jnp.float32(0), *arguments)
    assert state == again == 10 * (3 + 4 + 5 + 6)
    assert losses["number"].tolist() == losses_again["number"].tolist() == [3, 4, 5, 6]
    with pytest.raises(TypeError, match="compiled"):
        ahead(jnp.float32(0), jnp.arange(8.0), *arguments[1:])


def test_the_rehearsal_measures_every_figure_of_the_presets_networks(
    script: Any, preset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, data = script("scenes_figures"), script("scenes_data")
    world = scenes.sample(jax.random.key(1), 200)
    words = tmp_path / "tokenizer"
    vocabulary = data.learn_tokenizer(preset, world, words).vocab_size
    run = script("training_run").Run(preset, tmp_path / "run", minutes=1, dtype=None, every=9)
    seen = []

    def parts_of(editor: Any, items: str, truth: str) -> dict[str, Any]:
        assert editor.checkpoint.unet.config == UNetConfig.from_dict(preset.unet)
        return {name: functools.partial(seen.append, (name, items, truth)) for name in "ab"}

    monkeypatch.setattr(figures, "parts_of", parts_of)
    figures.rehearse(run, lambda: figures.Bench("items", "truth"), vocabulary, words)
    assert sorted(seen) == [("a", "items", "truth"), ("b", "items", "truth")]


def test_steps_depend_on_their_number_alone_and_weights_stay_float32_in_bfloat16(
    script: Any, preset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = script("scenes_networks")
    pictures = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    state = networks.vae_state(preset)

    def after(count: int, dtype: Any) -> Any:
        advance = networks.vae_steps(
            dataclasses.replace(preset, steps_per_call=count), 0, jnp.dtype(dtype)
        )
        made = jax.tree.map(jnp.array, state)
        for first in range(0, CALL, count):
            made, losses = advance(made, pictures, jnp.int32(first), jnp.int32(8))
            assert losses["mse"].shape == (count,) and np.isfinite(losses["mse"]).all()
        return jax.device_get(made["params"])

    def distance(a: Any, b: Any) -> np.ndarray:
        leaves = zip(*map(jax.tree.leaves, (a, b)), strict=True)
        return np.concatenate([np.abs(x - y).ravel() for x, y in leaves])

    single = after(2, "float32")
    pretend_gpu(script, monkeypatch)
    looped, low = after(CALL, "float32"), after(CALL, "bfloat16")
    # Means, because an element whose gradient is zero but for rounding moves in any direction.
    assert distance(single, looped).mean() < 1e-5 < 0.1 * distance(single, state["params"]).mean()
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {np.dtype("float32")}
    assert distance(single, low).mean() < 0.5 * distance(low, state["params"]).mean()


def test_the_large_presets_programs_lower_for_a_gpu(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = script("scenes_networks")
    preset = script("scenes_presets").PRESETS["scenes-128"]
    pretend_gpu(script, monkeypatch)
    n, side, i32 = preset.pictures, preset.size // 8, jnp.int32

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    def lowered(advance: Any, state: Any, data: Any) -> str:
        step = jax.ShapeDtypeStruct((), i32)
        traced = advance.program.trace(shapes(state), data, step, step)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    pictures = jax.ShapeDtypeStruct((n, preset.size, preset.size, 3), jnp.uint8)
    vae = lowered(networks.vae_steps(preset, 0, jnp.bfloat16), networks.vae_state(preset), pictures)
    data = tuple(
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((n, side, side, preset.latent_channels), jnp.float32),
            ((n, 4, 77), i32),
            ((n, 4, 7), i32),
        )
    )
    null = np.full(77, 599, np.int32)
    unet = lowered(
        networks.unet_steps(preset, 600, null, jnp.bfloat16), networks.unet_state(preset, 600), data
    )
    for program in (vae, unet):
        assert "stablehlo.while" in program
        # Every convolution is of bfloat16, forwards and backwards.
        found = [line for line in program.splitlines() if "stablehlo.convolution" in line]
        assert found and all("xbf16>" in line and "xf32>" not in line for line in found)


def test_the_large_preset_suits_a_gpu_and_the_package(script: Any) -> None:
    preset = script("scenes_presets").PRESETS["scenes-128"]
    assert all(width % (8 * preset.heads) == 0 for width in preset.unet_channels)
    assert all(width % 32 == 0 for width in (*preset.unet_channels, *preset.vae_channels))
    networks = (
        VAE(VAEConfig.from_dict(preset.vae)),
        UNet(UNetConfig.from_dict(preset.unet)),
        TextEncoder(TextConfig.from_dict(preset.text(600))),
    )
    leaves = jax.tree.leaves([expected_params(network) for network in networks])
    assert sum(2 * leaf.size for leaf in leaves) < 34e6


def test_the_export_is_a_model_of_the_library(
    script: Any, preset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, exporting, data = map(script, ("scenes_networks", "scenes_export", "scenes_data"))
    run = script("training_run").Run(preset, tmp_path / "run", minutes=1, dtype=None, every=9)
    run.note("unet", steps=8, done=4, loss=0.5)
    words = tmp_path / "tokenizer"
    world = scenes.sample(jax.random.key(1), 200)
    vocabulary = data.learn_tokenizer(preset, world, words).vocab_size
    ema = networks.unet_state(preset, vocabulary)["ema"]
    params = {name: ema[name] for name in ("unet", "text_encoder")}
    params["vae"] = networks.vae_state(preset)["params"]
    # The U-Net has four levels, and this VAE two: its pictures are small.
    exporting.export(run, tmp_path / "model", params, 0.5, vocabulary, words)
    figures = {"items": 3, "parts": {"vae": {"PSNR (dB)": 12.5}}}
    exporting.write_card(run, tmp_path / "model", "tiny", None, figures)
    loaded = load_checkpoint(tmp_path / "model")
    for name, tree in params.items():
        close = jax.tree.map(lambda a, b: np.allclose(a, b, atol=2e-3), tree, loaded.params[name])
        assert all(jax.tree.leaves(close))
    assert loaded.vae.config.scaling_factor == 0.5 and loaded.settings["default"]["guidance"] == 2
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "4 of 8 steps; loss 0.5" in card and "| vae | PSNR (dB) | 12.5 |" in card
    assert json.loads((tmp_path / "model" / "unet" / "config.json").read_text())["sample_size"] == 8
