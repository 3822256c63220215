"""One program on one and on several devices: equal results, no exchange, and padding that nobody sees."""

import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pipeline import SMALL, TARGET, VARIANTS, assert_close, tiny_editor

from uam_jax import Editor, InputError, programs
from uam_jax.models.attention import attend
from uam_jax.parallel import Devices, Program, program

COLLECTIVES = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\b"
)


@program(
    static=["power"],
    batched={"x": 0, "levels": 1, "nested": {"own": 0, "shared": None}},
    out={"x": 0, "levels": 1},
)
def toy(
    scale: jax.Array, x: jax.Array, levels: jax.Array | None, nested: dict[str, Any], *, power: int
) -> dict[str, Any]:
    total = scale * x**power + nested["own"] + nested["shared"]
    return {"x": total, "levels": None if levels is None else levels + total[None]}


def toy_arguments(batch: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, 3)), jnp.float32)
    levels = jnp.asarray(rng.normal(size=(2, batch, 3)), jnp.float32)
    return jnp.float32(2), x, levels, {"own": x + 1, "shared": jnp.float32(0.5)}


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("batch", [1, 5, 8])
def test_any_number_of_devices_gives_the_same(mode: str, count: int, batch: int) -> None:
    arguments = toy_arguments(batch)
    expected = toy(*arguments, power=2)
    made = toy(*arguments, power=2, on=Devices.local(count, mode))
    assert made["x"].shape == (batch, 3) and made["levels"].shape == (2, batch, 3)
    assert_close(made["x"], expected["x"], 1e-6)
    assert_close(made["levels"], expected["levels"], 1e-6)


def test_an_absent_argument_and_result_are_no_matter() -> None:
    scale, x, _, nested = toy_arguments(3)
    made = toy(scale, x, None, nested, power=1, on=Devices.local(2))
    assert made["levels"] is None and made["x"].shape == (3, 3)


def test_a_collective_would_be_found() -> None:
    devices = Devices.local(2)
    summing = Program(lambda x: jax.lax.psum(x, "data"), static=[], batched={"x": 0}, out=None)
    assert COLLECTIVES.search(summing.lower(jnp.ones((2, 3)), on=devices).compile().as_text())


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_attention_in_chunks_on_several_devices(mode: str) -> None:
    @program(static=[], batched={"q": 0, "k": 0, "v": 0}, out=0)
    def chunked(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, backend="chunked")

    q, k, v = jax.random.normal(jax.random.key(0), (3, 4, 9, 2, 8))
    made = chunked(q, k, v, on=Devices.local(2, mode))
    assert_close(made, attend(q, k, v, backend="xla"), 1e-5)


@pytest.mark.parametrize(("count", "mode"), [(0, "shard_map"), (9, "shard_map"), (1, "threads")])
def test_what_cannot_be_is_refused(count: int, mode: str) -> None:
    with pytest.raises(InputError, match="devices asked for|choose shard_map or pmap"):
        Devices.local(count, mode)


def test_a_cpu_is_divided_into_as_many_devices_as_are_asked_for() -> None:
    program = (
        "from uam_jax import backend; backend.configure(device='cpu', devices=3); "
        "import jax; print(len(jax.devices()))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, "-c", program]
    assert int(subprocess.check_output(command, env=environment)) == 3


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    return tiny_editor(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("count", "mode"), [(2, "shard_map"), (4, "pmap")])
def test_an_edit_on_several_devices(
    editor: Editor, count: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(3).uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
    targets = [TARGET, "a cube", "a red ball", TARGET, "a cone"]
    alone = editor.edit(images, targets, config=SMALL, keep_masks=True)

    run, calls = Program.__call__, []

    def recorded(self: Program, *args: Any, **kwargs: Any) -> Any:
        calls.append((self, args, kwargs))
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Program, "__call__", recorded)
    spread = editor.on(Devices.local(count, mode)).edit(
        images, targets, config=SMALL, keep_masks=True
    )
    assert spread.images.shape == alone.images.shape
    assert_close(spread.step_masks, alone.step_masks)
    assert_close(spread.latents, alone.latents, 1e-4)
    assert_close(spread.masks, alone.masks, 1e-5)

    if mode == "shard_map":
        [(each, args, kwargs)] = [call for call in calls if call[0].__name__ == "edit"]
        assert not COLLECTIVES.search(compiled_text(each, args, kwargs))
        assert {call[0].__name__ for call in calls if call[2].get("on")} >= {
            "encode", "invert", "denoise", "edit", "decode"
        }  # fmt: skip


LOOPS = (programs.invert, programs.denoise, programs.edit)
MASKED = {
    "user mask": {"mask": {"rule": "none"}},
    "region of the inversion": {"region": {"inversion": 1.0}},
}


@pytest.mark.parametrize("name", VARIANTS | MASKED)
def test_every_kind_of_edit_under_shard_map(
    editor: Editor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the network: what matters is what the loops carry."""

    def noise(self: Any, params: Any, latent: Any, step: Any, *rules: Any) -> Any:
        text = jax.tree.leaves(rules)[0]
        text = text.reshape(text.shape[0], -1)[:, -1].reshape(-1, 1, 1, 1)
        return jnp.tanh(0.3 * latent + step.timestep / 1000) + text * jnp.cos(latent)

    monkeypatch.setattr(programs.Network, "noise", noise)
    config = SMALL.updated((VARIANTS | MASKED)[name])
    rng = np.random.default_rng(3)
    z0 = jnp.asarray(rng.normal(size=(3, 4, 4, 4)), jnp.float32)
    masks = (rng.uniform(size=(3, 8, 8)) > 0.5) * np.float32(1) if name in MASKED else None
    source = "a red cube" if config.source_context == "prompt" else None
    made = []
    for each in (editor, editor.on(Devices.local(2))):
        for kept in LOOPS:
            kept.clear_cache()
        made.append(each.edit_latents(z0, [TARGET] * 3, source, masks=masks, config=config))
        for kept in LOOPS:
            kept.clear_cache()
    alone, spread = made
    assert_close(spread.latents, alone.latents)
    assert_close(spread.masks, alone.masks)
    for signal, values in alone.signals.items():
        assert_close(spread.signals[signal], values, 1e-4)


def compiled_text(each: Program, args: Any, kwargs: Any) -> str:
    """What a call with 5 examples on 2 devices compiles to: the batch is padded to 6."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def run(arrays: list[jax.Array]) -> Any:
        filled = dict(zip(places, arrays, strict=True))
        args, kwargs = tree.unflatten(filled.get(i, leaf) for i, leaf in enumerate(leaves))
        return each(*args, **kwargs)

    # Donated arguments are gone; of all only the shapes matter.
    shapes = [tuple(6 if side == 5 else side for side in leaves[place].shape) for place in places]
    zeros = [
        jnp.zeros(shape, leaves[place].dtype) for shape, place in zip(shapes, places, strict=True)
    ]
    return jax.jit(run).lower(zeros).compile().as_text()
