"""Steps and scans with noise predictors in closed form, against float64 loops of their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import predictor

from uam_jax.method.sample import denoise, denoise_with_clean, invert
from uam_jax.method.samplers.ddim import DDIM
from uam_jax.method.schedule import Schedule, split
from uam_jax.types import Latent, Step

SCHEDULE = Schedule()
STEPS = 20


@pytest.fixture
def latent() -> Latent:
    return jax.random.normal(jax.random.key(0), (2, 4, 3, 2))


@predictor
def nonlinear(latent: Latent, step: Step) -> Latent:
    """Depends on latent, pixel and timestep."""
    return jnp.tanh(0.7 * latent + step.time / 1000.0 + 0.1 * jnp.roll(latent, 1, axis=1))


def nonlinear64(latent: np.ndarray, timestep: int) -> np.ndarray:
    return np.tanh(0.7 * latent + timestep / 1000.0 + 0.1 * np.roll(latent, 1, axis=1))


def level(timestep: int, schedule: Schedule = SCHEDULE) -> float:
    """ᾱ of a timestep; below 0 the final one."""
    return float(schedule.alpha_bar[timestep]) if timestep >= 0 else schedule.final_alpha_bar


def test_denoise_is_the_float64_loop(latent: Latent) -> None:
    stride = 1000 // STEPS
    z, clean = np.asarray(latent, np.float64), []
    for t in range(1000 - stride + 1, 0, -stride):
        noise = nonlinear64(z, t)
        clean.append((z - np.sqrt(1 - level(t)) * noise) / np.sqrt(level(t)))
        below = level(t - stride)
        z = np.sqrt(below) * clean[-1] + np.sqrt(1 - below) * noise
    steps = SCHEDULE.denoising(STEPS)
    np.testing.assert_allclose(denoise(nonlinear, latent, steps), z, rtol=1e-4, atol=1e-5)
    for last in (1, 6, STEPS):
        end, estimates = denoise_with_clean(nonlinear, latent, steps, last=last)
        assert estimates.shape == (last, *latent.shape)
        np.testing.assert_allclose(estimates, clean[-last:], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(end, denoise(nonlinear, latent, steps), rtol=1e-5)


@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule(set_alpha_to_one=True)])
def test_invert_is_the_float64_loop(latent: Latent, schedule: Schedule) -> None:
    stride = 1000 // STEPS
    z = np.asarray(latent, np.float64)
    levels = [z]
    for t in range(1, 1000, stride):
        noise = nonlinear64(z, t)  # the current latent with the next timestep
        below, above = level(t - stride, schedule), level(t, schedule)
        clean = (z - np.sqrt(1 - below) * noise) / np.sqrt(below)
        z = np.sqrt(above) * clean + np.sqrt(1 - above) * noise
        levels.append(z)
    steps = schedule.inverting(STEPS)
    trajectory, _ = invert(nonlinear, latent, steps, keep="all")
    np.testing.assert_allclose(trajectory, levels, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(trajectory[0], latent)
    np.testing.assert_allclose(trajectory[-1], invert(nonlinear, latent, steps)[0], rtol=1e-5)


def test_gaussian_data_turn_by_the_angle_between_levels(latent: Latent) -> None:
    """For x0 ~ N(0, 1) the exact noise is √(1-ᾱ)·z, and a step scales z by cos(θ - θ')."""
    table = jnp.asarray(SCHEDULE.alpha_bar)

    @predictor
    def exact(latent: Latent, step: Step) -> Latent:
        return jnp.sqrt(1 - table[step.time]) * latent

    steps = SCHEDULE.denoising(STEPS)
    angles = np.arccos(np.append(steps.signal, steps.signal_next[-1]))
    scale = np.prod(np.cos(np.diff(angles)))
    assert 0.9 < scale < 0.99
    np.testing.assert_allclose(denoise(exact, latent, steps), scale * latent, rtol=1e-4)


@pytest.mark.parametrize("depth", [1, 7, STEPS])
def test_noise_that_does_not_depend_on_the_latent_inverts_exactly(
    latent: Latent, depth: int
) -> None:
    noise = jnp.cos(jnp.arange(latent.size, dtype=jnp.float32)).reshape(latent.shape)

    @predictor
    def fixed(latent: Latent, step: Step) -> Latent:
        return noise * (1 + step.time / 1000.0)

    up, down = SCHEDULE.inverting(STEPS, depth), SCHEDULE.denoising(STEPS, depth)
    top, _ = invert(fixed, latent, up)
    assert jnp.abs(top - latent).max() > 0.01
    np.testing.assert_allclose(denoise(fixed, top, down), latent, atol=2e-5)


def test_one_step_by_hand() -> None:
    numbers = (jnp.float32(x) for x in (0.6, 0.8, 0.8, 0.6))
    step = Step(jnp.int32(0), jnp.int32(1), *numbers)
    latent, noise = jnp.full((1, 1, 1, 1), 2.0), jnp.full((1, 1, 1, 1), 1.0)
    # x0 = (2 - 0.8·1) / 0.6 = 2, then 0.8·2 + 0.6·1.
    prediction = split(noise, latent, step, "epsilon")
    np.testing.assert_allclose(DDIM().advance(latent, prediction, step), 2.2, rtol=1e-6)
    np.testing.assert_allclose(DDIM().advance(latent, prediction, step, noise), 3.2, rtol=1e-6)


def test_scans_compile_and_keep_their_dtype(latent: Latent) -> None:
    """A network that computes in half precision does not make the latent half precise."""

    @predictor
    def half(latent: Latent, step: Step) -> Latent:
        return nonlinear(latent, step).noise.astype(jnp.bfloat16)

    steps = SCHEDULE.denoising(STEPS)
    end = jax.jit(lambda z: denoise(half, z, steps))(latent)
    assert end.dtype == jnp.float32
