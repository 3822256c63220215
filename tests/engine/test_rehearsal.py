"""A rehearsal names the programs that the work itself runs, and computes nothing."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, TARGET, VARIANTS

from uam_jax import Editor, InputError
from uam_jax.checkpoints.random import random_checkpoint
from uam_jax.engine import programs
from uam_jax.engine.parallel import Devices, Program
from uam_jax.engine.rehearsal import Call, rehearsing, shapes_of
from uam_jax.runtime.platforms import Platform

ALL = [each for each in vars(programs).values() if isinstance(each, Program)]


def of_shapes(editor: Editor, devices: Devices | None = None) -> Editor:
    params = shapes_of(editor.params, devices)
    return Editor(dataclasses.replace(editor.checkpoint, params=params), devices)


def forms(leaves: Any) -> tuple[Any, ...]:
    return tuple((np.shape(each), jax.typeof(each).dtype) for each in leaves)


def edit(editor: Editor, count: int, config: Any) -> Any:
    images = np.random.default_rng(3).uniform(-1, 1, (count, 8, 8, 3)).astype(np.float32)
    source = "a red cube" if config.source.condition == "prompt" else None
    masks = np.ones((count, 8, 8), np.float32)
    targets = [[TARGET, "a cube"]] * count
    return editor.edit(images, targets, source, config=config, masks=masks)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "devices"), [("default", 2), ("anchored source", None), ("of a user", 2)]
)
def test_the_programs_are_those_that_an_edit_runs(
    editor: Editor, name: str, devices: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.updated({"steps": 3, **VARIANTS[name]})
    for each in ALL:
        each.clear_cache()
    on = None if devices is None else Devices.local(devices)
    with rehearsing() as calls:
        rehearsed = edit(of_shapes(editor, on), 3, config)
    assert not any(each.compilations for each in ALL)

    jitted, ran = Program.jitted, Counter[Any]()

    def watched(self: Program, on: Any, platform: Any, static: Any) -> Any:
        def run(*arrays: Any) -> Any:
            ran[self.name, on, platform, static, forms(jax.tree.leaves(arrays))] += 1
            return jitted(self, on, platform, static)(*arrays)

        return run

    monkeypatch.setattr(Program, "jitted", watched)
    made = edit(
        editor.on(on), 3, config
    )  # a copy, which computes the null prompt's condition itself
    named = Counter(
        {
            (each.name, each.on, each.platform, each.static, forms(each.shapes)): count
            for each, count in calls.items()
        }
    )
    assert named == ran
    assert rehearsed.evaluations == made.evaluations
    assert sum(each.compilations for each in ALL) == len(calls)
    results = [(each.images, each.latents, dict(each.signals)) for each in (rehearsed, made)]
    assert forms(jax.tree.leaves(results[0])) == forms(jax.tree.leaves(results[1]))


def test_a_call_is_lowered_for_a_platform_that_is_not_here(editor: Editor) -> None:
    with rehearsing(Platform("tpu")) as calls:
        of_shapes(editor).decode(jnp.zeros((2, 4, 4, 4)))
    [call] = calls
    assert call.platform.name == "tpu" and "stablehlo.convolution" in call.lower().as_text()


def test_a_call_compiles_to_the_program_that_runs(editor: Editor) -> None:
    latents = jax.random.normal(jax.random.key(0), (3, 4, 4, 4))
    devices = Devices.local(2)
    with rehearsing() as calls:
        of_shapes(editor, devices).decode(latents)
    [call] = calls
    compiled = call.lower().compile()
    padded = jnp.concatenate([latents, latents[-1:]])
    given = jax.device_put((devices.replicate(editor.params), padded), compiled.input_shardings[0])
    np.testing.assert_allclose(compiled(*given)[:3], editor.decode(latents), atol=1e-5)


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """A line for every program that JAX compiles."""
    heard: list[str] = []

    def hear(event: str, seconds: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            heard.append(event)

    jax.monitoring.register_event_duration_secs_listener(hear)
    yield heard
    jax.monitoring.unregister_event_duration_listener(hear)


@pytest.mark.long
@pytest.mark.parametrize("devices", [None, 2])
def test_work_finds_its_programs_compiled(
    editor: Editor, devices: int | None, compiled: list[str]
) -> None:
    config = SMALL.updated({"steps": 3, **VARIANTS["default"]})
    on = None if devices is None else Devices.local(devices)
    expected = edit(editor.on(on), 3, config)
    for each in ALL:
        each.clear_cache()
    own = editor.on(on)
    own.compile("edit", lambda editor: edit(editor, 3, config))
    assert len(compiled) >= 8
    compiled.clear()
    made = edit(own, 3, config)
    assert not compiled
    np.testing.assert_array_equal(made.images, expected.images)
    own.compile("edit", lambda _: pytest.fail("the name is known"))


def test_under_pmap_programs_are_compiled_as_they_come(editor: Editor) -> None:
    own = editor.on(Devices.local(2, "pmap"))
    own.compile("edit", lambda _: pytest.fail("no program can be rehearsed"))


def test_what_work_raises_is_raised_and_not_remembered(editor: Editor) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match="multiples of 4 pixels"):
            editor.compile("edit", lambda editor: editor.encode(np.zeros((1, 3, 3, 3))))


def test_equal_calls_are_one(editor: Editor) -> None:
    copy = of_shapes(editor)
    with rehearsing() as calls:
        for count in (2, 2, 3):
            copy.decode(jnp.zeros((count, 4, 4, 4)))
    assert [*calls.values()] == [2, 1]
    assert all(isinstance(each, Call) and each.name == "decode" for each in calls)


def test_programs_run_again_afterwards(editor: Editor) -> None:
    with rehearsing(), pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError
    assert np.asarray(editor.decode(jnp.ones((1, 4, 4, 4)))).any()


def test_pmap_is_refused(editor: Editor) -> None:
    with rehearsing(), pytest.raises(InputError, match="choose shard_map"):
        of_shapes(editor, Devices.local(2, "pmap")).decode(jnp.ones((2, 4, 4, 4)))


def test_a_published_shape_needs_no_weights() -> None:
    params = random_checkpoint("sd15", dtype="bfloat16", drawn=False).params
    leaves = jax.tree.leaves(params)
    assert {type(leaf) for leaf in leaves} == {jax.ShapeDtypeStruct}
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params["unet"])) == 859_520_964
