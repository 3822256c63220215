"""The evaluations that a plan counts, checked by formula, by running it, and against a run that makes them all."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import branch_predictor, predictor

from uam_jax.method.config import EditConfig
from uam_jax.method.edit import Branches, EditInputs, EditRules, EditTrace, edit
from uam_jax.method.plan import Plan, Segment
from uam_jax.method.sample import denoise_with_clean, invert
from uam_jax.method.schedule import Schedule
from uam_jax.types import Latent, Step

SCHEDULE = Schedule()
SHAPE = (1, 4, 4, 2)
RELEASED = EditConfig.load("released")


def method_of(wrap: Callable[..., Any], function: Callable[..., Any]) -> property:
    """A method that `wrap` makes a predictor of."""
    return property(lambda self: wrap(partial(function, self)))


class Network:
    """Closed-form predictors of one edit, which leave in the trace how many rows they evaluate."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @partial(method_of, predictor)
    def source_inversion(self, latent: Latent, step: Step) -> Latent:
        mark(self.plan.inversion_rows)
        return jnp.tanh(0.5 * latent + step.time / 1000)

    @partial(method_of, predictor)
    def uniform(self, latent: Latent, step: Step) -> Latent:
        mark(1)
        return jnp.tanh(0.3 * latent - step.time / 1000)

    @partial(method_of, branch_predictor)
    def branches(self, latents: Branches, step: Step, controlled: bool) -> Branches:
        mark(sum(row.branch == "target" for row in self.plan.rows))
        noise = {"target": jnp.cos(jnp.roll(latents["target"], 1, 1) + step.time / 500)}
        if "source" in latents:
            mark(sum(row.branch == "source" for row in self.plan.rows))
            noise["source"] = jnp.tanh(latents["source"] + step.time / 700)
        if controlled:
            noise["target"] += 0.3 * jnp.sin(latents["source"])
        return noise


def mark(rows: int) -> None:
    """Traces a function called `rows_<n>`, for `count_rows` to find."""

    def function() -> None:
        return None

    function.__name__ = f"rows_{rows}"
    jax.jit(function)()


def count_rows(jaxpr: Any) -> int:
    """The rows marked in a program, each times the length of the scans around it."""
    total = 0
    for equation in jaxpr.eqns:
        name = str(equation.params.get("name", ""))
        if name.startswith("rows_"):
            total += int(name.removeprefix("rows_"))
        inner = equation.params.get("jaxpr")
        if inner is not None:
            inner = getattr(inner, "jaxpr", inner)
            total += equation.params.get("length", 1) * count_rows(inner)
    return total


def run(
    config: EditConfig, network: Network, segments: tuple[Segment, ...], user_mask: bool
) -> EditTrace:
    """One edit as the pipeline does it."""
    plan, original = network.plan, jnp.sin(jnp.arange(32.0)).reshape(SHAPE)
    up = SCHEDULE.inverting(config.steps)
    trajectory, _ = invert(network.source_inversion, original, up, keep="all")
    kept = jnp.broadcast_to(original, (plan.blended, *SHAPE))
    if plan.depth:
        top = trajectory[plan.depth]
        if not plan.shared_inversion:
            up = SCHEDULE.inverting(config.steps, plan.depth)
            top, _ = invert(network.uniform, original, up)
        down = SCHEDULE.denoising(config.steps, plan.depth)
        _, kept = denoise_with_clean(network.uniform, top, down, last=plan.blended)
    latents, inputs = {"target": trajectory[-1]}, EditInputs(kept)
    if config.source.latents == "anchored":
        inputs = inputs._replace(anchors=trajectory[::-1])
    else:
        latents["source"] = trajectory[-1]
    if user_mask:
        inputs = inputs._replace(user_mask=jnp.linspace(0, 1, 16).reshape(1, 4, 4, 1))
    down, rules = SCHEDULE.denoising(config.steps), EditRules(config.mask.to_rule())
    return edit(network.branches, latents, down, segments, inputs, rules)


def plan_of(config: EditConfig, *, user_mask: bool = False) -> Plan:
    return config.plan(SCHEDULE.timesteps(config.steps), user_mask=user_mask)


