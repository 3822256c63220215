"""Every sampler against its definition, its order, and itself in the other direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import branch_predictor, predictor

from uam_jax.method.edit import Branches, EditInputs, EditRules, edit
from uam_jax.method.plan import segments
from uam_jax.method.sample import denoise, denoise_with_clean, invert
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.schedule import Schedule, split
from uam_jax.types import Latent, Step

SCHEDULE = Schedule(timestep_spacing="linspace")
DPM = SAMPLERS["dpm++2m"]
EVERY = pytest.mark.parametrize("name", SAMPLERS)
GENERAL = [name for name, sampler in SAMPLERS.items() if sampler.general]


@pytest.fixture
def latent() -> Latent:
    return jax.random.normal(jax.random.key(0), (2, 4, 3, 2))


@predictor
def nonlinear(latent: Latent, step: Step) -> Latent:
    return jnp.tanh(0.7 * latent + step.time / 1000.0 + 0.1 * jnp.roll(latent, 1, axis=1))


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule(set_alpha_to_one=True)])
def test_noise_that_does_not_depend_on_the_latent_inverts_exactly(
    name: str, schedule: Schedule, latent: Latent
) -> None:
    noise = jnp.cos(jnp.arange(latent.size, dtype=jnp.float32)).reshape(latent.shape)
    fixed = predictor(lambda latent, step: noise)
    sampler = SAMPLERS[name]
    top, _ = invert(fixed, latent, schedule.inverting(12), sampler=sampler)
    assert jnp.abs(top - latent).max() > 0.1
    end = denoise(fixed, top, schedule.denoising(12), sampler=sampler)
    np.testing.assert_allclose(end, latent, atol=2e-5)


def test_the_first_step_is_ddims(latent: Latent) -> None:
    for steps in (SCHEDULE.denoising(1), SCHEDULE.inverting(1)):
        first = denoise(nonlinear, latent, steps, sampler=DPM)
        np.testing.assert_allclose(first, denoise(nonlinear, latent, steps), rtol=1e-6)


def test_dpmpp_2m_is_the_float64_loop(latent: Latent) -> None:
    """As published: x' = σ'/σ·x - α'(e^-h - 1)(m + D1/2), D1 = (m - m before)·h/h before."""
    schedule = Schedule(timestep_spacing="trailing")
    for steps in (schedule.denoising(8), schedule.inverting(8)):
        x, before, reached = np.asarray(latent, np.float64), None, []
        for time, a, s, a2, s2 in zip(
            *(np.asarray(part, np.float64) for part in steps[1:]), strict=True
        ):
            noise = np.tanh(0.7 * x + time / 1000.0 + 0.1 * np.roll(x, 1, axis=1))
            m = (x - s * noise) / a
            h = np.log(a2 / s2) - np.log(a / s)
            d1 = 0 if before is None else (m - before[0]) * h / before[1]
            x = s2 / s * x - a2 * (np.exp(-h) - 1) * (m + d1 / 2)
            before = m, h
            reached.append(x)
        trajectory, _ = invert(nonlinear, latent, steps, sampler=DPM, keep="all")
        np.testing.assert_allclose(trajectory[1:], reached, rtol=1e-4, atol=1e-4)
        kept, _ = invert(nonlinear, latent, steps, sampler=DPM, keep=(0, 3, 8))
        np.testing.assert_array_equal(kept, trajectory[jnp.asarray([0, 3, 8])])
        last, _ = invert(nonlinear, latent, steps, sampler=DPM)
        np.testing.assert_array_equal(last, trajectory[-1])


