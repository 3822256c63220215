"""One program on one and on several devices: equal results, no exchange, and padding that nobody sees."""

import dataclasses
import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, TARGET, VARIANTS, assert_close, tiny_editor

from uam_jax import Editor, InputError
from uam_jax.engine import programs
from uam_jax.engine.parallel import Devices, Program, program
from uam_jax.engine.predictors import Branch, Course
from uam_jax.method.inversions import DDIMInversion
from uam_jax.method.samplers import SAMPLERS
from uam_jax.models import StableDiffusion
from uam_jax.models.kernels.attention import attend
from uam_jax.runtime.loops import scan
from uam_jax.runtime.platforms import Platform

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
def test_a_loop_made_for_gpus_on_several_devices(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @program(static=[], batched={"text": 0, "x": 0}, out={"x": 0, "each": 1})
    def looped(weights: jax.Array, text: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        def turn(x: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = jnp.tanh(x + step * (text @ weights.T).mean(axis=1))
            return x, x + weights.T[0]

        x, each = scan(turn, x, jnp.arange(3.0))
        return {"x": x, "each": each}

    weights, text, x = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(4, 4), (6, 3, 4), (6, 4)])
    )
    expected = looped(weights, text, x)
    monkeypatch.setattr(Platform, "of", lambda device: Platform("gpu", (9, 0)))
    for on in (None, Devices.local(2, mode), Devices.local(4, mode)):
        made = looped(weights, text, x, on=on)
        jax.tree.map(assert_close, made, expected)


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
        "from uam_jax.runtime import backend; backend.configure(device='cpu', devices=3); "
        "import jax; print(len(jax.devices()))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, "-c", program]
    assert int(subprocess.check_output(command, env=environment)) == 3


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    return tiny_editor(tmp_path_factory.mktemp("model"))


@pytest.mark.long
@pytest.mark.parametrize(("count", "mode"), [(2, "shard_map"), (4, "pmap")])
def test_an_edit_on_several_devices(
    editor: Editor, count: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(3).uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
    targets = [TARGET, "a cube", "a red ball", TARGET, "a cone"]
    config = SMALL.updated({"inversion": "fixed_point", "agreement": True})
    alone = editor.edit(images, targets, config=config, keep_masks=True)

    run, calls = Program.__call__, []

    def recorded(self: Program, *args: Any, **kwargs: Any) -> Any:
        calls.append((self, args, kwargs))
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Program, "__call__", recorded)
    spread = editor.on(Devices.local(count, mode)).edit(
        images, targets, config=config, keep_masks=True
    )
    assert spread.images.shape == alone.images.shape
    assert_close(spread.step_masks, alone.step_masks)
    assert_close(spread.latents, alone.latents, 1e-4)
    assert_close(spread.masks, alone.masks, 1e-5)
    assert {*alone.figures} == {"source_residual", "auxiliary_residual"}
    for name, values in alone.figures.items():
        assert_close(spread.figures[name], values)
    assert_close(spread.signals["agreement"], alone.signals["agreement"], 1e-4)

    if mode == "shard_map":
        [(each, args, kwargs)] = [call for call in calls if call[0].__name__ == "edit"]
        assert not COLLECTIVES.search(compiled_text(each, args, kwargs))
        assert {call[0].__name__ for call in calls if call[2].get("on")} >= {
            "encode", "invert", "denoise", "edit", "decode"
        }  # fmt: skip


