"""Inversions against plain PyTorch loops over diffusers' U-Net, written from their descriptions.

Each loop makes the inversion's data and takes the steps of an edit without a control. Every step of ours starts at the
loop's own latents.
"""

# ruff: noqa: F811 (fixtures of another module)
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from uam_jax import EditConfig, Editor
from uam_jax.engine.predictors import Model, branch_predictor
from uam_jax.method.controls import NoControl
from uam_jax.method.edit import EditInputs, EditRules
from uam_jax.method.edit import edit as run_branches
from uam_jax.method.inversions import InversionMethod
from uam_jax.method.plan import Plan, Segment
from uam_jax.method.samplers import SAMPLERS, Sampler
from uam_jax.types import Condition, Params, Step

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

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

STEPS = 4
TIMES = [751, 501, 251, 1]
PLAIN = EditConfig().updated(
    {
        "steps": STEPS,
        "guidance": GUIDANCE,
        "preserve": "latent",
        "control": "none",
        "mask": {"rule": "none"},
        "source": {"condition": "prompt"},
        "auxiliary": {"latents": "original"},
    }
)


class Loop:
    """DDIM's way up, and an edit of plain guidance; a subclass is an inversion. Latents are NCHW."""

    def __init__(self, reference: Reference, z0: torch.Tensor) -> None:
        self.reference, self.null, self.source = reference, reference.null, reference.source
        self.way = self.up(z0)
        self.data: dict[str, Any] = {}
        """Ours by name, with their steps in the order of denoising."""

    def noise(self, latent: torch.Tensor, time: int, states: torch.Tensor) -> torch.Tensor:
        return self.reference.noise(latent, time, states)

    def levels(self, i: int) -> tuple[float, float]:
        """ᾱ where denoising step `i` starts and where it ends."""
        return self.reference.alpha_bar(TIMES[i]), self.reference.alpha_bar(TIMES[i] - 250)

    def ddim(self, latent: torch.Tensor, noise: torch.Tensor, start: float, end: float) -> Any:
        clean = (latent - (1 - start) ** 0.5 * noise) / start**0.5
        return end**0.5 * clean + (1 - end) ** 0.5 * noise

    def up(self, z0: torch.Tensor) -> list[torch.Tensor]:
        """The latents of every level, most noise first."""
        way = [z0]
        for i in reversed(range(STEPS)):
            level, below = self.levels(i)
            noise = self.noise(way[0], TIMES[i], self.source)
            way.insert(0, self.ddim(way[0], noise, below, level))
        return way

    def unguided(self, i: int) -> torch.Tensor:
        """The condition of the unguided halves."""
        return self.null

    def asked(self, latent: torch.Tensor, i: int) -> torch.Tensor:
        return latent

    def predicted(self, latent: torch.Tensor, states: torch.Tensor, i: int) -> torch.Tensor:
        """The guided noise."""
        asked = self.asked(latent, i)
        without = self.noise(asked, TIMES[i], self.unguided(i))
        return without + GUIDANCE * (self.noise(asked, TIMES[i], states) - without)

    def step(self, i: int, source: torch.Tensor, target: torch.Tensor) -> Any:
        """The latents of both branches after a step."""
        states = (self.source, self.reference.targets)
        return tuple(
            self.ddim(latent, self.predicted(latent, own, i), *self.levels(i))
            for latent, own in zip((source, target), states, strict=True)
        )


class NegativePrompt(Loop):
    def unguided(self, i: int) -> torch.Tensor:
        return self.source


class Interpolated(Loop):
    """A third of the way along the arc."""

    def unguided(self, i: int) -> torch.Tensor:
        a, b = self.source.flatten(), self.null.flatten()
        angle = torch.acos(torch.dot(a / a.norm(), b / b.norm()))
        between = (torch.sin(2 * angle / 3) * a + torch.sin(angle / 3) * b) / torch.sin(angle)
        return between.reshape(self.source.shape)


class Residual(Loop):
    def asked(self, latent: torch.Tensor, i: int) -> torch.Tensor:
        return latent + self.way[i + 1] - self.way[i]


LOOPS = {
    "ddim": (Loop, "ddim"),
    "negative-prompt": (NegativePrompt, "negative-prompt"),
    "interpolated": (Interpolated, {"kind": "negative-prompt", "interpolation": 1 / 3}),
    "residual": (Residual, "residual"),
}


@pytest.mark.parametrize("name", LOOPS)
def test_inversions_and_every_step_of_their_edits(
    name: str, reference: Reference, editor: Editor, z0: torch.Tensor
) -> None:
    loop, settings = LOOPS[name]
    theirs, config = loop(reference, z0), PLAIN.updated({"inversion": settings})
    plan = editor.plan(config)
    key = editor.inverter.keys(3, SOURCE, config).source
    ours = editor.inverter.invert(jnp.asarray(both.as_numpy(z0)), key, tuple(range(STEPS + 1)))
    for level, latent in enumerate(reversed(theirs.way)):
        assert error(ours.latents[level], latent) <= PER_STEP
    for part, data in theirs.data.items():
        for i, own in data.items():
            assert error(ours.per_step[part][i], own) <= PER_STEP

    conditions = {
        "null": reference.null,
        "negative": reference.null.expand(3, -1, -1),
        "source": reference.source.expand(3, -1, -1),
        "target": reference.targets,
    }
    source = target = theirs.way[0]
    down = editor.checkpoint.schedule.denoising(STEPS)
    for i in range(STEPS):
        found = one_step(
            editor.inverter.model(),
            plan,
            config.source_inversion.method,
            SAMPLERS[config.sampler],
            editor.params,
            both.as_numpy(source),
            both.as_numpy(target),
            jax.tree.map(lambda values, i=i: values[i : i + 1], (down, dict(ours.per_step))),
            {name: Condition(jnp.asarray(part.numpy())) for name, part in conditions.items()},
        )
        source, target = theirs.step(i, source, target)
        assert error(found[0], source) <= PER_STEP and error(found[1], target) <= PER_STEP


@functools.partial(jax.jit, static_argnums=range(4))
def one_step(
    model: Model,
    plan: Plan,
    method: InversionMethod,
    sampler: Sampler,
    params: Params,
    source: jax.Array,
    target: jax.Array,
    scanned: tuple[Step, dict[str, jax.Array]],
    conditions: dict[str, Condition],
) -> tuple[jax.Array, jax.Array]:
    steps, data = scanned
    control = {"control": NoControl(), "control_data": {}}
    predict = branch_predictor(
        model, params, plan.rows, conditions, GUIDANCE, method=method, **control
    )
    trace = run_branches(
        predict,
        {"source": source, "target": target},
        steps._replace(index=jnp.zeros_like(steps.index)),
        (Segment(0, 1, True, frozenset(), False, False),),
        EditInputs(inverted=data),
        EditRules(sampler=sampler, control=NoControl(), method=method),
    )
    return trace.source, trace.target
