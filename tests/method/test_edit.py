"""The edit against a float64 loop written from the method's description, with closed-form noises."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import branch_predictor

from uam_jax.method.edit import Branches, BranchPredictor, EditInputs, EditRules, EditTrace, edit
from uam_jax.method.masks import MaskRule
from uam_jax.method.plan import Segment, segments
from uam_jax.method.schedule import Schedule
from uam_jax.types import Latent, Step

SCHEDULE = Schedule()
STEPS, BLENDED, CONTROL = 10, 3, range(4, 8)
SHAPE = (3, 6, 6, 2)
SIZE = 0.05
"""Of latents and noises: the branches' differences lie on both sides of `masks.CEILING`."""
NEVER, LATE, ALWAYS = range(0), range(STEPS - BLENDED, STEPS), range(STEPS)


def noises(latents: Branches, step: Step, controlled: bool) -> Branches:
    target = latents["target"]
    noise = {"target": jnp.cos(2 * jnp.roll(target, 1, 2) + step.time / 500.0)}
    if "source" in latents:
        noise["source"] = jnp.tanh(latents["source"] - step.time / 700.0)
    if controlled:
        noise["target"] += 0.3 * jnp.sin(latents["source"])
    return {name: SIZE * values for name, values in noise.items()}


predict = branch_predictor(noises)


def predict64(
    source: np.ndarray, target: np.ndarray, t: int, controlled: bool
) -> tuple[np.ndarray, np.ndarray]:
    noise = np.cos(2 * np.roll(target, 1, 2) + t / 500.0)
    return SIZE * np.tanh(source - t / 700.0), SIZE * (noise + 0.3 * np.sin(source) * controlled)


def dilate64(mask: np.ndarray, radius: int) -> np.ndarray:
    out = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape[1:3]):
        rows = slice(max(y - radius, 0), y + radius + 1)
        columns = slice(max(x - radius, 0), x + radius + 1)
        out[:, y, x] = mask[:, rows, columns].max((1, 2))
    return out