LOOPS = (programs.invert, programs.denoise, programs.edit, programs.agreement)
MASKED = {
    "user mask": {"mask": {"rule": "none"}},
    "region of the inversion": {"inversion": {"outside_uniformity": 1.0}},
}
INVERTED = {
    "belm": {"inversion": "belm"},
    "edit-friendly": {"inversion": "edit-friendly"},
    # Where a slope is hardly more than rounding, Adam may go either way.
    "gradient": {
        "inversion": {"kind": "fixed_point", "solver": "gradient", "iterations": 2},
        "mask": {"rule": "none"},
    },
    "null-text": {"inversion": "null-text", "source": {"condition": "prompt"}},
    "proxnpi": {
        "inversion": {"kind": "proximal", "form": "proxnpi"},
        "source": {"condition": "prompt"},
        # The branches are nearly the same: a mask would compare rounding.
        "mask": {"rule": "none"},
    },
}
# Each has a loop that carries something of its own; the other variants only change its conditions and settings.
CARRYING = (
    "default", "anchored source", "no control", "algorithm1", "auto", "region", "shared fixed point",
    "second order", "of a user",
)  # fmt: skip


@pytest.mark.parametrize("name", [*CARRYING, *MASKED, *INVERTED])
def test_every_kind_of_edit_under_shard_map(
    editor: Editor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the network: what matters is what the loops carry."""
    monkeypatch.setattr(StableDiffusion, "predict", stand_in)
    config = SMALL.updated((VARIANTS | MASKED | INVERTED)[name])
    rng = np.random.default_rng(3)
    z0 = jnp.asarray(rng.normal(size=(3, 4, 4, 4)), jnp.float32)
    masks = (rng.uniform(size=(3, 8, 8)) > 0.5) * np.float32(1) if name in MASKED else None
    source = "a red cube" if config.source.condition == "prompt" else None
    made = []
    for each in (editor, editor.on(Devices.local(2))):
        for kept in LOOPS:
            kept.clear_cache()
        made.append(each.edit_latents(z0, [TARGET] * 3, source, masks=masks, config=config))
        for kept in LOOPS:
            kept.clear_cache()
    alone, spread = made
    assert_close(spread.latents, alone.latents, 1e-3 if name == "gradient" else 1e-5)
    assert_close(spread.masks, alone.masks)
    for signal, values in alone.signals.items():
        assert_close(spread.signals[signal], values, 1e-4)


CONVOLUTION = "conv_general_dilated"


def test_a_program_has_the_form_of_its_platform(editor: Editor) -> None:
    """Small convolutions are products on a CPU alone; the network's own trace is not taken for another's."""
    z0 = jnp.zeros((2, 4, 4, 4))
    arguments = (
        editor.inverter.model(),
        editor.params,
        z0,
        Branch(None, editor.condition("")),
        Branch(None, None),
    )
    static = {"course": Course(2, SAMPLERS["ddim"]), "method": DDIMInversion(), "levels": (0, 2)}
    for name, products in (("cpu", True), ("tpu", False), ("cpu", True)):
        for on in (None, Devices.local(2)):
            traced = programs.invert.trace(*arguments, **static, on=on, platform=Platform(name))
            assert (CONVOLUTION in str(traced.jaxpr)) != products
    assert CONVOLUTION not in str(programs.invert.trace(*arguments, **static).jaxpr)
    lowered = programs.decode.lower(
        editor.checkpoint.vae, editor.params, z0, platform=Platform("tpu")
    )
    assert "stablehlo.convolution" in lowered.as_text()


def test_the_platform_is_that_of_the_devices_that_are_run_on(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretended(device: Any) -> Platform:
        return Platform("tpu" if device.id >= 3 else "cpu")

    monkeypatch.setattr(Platform, "of", pretended)
    vae, params, z0 = editor.checkpoint.vae, editor.params, jnp.ones((2, 4, 4, 4))
    expected = programs.decode(vae, params, z0)
    far = jax.devices()[3]
    arguments = [
        ((vae, params, jax.device_put(z0, far)), None, True),
        ((vae, jax.device_put(params, far), z0), None, True),
        ((vae, params, z0), Devices(tuple(jax.devices()[3:5])), True),
        ((vae, params, z0), Devices.local(2), False),
        ((vae, jax.device_put(params, jax.devices()[1]), jax.device_put(z0, far)), None, False),
    ]
    for given, on, convolves in arguments:
        traced = str(programs.decode.trace(*given, on=on).jaxpr)
        # The VAE's first layer, 1x1, has but one form.
        assert (traced.count(f"{CONVOLUTION}[") > 1) == convolves
        made = programs.decode(*given, on=on)
        assert made.devices() == set(on.devices if on else [jax.devices()[3 if convolves else 1]])
        assert_close(made, expected)
    there = dataclasses.replace(
        editor.checkpoint, params=jax.device_put(editor.params, jax.devices()[3])
    )
    assert Editor(there).platform == editor.on(Devices(tuple(jax.devices()[3:5]))).platform
    assert Editor(there).platform.name == "tpu" and editor.platform.name == "cpu"


def test_an_editor_comes_back_to_one_device(editor: Editor) -> None:
    back = editor.on(Devices.local(2)).on(None)
    assert back.encode(np.zeros((1, 8, 8, 3), np.float32)).devices() == {jax.devices()[0]}


def sharded(tree: Any, count: int, axis: int = 0) -> Any:
    """Arrays as a caller's own program would leave them: split over a mesh of other devices than ours."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[-count:]), ("own",))
    spec = jax.sharding.PartitionSpec(*[None] * axis, "own")
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, spec))