@pytest.mark.parametrize(
    ("changes", "targets", "expected"),
    [
        ({}, 1, 6 * 50),
        ({"auxiliary": {"latents": "anchored"}}, 1, 4 * 50 + 2 * 10),
        (
            {
                "auxiliary": {"latents": "anchored"},
                "source": {"latents": "anchored"},
                "control": "none",
            },
            1,
            3 * 50 + 3 * 10,
        ),
        (
            {"auxiliary": {"latents": "anchored"}, "source": {"latents": "anchored"}},
            1,
            50 + 100 + 46 + 2 * 10,
        ),
        ({"auxiliary": {"latents": "original"}}, 1, 4 * 50),
        # The source inversion and the auxiliary branch are shared, the branches of the edit not.
        ({}, 3, 3 * 50 + 3 * 150),
        # A source under its own prompt takes two rows where it is guided.
        ({"source": {"condition": "prompt"}}, 1, 7 * 50),
        ({"source": {"condition": "prompt"}, "inversion": {"guidance": 3}}, 1, 8 * 50),
        # Guidance between the same two contexts is none.
        ({"inversion": {"guidance": 3}}, 1, 6 * 50),
        ({"guidance": 1}, 1, 5 * 50),
        ({"guidance": 1, "source": {"condition": "prompt"}}, 1, 5 * 50),
        # A source inverted with uniform maps and no prompt is the auxiliary's inversion.
        ({"inversion": {"uniformity": 1}}, 1, 5 * 50),
        ({"inversion": {"uniformity": 1}, "auxiliary": {"latents": "anchored"}}, 1, 4 * 50 + 10),
        ({"inversion": {"uniformity": 1}, "source": {"condition": "prompt"}}, 1, 7 * 50),
        # Without a blend nothing needs the auxiliary; without control as well, nor the source.
        ({"mask": {"t_mask": 0}}, 1, 4 * 50),
        ({"mask": {"rule": "none"}}, 1, 4 * 50),
        ({"mask": {"rule": "none"}, "control": "none"}, 1, 3 * 50),
        ({"mask": {"rule": "none"}, "control": {"step_end": 20}}, 1, 50 + 100 + 20),
        ({"mask": {"rule": "none"}, "control": {"step_end": 4}}, 1, 3 * 50),
        # An anchored source is evaluated in the control's window and in the blended steps.
        (
            {
                "source": {"latents": "anchored"},
                "auxiliary": {"latents": "original"},
                "control": {"step_end": 20},
            },
            1,
            50 + 100 + 16 + 10,
        ),
        ({"mask": {"t_mask": 1000}, "auxiliary": {"latents": "anchored"}}, 1, 6 * 50),
        # The last step is blended, whatever its timestep.
        ({"mask": {"t_mask": 1}, "auxiliary": {"latents": "anchored"}}, 1, 4 * 50 + 2),
    ],
)
def test_counts(changes: dict, targets: int, expected: int) -> None:
    assert plan_of(RELEASED.updated(changes)).evaluations(targets) == expected


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ({}, 200 + 20),
        ({"user": "replace"}, 200 + 20),
        ({"user_from_start": True}, 200 + 100),
        ({"user": "replace", "rule": "none", "user_from_start": True}, 200 + 100),
    ],
)
def test_counts_with_a_user_mask(mask: dict, expected: int) -> None:
    config = RELEASED.updated({"auxiliary": {"latents": "anchored"}, "mask": mask})
    assert plan_of(config, user_mask=True).evaluations() == expected
    # Where the mask stands in for the rule, and there is no control, nothing needs the source.
    free = plan_of(config.updated({"control": "none"}), user_mask=True).evaluations()
    assert free == expected - (50 if mask.get("user") == "replace" else 0)


def test_segments_of_the_released_run() -> None:
    def part(start: int, stop: int, *, controlled: bool, adaptive: bool) -> Segment:
        active = frozenset({"mutual"} if controlled else ())
        return Segment(start, stop, True, active, adaptive, False)

    assert plan_of(RELEASED).segments == (
        part(0, 4, controlled=False, adaptive=False),
        part(4, 40, controlled=True, adaptive=False),
        part(40, 50, controlled=True, adaptive=True),
    )


@pytest.mark.parametrize(
    ("changes", "loops"),
    [
        ({}, 2),  # Without the control and with it; the mask has no loop of its own.
        ({"control": {"step_start": 0}}, 1),
        ({"mask": {"user_from_start": True}}, 2),
        ({"control": {"step_start": 45}}, 2),
        (
            {"source": {"latents": "anchored"}, "control": "none"},
            2,
        ),  # Without the source and with it.
    ],
)
def test_segments_that_differ_by_their_masks_share_a_network(changes: dict, loops: int) -> None:
    config = RELEASED.updated(changes)
    plan = plan_of(config, user_mask=True)
    execute = partial(run, config, Network(plan), plan.segments, True)
    equations = jax.make_jaxpr(execute)().jaxpr.eqns
    found = [
        count_rows(equation.params["jaxpr"].jaxpr)
        for equation in equations
        if equation.primitive.name == "scan"
    ]
    # Two inversions and the auxiliary branch have one each.
    assert len([rows for rows in found if rows]) == 3 + loops


COMBINATIONS = [
    {
        "steps": 9,
        "source": {"latents": source, "condition": context},
        "auxiliary": {"latents": auxiliary},
        "control": control,
        "guidance": guidance,
        "inversion": {"uniformity": uniformity},
        "mask": {"t_mask": 500, **mask},
    }
    for source, (auxiliary, uniformity), control, (context, guidance), mask in itertools.product(
        ("replay", "anchored"),
        (("replay", 0), ("anchored", 1), ("original", 0)),
        ("none", {"kind": "masactrl", "step_start": 2, "step_end": 6}),
        (("null", 7.5), ("prompt", 1)),
        (
            {"source_line": False, "quantile": 0.2},
            {"rule": "none", "user_from_start": True},
            {"user": "replace"},
        ),
    )
]


@pytest.mark.parametrize("user_mask", [False, True])
def test_runs_spend_what_is_counted(user_mask: bool) -> None:
    for changes in COMBINATIONS:
        config = EditConfig().updated(changes)
        plan = plan_of(config, user_mask=user_mask)
        execute = partial(run, config, Network(plan), plan.segments, user_mask)
        assert count_rows(jax.make_jaxpr(execute)().jaxpr) == plan.evaluations(), changes


@pytest.mark.parametrize("index", range(0, len(COMBINATIONS), 19))
def test_what_is_spared_does_not_matter(index: int) -> None:
    """The same edit with the source evaluated in every step has the same result."""
    config = EditConfig().updated(COMBINATIONS[index])
    plan = plan_of(config, user_mask=True)
    everything = tuple(replace(part, source=True) for part in plan.segments)
    trace = run(config, Network(plan), plan.segments, True)
    lavish = run(config, Network(plan), everything, True)
    np.testing.assert_allclose(trace.target, lavish.target, atol=1e-5)
    np.testing.assert_allclose(trace.free, lavish.free, atol=1e-6)