def auto64(change: np.ndarray, radius: int) -> np.ndarray:
    """Smoothed by 1 2 1 twice, cut where the variance within both parts is least, or at 0.5."""
    padded = np.pad(change, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    even = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16
    masks = []
    for one in even:
        values = np.sort(one.ravel())
        spread = [
            k * values[:k].var() + (len(values) - k) * values[k:].var()
            for k in range(1, len(values))
        ]
        level = values[int(np.argmin(spread)) : int(np.argmin(spread)) + 2].mean()
        masks.append(one > min(level, 0.5))
    return dilate64(np.stack(masks).astype(np.float64), radius)


def reference(
    source: np.ndarray,
    target: np.ndarray,
    auxiliary: np.ndarray,
    *,
    rule: str = "released",
    q: float = 0.5,
    radius: int = 1,
    source_line: bool = True,
    anchors: np.ndarray | None = None,
    user: np.ndarray | None = None,
    user_from: int = STEPS - BLENDED,
    adaptive: bool = True,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """All steps of all examples; returns target, source and 1 - P of the blended steps."""
    stride, masks, change = 1000 // STEPS, [], np.zeros((*source.shape[:-1], 1))
    table = np.append(SCHEDULE.alpha_bar.astype(np.float64), SCHEDULE.final_alpha_bar)
    for i, t in enumerate(range(1001 - stride, 0, -stride)):
        if anchors is not None:
            source = anchors[i]
        level, below = table[t], table[max(t - stride, -1)]
        noise_src, noise_tgt = predict64(source, target, t, i in CONTROL)
        clean_src = (source - np.sqrt(1 - level) * noise_src) / np.sqrt(level)
        clean_tgt = (target - np.sqrt(1 - level) * noise_tgt) / np.sqrt(level)
        late = t < stride * BLENDED
        change = change + np.abs(clean_src - clean_tgt).mean(-1, keepdims=True)
        if (adaptive and late) or (user is not None and i >= user_from):
            free = np.ones_like(target)
            if adaptive and late and rule == "auto":
                free = free * auto64(change / (i + 1), radius)
            elif adaptive and late:
                size = np.abs(clean_src - clean_tgt)
                quantile = np.linspace(0, q, STEPS)[i]
                cut = np.stack([np.full(one.shape, np.quantile(one, quantile)) for one in size])
                if rule == "released":
                    free = dilate64((size > 2 * cut).astype(np.float64), radius)
                else:
                    free = 1 - dilate64((size <= cut).astype(np.float64), radius)
            if user is not None and i >= user_from:
                free = free * user
            kept = auxiliary[i - STEPS]
            clean_tgt = (1 - free) * kept + free * clean_tgt
            if source_line:
                clean_src = free * kept + (1 - free) * clean_src
            masks.append(free)
        source = np.sqrt(below) * clean_src + np.sqrt(1 - below) * noise_src
        target = np.sqrt(below) * clean_tgt + np.sqrt(1 - below) * noise_tgt
    return target, source, masks


def random(seed: int, *lead: int) -> Latent:
    return SIZE * jax.random.normal(jax.random.key(seed), (*lead, *SHAPE))


SOURCE, TARGET, AUXILIARY, ANCHORS = random(0), random(1), random(2, STEPS), random(3, STEPS + 1)
USER = jax.random.uniform(jax.random.key(4), (*SHAPE[:-1], 1)).round(1)


@partial(
    jax.jit, static_argnames=("predict", "segments", "rule", "radius", "source_line", "keep_masks")
)
def execute(
    predict: BranchPredictor,
    source: Latent,
    target: Latent,
    steps: Step,
    segments: tuple[Segment, ...],
    *,
    rule: str = "released",
    quantile: float = 0.5,
    radius: int = 1,
    source_line: bool = True,
    keep_masks: bool = False,
    **inputs: Any,
) -> EditTrace:
    """`edit`; a source of a step more than the target's axes is anchored."""
    latents = {"source": source, "target": target}
    if source.ndim > target.ndim:
        latents, inputs = {"target": target}, {**inputs, "anchors": source}
    rules = EditRules(MaskRule(rule, quantile, radius, source_line))
    return edit(
        predict, latents, steps, segments, EditInputs(**inputs), rules, keep_masks=keep_masks
    )


def windows(steps: range) -> dict[str, range]:
    return {"control": steps} if steps else {}


def run(
    *, adaptive: range = LATE, user: range = NEVER, anchored: bool = False, **options: object
) -> EditTrace:
    parts = segments(
        STEPS, adaptive=adaptive, user=user, windows=windows(CONTROL), anchored=anchored
    )
    options = {"auxiliary_clean": AUXILIARY, "keep_masks": True, **options}
    source = ANCHORS if anchored else SOURCE
    return execute(predict, source, TARGET, SCHEDULE.denoising(STEPS), parts, **options)


def agree(trace: EditTrace, expected: tuple[np.ndarray, np.ndarray, list[np.ndarray]]) -> None:
    target, source, masks = expected
    np.testing.assert_allclose(trace.masks, masks, atol=1e-6)
    np.testing.assert_allclose(trace.free, np.mean(masks, axis=(0, -1)), atol=1e-6)
    np.testing.assert_allclose(trace.target, target, rtol=1e-4, atol=1e-5)
    if trace.source is not None:
        np.testing.assert_allclose(trace.source, source, rtol=1e-4, atol=1e-5)


INPUTS = tuple(np.asarray(part, np.float64) for part in (SOURCE, TARGET, AUXILIARY))


@pytest.mark.parametrize(
    ("rule", "q", "radius", "source_line"),
    [
        ("released", 0.6, 1, True),
        ("released", 0.5, 0, False),
        ("algorithm1", 0.1, 1, True),
        ("auto", 0.0, 0, True),
    ],
)
def test_rules(rule: str, q: float, radius: int, source_line: bool) -> None:
    trace = run(rule=rule, quantile=q, radius=radius, source_line=source_line)
    expected = reference(*INPUTS, rule=rule, q=q, radius=radius, source_line=source_line)
    assert 0.1 < np.mean(expected[2]) < 0.9
    agree(trace, expected)
    assert trace.source is not None


def test_source_line_changes_both_branches() -> None:
    with_line, without = run(source_line=True), run(source_line=False)
    assert jnp.abs(with_line.source - without.source).max() > 0.1
    assert jnp.abs(with_line.target - without.target).max() > 1e-3


def test_anchored_source_is_read_from_its_stored_latents() -> None:
    anchors = np.asarray(ANCHORS, np.float64)
    trace = run(anchored=True)
    agree(trace, reference(*INPUTS, anchors=anchors))
    assert trace.source is None


@pytest.mark.parametrize(
    ("adaptive", "user", "anchored"),
    [(LATE, LATE, False), (LATE, ALWAYS, True), (NEVER, LATE, True), (NEVER, ALWAYS, False)],
)
def test_user_mask_limits_or_replaces_the_rule(
    adaptive: range, user: range, anchored: bool
) -> None:
    expected = reference(
        *INPUTS,
        adaptive=bool(adaptive),
        user=np.asarray(USER, np.float64),
        user_from=user.start,
        anchors=np.asarray(ANCHORS, np.float64) if anchored else None,
    )
    trace = run(adaptive=adaptive, user=user, user_mask=USER, anchored=anchored)
    assert len(trace.masks) == (STEPS if user is ALWAYS else BLENDED)
    agree(trace, expected)


def test_where_nothing_may_change_the_result_is_the_auxiliarys() -> None:
    """With P = 1 everywhere the last clean estimate is the auxiliary's own."""
    schedule = Schedule(set_alpha_to_one=True)
    parts = segments(STEPS, adaptive=LATE, user=LATE, windows=windows(NEVER), anchored=False)
    trace = execute(
        predict,
        SOURCE,
        TARGET,
        schedule.denoising(STEPS),
        parts,
        auxiliary_clean=AUXILIARY,
        user_mask=jnp.zeros_like(USER),
    )
    np.testing.assert_array_equal(trace.target, AUXILIARY[-1])
    np.testing.assert_array_equal(trace.free, 0)
    assert trace.masks is None


def test_without_a_blend_everything_is_free() -> None:
    trace = run(adaptive=NEVER, auxiliary_clean=None)
    target, _, _ = reference(*INPUTS, adaptive=False)
    np.testing.assert_allclose(trace.target, target, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(trace.free, 1)
    assert trace.masks.shape == (0, *SHAPE)


def test_only_the_last_clean_estimates_are_needed() -> None:
    trace = run(auxiliary_clean=AUXILIARY[-BLENDED:])
    np.testing.assert_array_equal(trace.target, run().target)
    with pytest.raises(ValueError, match="auxiliary_clean has 2 steps"):
        run(auxiliary_clean=AUXILIARY[-2:])


def test_one_step_from_given_latents() -> None:
    """Segments need not cover all steps: so runs are compared step by step."""
    step = SCHEDULE.denoising(STEPS)
    part = Segment(8, 9, source=True, active=frozenset(), adaptive=True, user=False)
    options = {"auxiliary_clean": AUXILIARY, "keep_masks": True}
    trace = execute(predict, SOURCE, TARGET, step, (part,), **options)
    whole = (Segment(0, 8, True, frozenset(), False, False), part)
    # The same step at the end of a longer run has the same quantile and auxiliary estimate.
    early = execute(predict, SOURCE, TARGET, step, whole[:1])
    late = execute(predict, early.source, early.target, step, (part,), **options)
    both = execute(predict, SOURCE, TARGET, step, whole, **options)
    np.testing.assert_allclose(late.target, both.target, atol=1e-5)
    assert jnp.abs(trace.target - both.target).max() > 0.1


def test_a_batch_is_its_examples() -> None:
    scale = jnp.asarray([1.0, 5.0, 0.2])[:, None, None, None]
    parts = segments(STEPS, adaptive=LATE, user=LATE, windows=windows(CONTROL), anchored=False)

    def finish(source: Latent, target: Latent, auxiliary: Latent, user: Latent) -> EditTrace:
        steps, options = SCHEDULE.denoising(STEPS), {"quantile": 0.3}
        options |= {"auxiliary_clean": auxiliary, "user_mask": user}
        return execute(predict, source, target, steps, parts, **options)

    inputs = (SOURCE * scale, TARGET * scale, AUXILIARY * scale, USER)
    together = finish(*inputs)
    for i in range(3):
        alone = finish(*(part[..., i : i + 1, :, :, :] for part in inputs))
        np.testing.assert_allclose(alone.target[0], together.target[i], atol=1e-5)
        np.testing.assert_allclose(alone.free[0], together.free[i], atol=1e-6)


def test_change_and_stability_are_those_of_the_steps_compared() -> None:
    trace = run()
    free = np.asarray(trace.masks)
    both, either = np.minimum(free[1:], free[:-1]), np.maximum(free[1:], free[:-1])
    expected = (both.sum((2, 3, 4)) / either.sum((2, 3, 4))).mean(0)
    np.testing.assert_allclose(trace.stability, expected, rtol=1e-5)
    assert trace.change.shape == SHAPE[:-1] and float(trace.change.min()) > 0
    same = execute(
        branch_predictor(
            lambda latents, step, controlled: dict.fromkeys(latents, 0.1 * latents["target"])
        ),
        TARGET,
        TARGET,
        SCHEDULE.denoising(STEPS),
        segments(STEPS, adaptive=LATE, user=NEVER, windows=windows(NEVER), anchored=False),
        auxiliary_clean=AUXILIARY,
        rule="auto",
        source_line=False,
    )
    # Nothing differs, so the first mask is empty; what differs afterwards is the blend's own doing.
    assert float(same.free.mean()) < 1


def test_the_region_is_uniform_outside_what_was_found() -> None:
    seen: list[np.ndarray] = []

    @branch_predictor
    def watched(latents: Branches, step: Step, controlled: bool, uniformity: Latent) -> Branches:
        jax.debug.callback(lambda share: seen.append(np.array(share)), uniformity, ordered=True)
        return noises(latents, step, controlled)

    parts = segments(
        STEPS, adaptive=LATE, user=NEVER, windows=windows(NEVER), anchored=False, compared=ALWAYS
    )
    options = {"auxiliary_clean": AUXILIARY, "rule": "auto", "radius": 0, "keep_masks": True}
    steps = SCHEDULE.denoising(STEPS)
    plain = execute(predict, SOURCE, TARGET, steps, parts, **options)
    found = execute(watched, SOURCE, TARGET, steps, parts, outside_uniformity=0.25, **options)
    jax.effects_barrier()
    np.testing.assert_allclose(found.target, plain.target, atol=1e-5)
    assert len(seen) == STEPS
    np.testing.assert_array_equal(seen[0], 0)  # nothing is known yet
    for share, mask in zip(
        seen[-BLENDED + 1 :], np.asarray(plain.masks)[:-1, ..., :1], strict=True
    ):
        # A step's region is what the step before it has found.
        np.testing.assert_allclose(share, 0.25 * (1 - mask), atol=1e-6)
    seen.clear()
    given = execute(
        watched, SOURCE, TARGET, steps, parts, outside_uniformity=0.5, user_mask=USER, **options
    )
    jax.effects_barrier()
    np.testing.assert_allclose(seen[0], 0.5 * (1 - USER), atol=1e-6)
    assert given.target.shape == SHAPE