PLACES = {
    "device": lambda tree, axis=0: jax.device_put(tree, jax.devices()[5]),
    "mesh": lambda tree, axis=0: sharded(tree, 2, axis),
    "two": lambda tree, axis=0: Devices.local(2).replicate(tree),
}


@pytest.mark.long
@pytest.mark.parametrize("mode", ["one", "shard_map", "pmap"])
def test_arrays_may_lie_on_any_devices(
    editor: Editor, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusion, "predict", stand_in)
    for each in LOOPS:
        each.clear_cache()
    config = SMALL.updated({"steps": 3, "source": {"latents": "anchored"}, "preserve": "pixels"})
    rng = np.random.default_rng(3)
    images = jnp.asarray(rng.uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)
    masks, targets = jnp.ones((4, 8, 8)), [[TARGET, "a cube"]] * 4
    z0 = editor.encode(images)
    inversion = editor.invert(z0, uniformity=0.0, steps=3, keep="all")
    expected = editor.edit(images, targets, masks=masks, inversions=inversion, config=config)
    rebuilt = editor.reconstruct(inversion)
    prepared = editor.prepare(z0, images=images, config=config)

    runs = editor if mode == "one" else editor.on(Devices.local(3, mode))
    for name, put in PLACES.items():
        latents = put(z0)
        assert_close(runs.encode(put(images)), z0)
        assert_close(runs.decode(latents), editor.decode(z0))
        assert_close(runs.invert(latents, uniformity=0.0, steps=3).at(3), inversion.at(3))
        assert_close(runs.reconstruct(put(inversion, 1)), rebuilt)
        elsewhere = PLACES["device" if name != "device" else "mesh"]
        result = runs.edit(
            put(images), targets, masks=elsewhere(masks),
            inversions=elsewhere(inversion, 1), config=config,
        )  # fmt: skip
        assert_close(result.images, expected.images)
        assert_close(result.error_map, expected.error_map)
        result = runs.edit_latents(
            elsewhere(z0), targets, masks=put(masks), inversions=put(inversion, 1),
            config=config, images=put(images),
        )  # fmt: skip
        assert_close(result.latents, expected.latents)
    assert_close(runs.edit_prepared(prepared, targets).error_map, expected.error_map)
    for each in LOOPS:
        each.clear_cache()


def stand_in(self: Any, params: Any, latent: Any, time: Any, condition: Any, rules: Any) -> Any:
    """In place of `StableDiffusion.predict`."""
    text = condition.states.reshape(condition.states.shape[0], -1)[:, -1].reshape(-1, 1, 1, 1)
    return jnp.tanh(0.3 * latent + time / 1000) + text * jnp.cos(latent), {}


def compiled_text(each: Program, args: Any, kwargs: Any) -> str:
    """The program of a call with 5 examples on 2 devices: the batch is padded to 6."""
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
