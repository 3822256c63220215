"""Whole edits of a tiny model, compiled for TPUs that are not here: pytest -m tpu, with the extra `tpu-plan`."""

import dataclasses
import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, TARGET

from uam_jax import Editor
from uam_jax.engine.parallel import program
from uam_jax.engine.rehearsal import Call, rehearsing, shapes_of
from uam_jax.evaluation.chips import CHIPS
from uam_jax.evaluation.tpu_programs import bytes_of, compile_for, seconds_of
from uam_jax.evaluation.tpu_topology import absent_tpus
from uam_jax.models.kernels.attention import attend, attention_backend

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="the extra tpu-plan is not installed"
    ),
]
TOPOLOGIES = ("v5e:2x2", "v6e:2x2")


@pytest.fixture(autouse=True)
def _compile_anew() -> Iterator[None]:
    """JAX's cache of compiled programs is of this machine's devices."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def calls_of_an_edit(editor: Editor, topology: str, **changes: Any) -> dict[Call, int]:
    devices = absent_tpus(topology)
    params = shapes_of(editor.params, devices)
    copy = Editor(dataclasses.replace(editor.checkpoint, params=params), devices)
    images = np.zeros((len(devices), 16, 16, 3), np.float32)
    with rehearsing() as calls:
        copy.edit(images, [TARGET] * len(images), config=SMALL.updated(changes))
    return calls


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_whole_edit_compiles_without_exchange_and_fits(editor: Editor, topology: str) -> None:
    chip = CHIPS[topology.partition(":")[0]]
    made = {}
    for call in calls_of_an_edit(editor, topology):
        assert call.platform == chip.platform
        outcome = compile_for(call.lower())
        assert "refused" not in outcome, outcome
        assert outcome["collectives"] == {} and outcome["unknown_loops"] == 0
        assert 0 < bytes_of(outcome) < chip.memory
        made[call.name] = seconds_of(outcome, chip, "float32")
    assert {*made} >= {"encode", "condition", "invert", "edit", "decode", "signals"}
    assert {"convolution", "products", "norms and reductions"} <= {*made["edit"]}
    assert jax.default_backend() == "cpu"


def test_a_loop_takes_as_many_turns_as_there_are_steps(editor: Editor) -> None:
    cycles = []
    for steps in (5, 15):
        calls = calls_of_an_edit(editor, "v5e:2x2", steps=steps)
        [call] = [call for call in calls if steps in dict(call.static).get("levels", ())]
        cycles.append(sum(compile_for(call.lower())["cycles"].values()))
    assert 2.8 < cycles[1] / cycles[0] < 3.2


@program(static=[], batched={"q": 0, "k": 0, "v": 0}, out=0)
def layer(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return attend(q, k, v)


@pytest.mark.parametrize("pixels", [4096, 256])
def test_the_attention_kernel_is_where_it_belongs(pixels: int) -> None:
    devices = absent_tpus("v5e:2x2")
    x = jnp.zeros((4, pixels, 8, 40), jnp.bfloat16)
    with rehearsing() as calls:
        layer(x, x, x, on=devices)
    [call] = calls
    kernels = compile_for(call.lower())["kernels"]
    chosen = attention_backend((1, *x.shape[1:]), x.dtype, devices.platform)
    assert [each["runs"] for each in kernels] == ([1] if chosen == "flash" else [])
    assert all("_attend" in each["origin"] for each in kernels)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_exchange_would_be_found(topology: str) -> None:
    devices = absent_tpus(topology)

    @program(static=[], batched={"x": 0}, out=None)
    def summing(x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, "data")

    with rehearsing() as calls:
        summing(jnp.ones((4, 256)), on=devices)
    [call] = calls
    assert compile_for(call.lower())["collectives"]


def test_what_does_not_fit_is_refused() -> None:
    devices = absent_tpus("v5e:2x2")

    @program(static=[], batched={"x": 0}, out=0)
    def outer(x: jax.Array) -> jax.Array:
        pairs = jax.lax.optimization_barrier(x[:, :, None] * x[:, None, :])  # 17 GB
        return pairs[:, 0]

    with rehearsing() as calls:
        outer(jnp.ones((4, 65536)), on=devices)
    [call] = calls
    assert "exceeds available HBM" in compile_for(call.lower())["refused"]
