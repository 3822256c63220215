"""Attention controls against plain PyTorch loops over diffusers' U-Net, step by step and as a whole."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax import Edit, EditConfig, Editor
from uam_jax.engine.predictors import Model, branch_predictor
from uam_jax.engine.prompts import prepare_control
from uam_jax.method import controls
from uam_jax.method.controls import Moment
from uam_jax.method.edits import Words
from uam_jax.method.inversions import InversionMethod
from uam_jax.method.plan import Row
from uam_jax.method.samplers import SAMPLERS
from uam_jax.types import Condition, Params, Step

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from parity import thin_model, torch_controls  # noqa: E402 (needs the three)
from parity import torch_networks as both  # noqa: E402
from parity.torch_controls import GUIDANCE, STEPS, Loop  # noqa: E402

pytestmark = pytest.mark.parity

SOURCE = "a red cube"
EDITS = [
    Edit("a big red ball", words=Words(("cube", "ball"), ("red",), {"ball": 2.0})),
    Edit("a red ball", words=Words(weights={"red": 0.5})),
]
PER_STEP, WHOLE_RUN = 1e-5, 1e-3
"""The largest relative error of one step from shared latents, and of fifty."""
LENGTH = 77
MASK = torch.zeros(2, 1, 8, 8)
MASK[0, :, 2:7, 1:5] = MASK[1, :, :, 3:] = 1
SUBTRACT = 0.9
"""The threshold of words to subtract: of 2 x 2 nearly even maps a pixel or two."""
P2P = {"subtract_threshold": SUBTRACT, "self_steps": 0.4}
"""With as long a window as that of cross-attention, so that there are fewer programs to compile."""


@pytest.fixture(scope="module", autouse=True)
def _exact_products() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def unet() -> Any:
    return thin_model.random_unet(torch_controls.Processor)


@pytest.fixture(scope="module")
def editor(unet: Any, tmp_path_factory: pytest.TempPathFactory) -> Editor:
    captions = [SOURCE, *(edit.target for edit in EDITS)]
    return thin_model.load_editor(unet, captions, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def loop(unet: Any, editor: Editor) -> Loop:
    def states(prompts: str | list[str]) -> torch.Tensor:
        return torch.from_numpy(np.array(editor.condition(prompts).states))

    return Loop(unet, states(""), states(SOURCE), states([edit.target for edit in EDITS]))


@pytest.fixture(scope="module")
def z0() -> torch.Tensor:
    """Two images' latents, each from a seed of its own."""
    return torch.stack(
        [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    )


def config_of(kind: str, **settings: Any) -> EditConfig:
    return EditConfig().updated(
        {
            "steps": STEPS,
            "guidance": GUIDANCE,
            "preserve": "latent",
            "source": {"condition": "prompt", "latents": "replay"},
            "mask": {"rule": "none"},
            "control": {"kind": kind, **settings},
        }
    )


def prompt_to_prompt(i: int) -> torch_controls.PromptToPrompt:
    """Its mapper by hand: of start, a, red, cube, end; start, a, big, red, ball, end; start, a, red, ball, end."""
    mapper, copied, weights, ends = same_tokens()
    mapper[0, :, :6] = torch.eye(LENGTH)[:, [0, 1, 0, 2, 0, 4]]
    copied[0, [2, 4]] = 0
    copied[1, 3] = 0
    weights[0, 4], weights[1, 2] = 2, 0.5
    words = torch.zeros(2, 2, 2, LENGTH)
    words[0, 0, 0, 3] = words[0, 0, 1, 4] = 1
    words[0, 1, 0, 2] = words[0, 1, 1, 3] = 1
    words[1, 0] = 1  # without words to blend, the region is everything
    return torch_controls.PromptToPrompt(i, mapper, copied, weights, ends, words, SUBTRACT, 20)


def same_tokens() -> tuple[torch.Tensor, ...]:
    """A mapper of each token to that at its place, what is copied, weights, and windows of 20 steps."""
    ones = torch.ones(2, LENGTH)
    ends = torch.tensor([0, 20]).repeat(2, LENGTH, 1)
    return torch.eye(LENGTH).repeat(2, 1, 1), ones, ones.clone(), ends


REPLACED = [
    Edit("a big ball", words=Words(weights={"ball": 1.5}, windows={"ball": (0.1, 0.5)})),
    Edit("a red bigball"),
]


def replacement(editor: Editor) -> torch_controls.PromptToPrompt:
    """Its mapper by hand: of start, a, red, cube, end; start, a, big, ball, end; start, a, red, big, ball, end."""
    mapper, copied, weights, ends = same_tokens()
    # The words that the tokenizer does not know are several tokens, which share the map of one.
    last = 1 + len(editor.checkpoint.tokenizer.tokens("a red bigball"))
    assert last > 4
    mapper[1, :, 3:last] = torch.eye(LENGTH)[:, [3]] / (last - 3)
    mapper[1, :, last] = torch.eye(LENGTH)[4]
    weights[0, 3], ends[0, 3] = 1.5, torch.tensor([5, 25])
    return torch_controls.PromptToPrompt(0, mapper, copied, weights, ends, self_steps=30)


Run = list[tuple[torch.Tensor, torch.Tensor, Any]]
"""The latents of source and target before each step and after the last, and the control's memory."""


def run_of(loop: Loop, z0: torch.Tensor, control: Any) -> Run:
    source = target = loop.invert(z0)
    steps = []
    for i in range(STEPS):
        control.i = i
        steps.append((source, target, replace(control)))
        source, target = loop.step(control, source, target)
    return [*steps, (source, target, control)]


@pytest.fixture(scope="module")
def p2p_run(loop: Loop, z0: torch.Tensor) -> Run:
    return run_of(loop, z0, prompt_to_prompt(0))


MASACTRL = {
    "mask": {"step_start": 0, "foreground": "mask"},
    "words": {"step_start": 0, "foreground": "words", "word_threshold": 0.7, "keys": "both"},
}
"""From the first step on, so that there is one program to compile for each."""


def masactrl(i: int, variant: str) -> torch_controls.MasaCtrl:
    words = torch.zeros(2, 1, 2, LENGTH)
    words[0, 0, 0, 3] = words[0, 0, 1, 4] = words[1, 0, 1, 3] = words[1, 0, 0, 3] = 1
    return torch_controls.MasaCtrl(
        i,
        first=0,
        union=variant == "words",
        mask=MASK if variant == "mask" else None,
        words=words if variant == "words" else None,
        threshold=0.7,
    )


@functools.partial(jax.jit, static_argnames=("model", "rows", "control", "active"))
def one_step(
    model: Model,
    params: Params,
    latents: dict[str, jax.Array],
    conditions: dict[str, Condition],
    data: Mapping[str, jax.Array],
    step: Step,
    state: Any,
    *,
    rows: tuple[Row, ...],
    control: controls.Control,
    active: frozenset[str],
) -> tuple[Any, dict[str, jax.Array]]:
    predict = branch_predictor(
        model, params, rows, conditions, GUIDANCE,
        control=control, control_data=data, method=InversionMethod(),
    )  # fmt: skip
    sampler, moment = SAMPLERS["ddim"], Moment(step, STEPS, active, state)
    predictions, taps = predict(latents, moment)
    moved = {
        name: sampler.latent(sampler.advance(sampler.start(latent), predictions[name], step))
        for name, latent in latents.items()
    }
    return control.after(taps, moved, moment)


def check_step(
    editor: Editor,
    loop: Loop,
    run: Run,
    config: EditConfig,
    i: int,
    state: Callable[[Any], Any],
    mask: jax.Array | None = None,
    negative: Any = None,
    edits: Sequence[Edit] = EDITS,
) -> None:
    """One step from the run's latents, and the state that `state` makes of its control's memory."""
    before, (source, target, _) = run[i], run[i + 1]
    latents = {
        name: jnp.asarray(both.as_numpy(part))
        for name, part in zip(("source", "target"), before, strict=False)
    }
    _, found = taker(editor, loop, config, edits, mask, negative)(i, state(before[2]), latents)
    assert error(found["source"], source) <= PER_STEP
    assert error(found["target"], target) <= PER_STEP


def check_run(
    editor: Editor,
    run: Run,
    z0: torch.Tensor,
    edits: Sequence[Edit],
    config: EditConfig,
    mask: Any = None,
) -> None:
    """The whole edit, from the clean latents on."""
    start = jnp.asarray(both.as_numpy(z0))
    masks = None if mask is None else np.repeat(np.repeat(mask[..., 0], 2, axis=1), 2, axis=2)
    found = editor.edit_latents(start, edits, SOURCE, masks=masks, config=config)
    source, target, _ = run[-1]
    assert error(found.latents, target) <= WHOLE_RUN
    if found.source_latents is not None:  # of a source that goes down to the end
        assert error(found.source_latents, source) <= WHOLE_RUN


def taker(
    editor: Editor,
    loop: Loop,
    config: EditConfig,
    edits: Sequence[Edit],
    mask: jax.Array | None,
    negative: Any = None,
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """A function from a step's number, the control's state and the latents to those after it."""
    edits = [replace(edit, source=SOURCE) for edit in edits]
    plan = editor.plan(config, user_mask=mask is not None)
    control = config.control.fitted(editor.sites)
    sources = {"null": loop.null, "source": loop.source.expand(2, -1, -1), "target": loop.targets}
    sources["negative"] = loop.null.expand(2, -1, -1) if negative is None else negative
    conditions = {name: Condition(jnp.asarray(part.numpy())) for name, part in sources.items()}
    data = prepare_control(control, editor.checkpoint.tokenizer, edits, mask)
    steps, windows = editor.checkpoint.schedule.denoising(STEPS), control.windows(STEPS)

    def take(i: int, state: Any, latents: Any) -> tuple[Any, dict[str, jax.Array]]:
        return one_step(
            editor.inverter.model(),
            editor.params,
            latents,
            conditions,
            data,
            jax.tree.map(lambda x: x[i], steps),
            state,
            rows=plan.rows,
            control=control,
            active=frozenset(name for name, part in windows.items() if i in part),
        )

    return take


def error(ours: jax.Array, theirs: torch.Tensor) -> float:
    """The relative error, which `pytest -rP` shows."""
    found = both.relative_error(ours, both.as_numpy(theirs))
    print(f"relative error {found:.2g}")
    return found


@pytest.mark.parametrize("i", [0, 9, 10, 19, 20, 40])
def test_a_step_of_prompt_to_prompt(editor: Editor, loop: Loop, p2p_run: Run, i: int) -> None:
    def stored(control: torch_controls.PromptToPrompt) -> jax.Array:
        shape = 2, 2, 2, 2, 2
        return jnp.asarray(control.stored.numpy()) if i else jnp.zeros(shape)

    check_step(editor, loop, p2p_run, config_of("prompt-to-prompt", **P2P), i, stored)


def test_a_run_of_prompt_to_prompt(
    editor: Editor, loop: Loop, p2p_run: Run, z0: torch.Tensor
) -> None:
    source, target, _ = p2p_run[-1]
    same = (source == target).all(1).float().mean((1, 2))
    assert (
        0 < float(same[0]) < 1 and not same[1]
    )  # LocalBlend has done something, in the first alone
    check_run(editor, p2p_run, z0, EDITS, config_of("prompt-to-prompt", **P2P))


def test_replaced_words_in_windows_of_their_own(
    editor: Editor, loop: Loop, z0: torch.Tensor
) -> None:
    """The source's cross-attention is taken for 20 steps, or a word's own, its self-attention for 30."""
    states = torch.from_numpy(np.array(editor.condition([edit.target for edit in REPLACED]).states))
    run = run_of(replace(loop, targets=states), z0, replacement(editor))
    settings = {"mapping": "replace", "local_blend": False, "word_steps": 0.5}
    config = config_of("prompt-to-prompt", **settings)
    for i in (0, 4, 5, 19, 20, 24, 25, 29):
        check_step(
            editor, replace(loop, targets=states), run, config, i, lambda _: (), edits=REPLACED
        )
    check_run(editor, run, z0, REPLACED, config)


@pytest.mark.parametrize("variant", MASACTRL)
def test_steps_of_masactrl(editor: Editor, loop: Loop, z0: torch.Tensor, variant: str) -> None:
    run = run_of(loop, z0, masactrl(0, variant))
    # The user's mask is the foreground alone: nothing is blended outside it.
    config = config_of("masactrl", **MASACTRL[variant]).overridden(["mask.t_mask=0"])
    words = Words(("cube", "ball")) if variant == "words" else Words()
    edits = [replace(edit, words=words) for edit in EDITS]

    def stored(control: torch_controls.MasaCtrl) -> Any:
        return jnp.asarray(control.stored.numpy())[:, None] if variant == "words" else ()

    mask = jnp.asarray(MASK.movedim(1, -1).numpy()) if variant == "mask" else None
    for i in (5, 30):
        check_step(editor, loop, run, config, i, stored, mask, edits=edits)
    check_run(editor, run, z0, edits, config, mask)


def test_steps_of_plug_and_play(editor: Editor, loop: Loop, z0: torch.Tensor) -> None:
    """The source's maps are taken for 25 steps, and its features for 40."""
    others = ("a red", "a ball")
    negative = torch.from_numpy(np.array(editor.condition(others).states))
    run = run_of(loop, z0, torch_controls.PlugAndPlay(0, negative, 25, 40))
    config = config_of("plug-and-play")
    for i in (0, 24, 25, 39, 40):
        check_step(editor, loop, run, config, i, lambda _: (), negative=negative)
    edits = [Edit(edit.target, negative=text) for edit, text in zip(EDITS, others, strict=True)]
    check_run(editor, run, z0, edits, config)
