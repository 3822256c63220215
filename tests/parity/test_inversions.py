"""Inversions against plain PyTorch loops over diffusers' U-Net, written from their descriptions.

Each loop makes the inversion's data and takes the steps of an edit without a control. Every step of ours starts at the
loop's own latents.
"""

# ruff: noqa: F811 (fixtures of another module)
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax import EditConfig, Editor
from uam_jax.engine.predictors import Model, branch_predictor
from uam_jax.method.controls import NoControl
from uam_jax.method.edit import EditInputs, EditRules
from uam_jax.method.edit import edit as run_branches
from uam_jax.method.inversions import FixedPointInversion, InversionMethod
from uam_jax.method.plan import Plan, Segment
from uam_jax.method.samplers import SAMPLERS, Sampler
from uam_jax.types import Condition, Params, Step

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from parity import inversion_loops as loops  # noqa: E402 (needs them)
from parity import torch_networks as both  # noqa: E402 (needs them)
from parity.test_released import (  # noqa: E402
    GUIDANCE,
    PER_STEP,
    SOURCE,
    Reference,
    _exact_products,  # noqa: F401
    editor,  # noqa: F401
    error,
    reference,  # noqa: F401
    unet,  # noqa: F401
    z0,  # noqa: F401
)

pytestmark = pytest.mark.parity

PLAIN = EditConfig().updated(
    {
        "steps": 4,
        "guidance": GUIDANCE,
        "preserve": "latent",
        "control": "none",
        "mask": {"rule": "none"},
        "source": {"condition": "prompt", "latents": "replay"},
        "auxiliary": {"latents": "original"},
    }
)


LOOPS = {
    "ddim": (loops.Loop, "ddim"),
    "negative-prompt": (loops.NegativePrompt, "negative-prompt"),
    "interpolated": (loops.Interpolated, {"kind": "negative-prompt", "interpolation": 1 / 3}),
    "residual": (loops.Residual, "residual"),
    "direct": (loops.Direct, "direct"),
    "edit-friendly": (loops.EditFriendly, {"kind": "edit-friendly", "skip": 0.25, "seed": 3}),
    "belm": (loops.BELM, "belm"),
    "proximal": (loops.Proximal, "proximal"),
    "proxnpi": (loops.Corrected, {"kind": "proximal", "form": "proxnpi"}),
    "null-text": (loops.NullText, "null-text"),
    "iteration": (loops.Iterated, {"kind": "fixed_point", "iterations": 3}),
    "anderson": (loops.Anderson, {"kind": "fixed_point", "iterations": 3, "anderson": True}),
    "average": (loops.Average, {"kind": "fixed_point", "solver": "average", "iterations": 9}),
    "gradient": (loops.Gradient, {"kind": "fixed_point", "solver": "gradient", "iterations": 5}),
}
MORE = {
    "edit-friendly": {"sampler": "ddpm"},
    "belm": {"sampler": "belm", "spacing": "linspace"},
    "null-text": {"steps": 2},
    "gradient": {"spacing": "trailing"},
}


@pytest.mark.parametrize("name", LOOPS)
def test_inversions_and_every_step_of_their_edits(
    name: str, reference: Reference, editor: Editor, z0: torch.Tensor
) -> None:
    loop, settings = LOOPS[name]
    theirs, config = (
        loop(reference, z0),
        PLAIN.updated({"inversion": settings, **MORE.get(name, {})}),
    )
    plan = editor.plan(config)
    key = editor.inverter.keys(3, SOURCE, config).source
    ours = editor.inverter.invert(jnp.asarray(both.as_numpy(z0)), key, tuple(range(key.top + 1)))
    for found, latent in zip(ours.latents, reversed(theirs.way), strict=False):
        assert error(found, latent) <= PER_STEP
    for part, data in theirs.data.items():
        for i, own in data.items():
            # A difference of latents is rounded as these are.
            own, latent = own + theirs.way[i], both.as_numpy(theirs.way[i])
            assert error(ours.per_step[part][i] + latent, own) <= PER_STEP

    if name == "null-text":
        for i, states in enumerate(theirs.states):
            # Where a slope is hardly more than rounding, Adam may go either way: in the mean, not each element.
            found = np.asarray(ours.per_step["null_states"][i])
            off = np.sqrt(((found - states.numpy()) ** 2).mean() / (states.numpy() ** 2).mean())
            print(f"root mean square {off:.2g}")
            assert off <= 1e-4 and (i > 0 or error(found, states) <= 1e-4)
            theirs.states[i] = torch.from_numpy(found.copy())

    conditions = {
        "null": reference.null,
        "negative": reference.null.expand(3, -1, -1),
        "source": reference.source.expand(3, -1, -1),
        "target": reference.targets,
    }
    source = target = theirs.way[0]
    down = editor.checkpoint.schedule.spaced(config.spacing).denoising(config.steps)
    if isinstance(config.inversion.method, FixedPointInversion):
        return  # its way down is DDIM's
    sampler = SAMPLERS[config.sampler]
    advance = functools.partial(
        run_steps,
        editor.inverter.model(),
        plan,
        config.source_inversion.method,
        sampler,
        editor.params,
        {name: Condition(jnp.asarray(part.numpy())) for name, part in conditions.items()},
    )
    above = None
    for i in range(config.steps):
        latents = both.as_numpy(source), both.as_numpy(target)
        source, target = theirs.step(i, source, target)
        if i < plan.segments[0].start:
            continue
        first = i if above is None else i - 1
        scanned = jax.tree.map(
            lambda values, first=first, i=i: values[first : i + 1], (down, dict(ours.per_step))
        )
        if sampler.pair:
            # The first of two steps is given, for both branches the same: each has a run of its own.
            below = [both.as_numpy(theirs.way[1])] * 2 if above is None else latents
            started = above or latents
            found = tuple(advance(*started, scanned, (given,))[k] for k, given in enumerate(below))
            above = latents
        else:
            found = advance(*latents, scanned, ())
        assert error(found[0], source) <= PER_STEP and error(found[1], target) <= PER_STEP


@functools.partial(jax.jit, static_argnums=range(4))
def run_steps(
    model: Model,
    plan: Plan,
    method: InversionMethod,
    sampler: Sampler,
    params: Params,
    conditions: dict[str, Condition],
    source: jax.Array,
    target: jax.Array,
    scanned: tuple[Step, dict[str, jax.Array]],
    below: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array]:
    """The branches' latents after the steps of `scanned`."""
    steps, data = scanned
    control = {"control": NoControl(), "control_data": {}}
    predict = branch_predictor(
        model, params, plan.rows, conditions, GUIDANCE, method=method, **control
    )
    trace = run_branches(
        predict,
        {"source": source, "target": target},
        steps._replace(index=jnp.arange(len(steps.index))),
        (Segment(0, len(steps.index), True, frozenset(), False, False),),
        EditInputs(inverted=data, below=below),
        EditRules(sampler=sampler, control=NoControl(), method=method),
    )
    return trace.source, trace.target
