"""Operations of traced programs against closed forms, and a roofline's time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, TARGET, VARIANTS

from uam_jax import Editor, InputError
from uam_jax.engine.parallel import Devices
from uam_jax.engine.rehearsal import rehearsing, shapes_of
from uam_jax.evaluation.chips import CHIPS, find_chip
from uam_jax.evaluation.operations import Operation, Operations, operations_of
from uam_jax.models.kernels.attention import attend
from uam_jax.runtime.platforms import Platform

GPU, UNFUSED = Platform("gpu", (9, 0)), Platform("gpu", (7, 5))


def counted(function: Any, *arrays: Any, platform: Platform = GPU) -> Operations:
    return operations_of(jax.jit(function).trace(*arrays), platform)


def test_a_product_in_a_loop() -> None:
    def run(x: jax.Array, y: jax.Array) -> Any:
        return jax.lax.scan(lambda z, _: (z @ y, None), x, None, length=5)[0]

    found = counted(run, jnp.ones((3, 4)), jnp.ones((4, 4)))
    assert found.counts == {Operation("products", 2 * 3 * 4 * 4, 4 * (12 + 16 + 12)): 5}


def test_a_convolution() -> None:
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))

    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout)

    [(found, times)] = counted(run, x, kernel).counts.items()
    assert times == 1 and found.kind == "convolution"
    assert found.flops == 2 * (2 * 4 * 4 * 16) * (3 * 3 * 3)
    assert found.bytes == 4 * (2 * 8 * 8 * 3 + 3 * 3 * 3 * 16 + 2 * 4 * 4 * 16)


def test_what_lies_between_products_is_read_and_written_once() -> None:
    x = jnp.ones((16, 16))

    def run(x: jax.Array) -> jax.Array:
        y = x @ x
        mean = y.mean(axis=1, keepdims=True)  # reads y
        return (
            jnp.tanh((y - mean) * 2 + 1) @ x
        )  # reads y and the mean, and writes what the product takes

    side, row = 4 * 16 * 16, 4 * 16
    assert counted(run, x).counts == {
        Operation("products", 2 * 16**3, 3 * side): 2,
        Operation("norms and reductions", 0, side + row): 1,
        Operation("element-wise", 0, side + row + side): 1,
    }


@pytest.mark.parametrize(("platform", "fused"), [(GPU, True), (UNFUSED, False)])
def test_attention_is_one_operation(platform: Platform, fused: bool) -> None:
    q = jnp.ones((2, 64, 4, 40), jnp.bfloat16)
    k = jnp.ones((2, 77, 4, 40), jnp.bfloat16)
    found = counted(lambda q, k: attend(q, k, k, backend="xla"), q, k, platform=platform)
    attention = {each: n for each, n in found.counts.items() if each.kind == "attention"}
    logits = 2 * 4 * 64 * 77
    [(each, times)] = attention.items()
    moved = (
        2 * (2 * 4 * 40) * (64 + 77 + 77) + 4 * 2 * 4 * 40 * 64
    )  # operands, and a float32 result
    assert times == 1 and each.flops == 4 * logits * 40
    assert each.bytes == moved + (0 if fused else logits * 16)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["masked", "default", "released", "prompt", "no guidance", "fixed point"]
)
@pytest.mark.parametrize("devices", [None, 2])
def test_evaluations_are_those_of_the_plan(editor: Editor, name: str, devices: int | None) -> None:
    config = SMALL.updated(VARIANTS[name])
    on = None if devices is None else Devices.local(devices)
    params = shapes_of(editor.params, on)
    copy = Editor(dataclasses.replace(editor.checkpoint, params=params), on)
    source = "a red cube" if config.source.condition == "prompt" else None
    images = np.zeros((2, 8, 8, 3), np.float32)
    with rehearsing() as calls:
        made = copy.edit(images, [[TARGET, "a cube"]] * 2, source, config=config)
    # Each device counts its own half.
    found = sum(n * operations_of(call.traced, GPU).evaluations for call, n in calls.items())
    assert found * (devices or 1) == made.evaluations


def test_an_evaluation_has_the_operations_that_the_compiler_counts(editor: Editor) -> None:
    """The compiler also counts what is no product, which in a tiny network is a good part."""
    from uam_jax.engine.programs import evaluation_flops

    denoiser, null = editor.checkpoint.denoiser, editor.condition("")
    latent = jnp.zeros((1, 4, 4, 4))
    expected = evaluation_flops(denoiser, editor.params, null, latent, uniform=False)
    assert expected

    def predict(params: Any, latent: jax.Array, states: jax.Array) -> jax.Array:
        condition = dataclasses.replace(null, states=states)
        return denoiser.predict(params, latent, jnp.int32(1), condition)[0]

    found = counted(predict, editor.params, latent, null.states)
    assert found.evaluations == 1
    assert 0.6 * expected < found.flops < expected


def test_a_loop_of_unknown_length_is_told() -> None:
    def run(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ y, x)

    found = counted(run, jnp.ones((4, 4)))
    assert found.unknown_loops == 1 and found.flops == 2 * 4**3


def test_a_roofline_takes_the_longer_of_products_and_bytes() -> None:
    chip = CHIPS["h100"]
    assert Operation("products", 989.4e12, 1.0).seconds(chip, "bfloat16") == pytest.approx(1)
    assert Operation("products", 1.0, 3.35e12).seconds(chip, "bfloat16") == pytest.approx(1)
    two = Operations()
    two.counts[Operation("products", 989.4e12, 0)] += 2
    two.counts[Operation("copies", 0, 3.35e12)] += 3
    assert two.seconds(chip, "bfloat16") == pytest.approx({"products": 2, "copies": 3})


def test_clocks_follow_from_the_makers_figures() -> None:
    # Published for v4 and v5p.
    assert CHIPS["v4"].clock == pytest.approx(1.05e9, rel=1e-3)
    assert CHIPS["v5p"].clock == pytest.approx(1.75e9, rel=1e-3)
    assert CHIPS["v4"].peak("bfloat16") == 275e12 / 2 and CHIPS["v4"].memory == 16e9
    assert CHIPS["t4"].peak("bfloat16") is None and CHIPS["t4"].peak("float16") == 65e12


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("h1000", "choose a topology of TPUs such as v5e:2x2.*or one of h200, h100"),
        ("h100:8", "a GPU has no topology: give h100"),
        ("v5e", "name the topology of the TPUs, such as v5e:2x2$"),
        ("v5p:2xtwo", "such as v5p:2x2x1$"),
    ],
)
def test_a_machine_that_is_not_known_is_refused(target: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        find_chip(target)


def test_machines_are_found_by_name() -> None:
    assert find_chip("V5e:2x2") == (CHIPS["v5e"], "v5e:2x2")
    assert find_chip("t4") == (CHIPS["t4"], None)