def error(name: str, count: int) -> float:
    """Distance from the exact solution for pictures of N(0, s²), where z grows as √(α²s² + σ²)."""
    spread = 0.3

    @predictor
    def exact(latent: Latent, step: Step) -> Latent:
        return step.sigma * latent / ((step.signal * spread) ** 2 + step.sigma**2)

    ratio = np.exp(np.linspace(-3, 2, count + 1))
    signal, sigma = ratio / np.hypot(ratio, 1), 1 / np.hypot(ratio, 1)
    levels = (jnp.asarray(part) for part in (signal[:-1], sigma[:-1], signal[1:], sigma[1:]))
    down = Step(jnp.arange(count), jnp.arange(count), *levels)
    growth = np.hypot(signal[-1] * spread, sigma[-1]) / np.hypot(signal[0] * spread, sigma[0])
    end = denoise(exact, jnp.ones((1, 1, 1, 1)), down, sampler=SAMPLERS[name])
    return abs(float(end[0, 0, 0, 0]) / growth - 1)


def test_the_order_of_convergence() -> None:
    assert 1.7 < error("ddim", 20) / error("ddim", 40) < 2.3
    assert error("dpm++2m", 20) / error("dpm++2m", 40) > 3
    assert error("dpm++2m", 20) < error("ddim", 20) / 4


@EVERY
def test_two_scans_go_the_way_of_one(name: str, latent: Latent) -> None:
    sampler, steps = SAMPLERS[name], SCHEDULE.denoising(9)
    whole = denoise(nonlinear, latent, steps, sampler=sampler)
    cut, clean = denoise_with_clean(nonlinear, latent, steps, last=4, sampler=sampler)
    np.testing.assert_allclose(cut, whole, rtol=1e-4, atol=1e-4)
    assert clean.shape == (4, *latent.shape)


@EVERY
def test_segments_of_an_edit_keep_the_samplers_state(name: str, latent: Latent) -> None:
    def noises(latents: Branches, step: Step, controlled: bool) -> Branches:
        return {k: nonlinear(v, step).noise for k, v in latents.items()}

    steps, rules, never = SCHEDULE.denoising(9), EditRules(sampler=SAMPLERS[name]), range(0)
    options = {"user": never, "anchored": False}
    parts = segments(9, adaptive=never, windows={"a": range(2, 4), "b": range(3, 7)}, **options)
    assert len(parts) == 5
    trace = edit(
        branch_predictor(noises),
        {"source": 2 * latent, "target": latent},
        steps,
        parts,
        rules=rules,
    )
    whole = denoise(nonlinear, latent, steps, sampler=SAMPLERS[name])
    np.testing.assert_allclose(trace.target, whole, rtol=1e-4, atol=1e-4)


def test_the_blend_does_not_enter_the_extrapolation(latent: Latent) -> None:
    """Where a constant estimate is kept from the second step on, there is no slope, and all samplers agree."""

    def noises(latents: Branches, step: Step, controlled: bool) -> Branches:
        return {k: nonlinear(v, step).noise for k, v in latents.items()}

    steps, options = SCHEDULE.denoising(6), {"adaptive": range(0), "windows": {}}
    parts = segments(6, user=range(1, 6), anchored=False, **options)
    kept = EditInputs(jnp.ones((5, *latent.shape)), jnp.zeros((*latent.shape[:-1], 1)))
    ends = [
        edit(
            branch_predictor(noises),
            {"target": latent},
            steps,
            parts,
            kept,
            EditRules(sampler=each),
        )
        for each in map(SAMPLERS.get, GENERAL)
    ]
    for end in ends[1:]:
        np.testing.assert_allclose(end.target, ends[0].target, rtol=1e-5, atol=1e-5)


@EVERY
def test_noise_is_added_and_a_latent_moved(name: str, latent: Latent) -> None:
    sampler = SAMPLERS[name]
    step = jax.tree.map(lambda part: part[3], SCHEDULE.denoising(9))
    prediction = split(latent, latent, step, "epsilon")
    state = sampler.start(latent)
    plain, noisy = (
        sampler.advance(state, prediction, step),
        sampler.advance(state, prediction, step, latent),
    )
    np.testing.assert_allclose(sampler.latent(noisy) - sampler.latent(plain), latent, atol=1e-6)
    moved = sampler.moved(plain, 2 * latent)
    np.testing.assert_array_equal(sampler.query(moved), 2 * latent)
    assert jax.tree.structure(moved) == jax.tree.structure(plain)
