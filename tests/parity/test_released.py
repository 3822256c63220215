"""The `released` run against a plain PyTorch loop over diffusers' U-Net, step by step and as a whole.

The loop is the method's description taken literally, without what our code saves: every attention map
is formed, both halves of guidance are evaluated even where their contexts are the same, and the three
branches go side by side.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax import EditConfig, Editor
from uam_jax.engine.predictors import Model, branch_predictor
from uam_jax.method.controls import MasaCtrl
from uam_jax.method.edit import EditInputs, EditRules, EditTrace
from uam_jax.method.edit import edit as run_branches
from uam_jax.method.inversions import DDIMInversion
from uam_jax.method.masks import MaskRule, quantiles
from uam_jax.method.plan import Plan, Segment
from uam_jax.types import Condition, Params, Step

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from parity import thin_model  # noqa: E402 (needs the three)
from parity import torch_networks as both  # noqa: E402

pytestmark = pytest.mark.parity

SOURCE = "a red cube"
TARGETS = ["a blue ball", "a red ball", "a blue cube"]
STEPS, GUIDANCE, QUANTILE, T_MASK = 50, 7.5, 0.5, 200
CONTROL_STEP, CONTROL_BLOCK = 4, 10
PER_STEP, WHOLE_RUN = 1e-5, 1e-3
"""The largest relative error of one step from shared latents, and of fifty."""

CASES = [
    *(pytest.param({}, i, id=f"released-{i}") for i in range(STEPS)),
    *(
        pytest.param({"mask": {"rule": "algorithm1"}}, i, id=f"algorithm1-{i}")
        for i in (40, 44, 49)
    ),
    *(pytest.param({"source": {"condition": "prompt"}}, i, id=f"prompt-{i}") for i in (40, 49)),
]


class Processor:
    """Attention of one layer of transformer block `block`, with all maps written out."""

    def __init__(self, block: int) -> None:
        self.block = block

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        uniform: bool = False,
        source_of: list[int] | None = None,
    ) -> torch.Tensor:
        own = encoder_hidden_states is None
        context = hidden_states if own else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if own and source_of is not None and self.block >= CONTROL_BLOCK:
            key, value = key[source_of], value[source_of]
        query, key, value = (attn.head_to_batch_dim(part) for part in (query, key, value))
        maps = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1)
        if uniform and not own:
            maps = torch.full_like(maps, 1 / maps.shape[-1])
        for layer in attn.to_out:
            value = layer(
                attn.batch_to_head_dim(maps @ value) if layer is attn.to_out[0] else value
            )
        return value


class State(NamedTuple):
    """The latents of the three branches."""

    auxiliary: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor


class Taken(NamedTuple):
    """The result of one step; the masks are those of blended steps."""

    reached: State
    auxiliary_clean: torch.Tensor
    edit: torch.Tensor | None = None
    least: torch.Tensor | None = None
    most: torch.Tensor | None = None


@dataclass
class Reference:
    """The method, from its description alone; latents are NCHW."""

    unet: Any
    null: torch.Tensor
    source: torch.Tensor
    targets: torch.Tensor

    def __post_init__(self) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alpha_bars = (1 - betas).cumprod(0).tolist()
        self.timesteps = [981 - 20 * i for i in range(STEPS)]

    def alpha_bar(self, timestep: int) -> float:
        return self.alpha_bars[max(timestep, 0)]

    @torch.no_grad()
    def noise(self, latent: torch.Tensor, timestep: int, states: torch.Tensor, **how: Any) -> Any:
        states = states.expand(len(latent), -1, -1)
        return self.unet(latent, timestep, states, cross_attention_kwargs=how).sample

    def invert(self, latent: torch.Tensor, *, uniform: bool) -> torch.Tensor:
        for timestep in reversed(self.timesteps):
            noise = self.noise(latent, timestep, self.null, uniform=uniform)
            below, level = self.alpha_bar(timestep - 20), self.alpha_bar(timestep)
            clean = (latent - (1 - below) ** 0.5 * noise) / below**0.5
            latent = level**0.5 * clean + (1 - level) ** 0.5 * noise
        return latent

    def start(self, z0: torch.Tensor) -> State:
        noisy = self.invert(z0, uniform=False)
        return State(self.invert(z0, uniform=True), noisy, noisy)

    def step(self, i: int, state: State, *, condition: torch.Tensor, rule: str) -> Taken:
        """Step `i`, with the source branch under `condition`."""
        timestep, b = self.timesteps[i], len(state.target)
        rows = torch.arange(4 * b).tolist()  # source, target without the prompt; then with it
        source_of = rows[:b] * 2 + rows[2 * b : 3 * b] * 2 if i >= CONTROL_STEP else None
        states = [self.null, self.null, condition, self.targets]
        predicted = self.noise(
            torch.cat([state.source, state.target] * 2),
            timestep,
            torch.cat([part.expand(b, -1, -1) for part in states]),
            source_of=source_of,
        )
        without, prompted = predicted.chunk(2)
        guided = without + GUIDANCE * (prompted - without)
        noises = [self.noise(state.auxiliary, timestep, self.null, uniform=True), *guided.chunk(2)]

        level, below = self.alpha_bar(timestep), self.alpha_bar(timestep - 20)
        u, source, target = (
            (latent - (1 - level) ** 0.5 * noise) / level**0.5
            for latent, noise in zip(state, noises, strict=True)
        )
        masks = []
        if timestep < T_MASK:
            masks = self.edit_masks(source - target, QUANTILE * i / (STEPS - 1), rule)
            edit = masks[0]
            target = (1 - edit) * u + edit * target
            source = edit * u + (1 - edit) * source
        reached = State(
            *(
                below**0.5 * clean + (1 - below) ** 0.5 * noise
                for clean, noise in zip((u, source, target), noises, strict=True)
            )
        )
        return Taken(reached, u, *masks)

    def edit_masks(self, difference: torch.Tensor, quantile: float, rule: str) -> list:
        """E, and what it is where all values within 1e-4 of the threshold fall either way."""
        magnitude = difference.abs()
        level = magnitude.flatten(1).quantile(quantile, dim=1)[:, None, None, None]
        masks = []
        for factor in (1, 1 + 1e-4, 1 - 1e-4):
            if rule == "released":
                masks.append(dilated(magnitude > 2 * level * factor))
            else:
                masks.append(1 - dilated(magnitude <= level * factor))
        return masks


def dilated(mask: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.max_pool2d(mask.float(), 3, stride=1, padding=1)


@pytest.fixture(scope="module", autouse=True)
def _exact_products() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def unet() -> Any:
    return thin_model.random_unet(Processor)


@pytest.fixture(scope="module")
def editor(unet: Any, tmp_path_factory: pytest.TempPathFactory) -> Editor:
    """The same weights, through the files of a checkpoint."""
    return thin_model.load_editor(unet, [SOURCE, *TARGETS], tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def reference(unet: Any, editor: Editor) -> Reference:
    def states(prompts: str | list[str]) -> torch.Tensor:
        return torch.from_numpy(np.array(editor.condition(prompts).states))

    return Reference(unet, states(""), states(SOURCE), states(TARGETS))


@pytest.fixture(scope="module")
def z0() -> torch.Tensor:
    """Three images' latents, each from a seed of its own."""
    return torch.stack(
        [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    )


Run = list[tuple[State, Taken]]
"""Every step: from where, and what it did."""


@pytest.fixture(scope="module")
def run(reference: Reference, z0: torch.Tensor) -> Run:
    state, steps = reference.start(z0), []
    for i in range(STEPS):
        taken = reference.step(i, state, condition=reference.null, rule="released")
        steps.append((state, taken))
        state = taken.reached
    return steps


@pytest.mark.parametrize(("changes", "i"), CASES)
def test_a_step_from_shared_latents(
    reference: Reference, editor: Editor, run: Run, changes: dict, i: int
) -> None:
    config = EditConfig.load("released").updated(changes)
    condition = reference.null if config.source.condition == "null" else reference.source
    state, _ = run[i]
    expected = reference.step(i, state, condition=condition, rule=config.mask.rule)
    plan = editor.plan(config)
    segment = next(part for part in plan.segments if part.start <= i < part.stop)
    null = reference.null
    negative = null.expand(len(reference.targets), -1, -1)
    conditions = {
        "null": null, "negative": negative, "source": condition, "target": reference.targets
    }  # fmt: skip
    ours = one_step(
        editor.inverter.model(),
        plan,
        # The step is the second of two, so that the ramp of quantiles ends at its own.
        replace(segment, start=1, stop=2),
        config.mask.rule,
        editor.params,
        *(both.as_numpy(part) for part in (state.source, state.target, expected.auxiliary_clean)),
        jax.tree.map(
            lambda values: values[jnp.array([i, i])], editor.checkpoint.schedule.denoising(STEPS)
        ),
        quantiles(config.mask.quantile, STEPS)[i],
        {name: Condition(jnp.asarray(part.numpy())) for name, part in conditions.items()},
    )
    assert segment.blended == (expected.edit is not None)
    if segment.blended:
        free = ours.masks[0]
        assert (both.as_numpy(expected.least) <= free).all() and (
            free <= both.as_numpy(expected.most)
        ).all()
        assert 0 < free.mean() < 1
    assert error(ours.source, expected.reached.source) <= PER_STEP
    assert error(ours.target, expected.reached.target) <= PER_STEP


@functools.partial(jax.jit, static_argnums=range(4))
def one_step(
    model: Model,
    plan: Plan,
    segment: Segment,
    rule: str,
    params: Params,
    source: jax.Array,
    target: jax.Array,
    clean: jax.Array,
    steps: Step,
    quantile: jax.Array,
    conditions: dict[str, Condition],
) -> EditTrace:
    predict = branch_predictor(
        model,
        params,
        plan.rows,
        conditions,
        GUIDANCE,
        control=MasaCtrl(block_start=CONTROL_BLOCK),
        control_data={},
        method=DDIMInversion(),
    )
    return run_branches(
        predict,
        {"source": source, "target": target},
        steps,
        (segment,),
        EditInputs(clean[None]),
        EditRules(MaskRule(rule, quantile)),
        keep_masks=True,
    )


def error(ours: jax.Array, theirs: torch.Tensor) -> float:
    """The relative error, which `pytest -rP` shows."""
    found = both.relative_error(ours, both.as_numpy(theirs))
    print(f"relative error {found:.2g}")
    return found


def test_the_whole_run(editor: Editor, run: Run, z0: torch.Tensor) -> None:
    config = EditConfig.load("released")
    ours = editor.edit_latents(
        jnp.asarray(both.as_numpy(z0)), TARGETS, config=config, keep_masks=True
    )
    reached = run[-1][1].reached
    share = float(ours.step_masks.mean())
    assert 0.1 < share < 0.9
    edits = torch.stack([taken.edit for _, taken in run if taken.edit is not None])
    np.testing.assert_array_equal(ours.step_masks, edits.movedim(2, -1))
    assert error(ours.source_latents, reached.source) <= WHOLE_RUN
    assert error(ours.latents, reached.target) <= WHOLE_RUN
    assert error(ours.auxiliary_latents, reached.auxiliary) <= WHOLE_RUN
