"""Levels and timesteps against values worked out by hand; diffusers is in parity/test_schedule.py."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.errors import InputError
from uam_jax.method.samplers.ddim import DDIM
from uam_jax.method.schedule import Schedule, at_own_times, split, warn_of_little_noise
from uam_jax.types import Step

# The scheduler file of Stable Diffusion 1.x.
SD = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SPACINGS = ("leading", "trailing", "linspace")


def test_levels_at_shares_of_the_trained_timesteps() -> None:
    schedule = Schedule()
    steps = schedule.at((0.45, 0.85))
    assert steps.time.tolist() == [450, 850] and steps.index.tolist() == [0, 1]
    np.testing.assert_allclose(steps.signal**2, schedule.alpha_bar[[450, 850]], rtol=1e-6)
    np.testing.assert_allclose(steps.signal**2 + steps.sigma**2, 1, rtol=1e-6)
    assert (steps.signal_next == steps.signal).all() and (steps.sigma_next == steps.sigma).all()


def test_stable_diffusion_levels() -> None:
    schedule = Schedule.from_config(SD)
    assert schedule.alpha_bar.dtype == np.float32
    assert schedule.alpha_bar.shape == (1000,)
    np.testing.assert_allclose(schedule.alpha_bar[0], 1 - 0.00085, rtol=1e-7)
    second_beta = (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) / 999) ** 2
    np.testing.assert_allclose(schedule.alpha_bar[1], (1 - 0.00085) * (1 - second_beta), rtol=1e-7)
    np.testing.assert_allclose(schedule.alpha_bar[999], 0.00466, rtol=1e-3)
    assert schedule.final_alpha_bar == schedule.alpha_bar[0]


def test_fifty_steps_visit_981_to_1_and_blend_ten_below_200() -> None:
    timesteps = Schedule().timesteps(50)
    assert timesteps.dtype == np.int32
    np.testing.assert_array_equal(timesteps, np.arange(981, 0, -20))
    assert (timesteps < 200).sum() == 10


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("leading", [751, 501, 251, 1]),
        ("trailing", [999, 749, 499, 249]),
        ("linspace", [999, 666, 333, 0]),
    ],
)
def test_spacings(spacing: str, expected: list[int]) -> None:
    np.testing.assert_array_equal(Schedule(timestep_spacing=spacing).timesteps(4), expected)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 7, 30, 50, 333, 999])
def test_a_step_leads_to_the_level_at_which_the_next_begins(spacing: str, steps: int) -> None:
    schedule = Schedule(timestep_spacing=spacing)
    down = schedule.denoising(steps)
    np.testing.assert_allclose(
        down.signal**2, schedule.alpha_bar[schedule.timesteps(steps)], rtol=1e-6
    )
    np.testing.assert_allclose(down.signal**2 + down.sigma**2, 1, rtol=1e-6)
    np.testing.assert_array_equal(down.signal_next[:-1], down.signal[1:])
    np.testing.assert_array_equal(down.sigma_next[:-1], down.sigma[1:])
    assert float(down.signal_next[-1]) == pytest.approx(schedule.final_alpha_bar**0.5, rel=1e-6)
    assert (np.diff(down.time) < 0).all()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_inverting_is_denoising_with_order_and_levels_exchanged(spacing: str) -> None:
    schedule = Schedule(timestep_spacing=spacing)
    down, up = schedule.denoising(30), schedule.inverting(30)
    np.testing.assert_array_equal(up.index, np.arange(29, -1, -1))
    np.testing.assert_array_equal(up.time, down.time[::-1])
    np.testing.assert_array_equal(up.signal, down.signal_next[::-1])
    np.testing.assert_array_equal(up.sigma, down.sigma_next[::-1])
    np.testing.assert_array_equal(up.signal_next, down.signal[::-1])


@pytest.mark.parametrize("depth", [1, 10, 50])
def test_depth_cuts_both_directions_at_the_same_level(depth: int) -> None:
    schedule = Schedule()
    for part, whole in zip(schedule.denoising(50, depth), schedule.denoising(50), strict=True):
        np.testing.assert_array_equal(part, whole[50 - depth :])
    for part, whole in zip(schedule.inverting(50, depth), schedule.inverting(50), strict=True):
        np.testing.assert_array_equal(part, whole[:depth])


def test_another_spacing_keeps_the_levels() -> None:
    schedule = Schedule(steps_offset=2)
    assert schedule.spaced("") is schedule
    assert schedule.spaced("leading") == schedule and hash(schedule.spaced("leading")) == hash(
        schedule
    )
    trailing = schedule.spaced("trailing")
    assert trailing == Schedule(steps_offset=2, timestep_spacing="trailing")
    np.testing.assert_array_equal(trailing.alpha_bar, schedule.alpha_bar)
    with pytest.raises(InputError, match="karras"):
        schedule.spaced("karras")


@pytest.mark.parametrize(
    ("steps", "reached", "alpha_bar"), [(251, 751, 0.056), (400, 799, 0.037), (501, 501, 0.275)]
)
def test_steps_that_stop_short_of_the_noise_are_told_once(
    steps: int, reached: int, alpha_bar: float
) -> None:
    warn_of_little_noise.cache_clear()
    with pytest.warns(UserWarning, match="stop short of the noise") as caught:
        warn_of_little_noise(Schedule(), steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_little_noise(Schedule(), steps)
    message = str(caught[0].message)
    assert f"{steps} steps in leading spacing" in message and f"timestep {reached} of" in message
    assert f"alpha_bar is {alpha_bar:.3f}" in message and '"trailing" or "linspace"' in message


def test_steps_that_reach_the_noise_are_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (10, 20, 25, 50, 100, 200, 250, 333, 500, 999):
            warn_of_little_noise(Schedule(), steps)
        for spacing in ("trailing", "linspace"):
            for steps in (2, 4, 251, 400, 501, 999):
                warn_of_little_noise(Schedule().spaced(spacing), steps)


def test_set_alpha_to_one_ends_without_noise() -> None:
    schedule = Schedule(set_alpha_to_one=True)
    assert (
        schedule.denoising(50).signal_next[-1] == 1 and schedule.denoising(50).sigma_next[-1] == 0
    )
    assert schedule.inverting(50).signal[0] == 1


def test_absent_keys_are_stable_diffusions() -> None:
    assert Schedule.from_config({}) == Schedule.from_config(SD) == Schedule()
    assert hash(Schedule.from_config({})) == hash(Schedule())


def test_clip_sample_is_overruled() -> None:
    assert Schedule.from_config({"clip_sample": True}) == Schedule()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "FlowMatchEulerDiscreteScheduler"),
        ("beta_schedule", "squaredcos_cap_v2"),
        ("prediction_type", "sample"),
        ("timestep_spacing", "karras"),
        ("trained_betas", [0.1, 0.2]),
        ("rescale_betas_zero_snr", True),
        ("thresholding", True),
        ("use_flow_sigmas", True),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", "1000"),
        ("num_train_timesteps", True),
        ("steps_offset", -1),
        ("steps_offset", 0.5),
        ("beta_start", "0.00085"),
        ("beta_end", 1.5),
        ("set_alpha_to_one", 1),
    ],
)
def test_unsupported_values_are_named(key: str, value: object) -> None:
    with pytest.raises(InputError, match=key) as error:
        Schedule.from_config({**SD, key: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("steps", [0, -1, 1001, 1000])
def test_steps_outside_the_training_schedule(steps: int) -> None:
    with pytest.raises(InputError, match=f"steps is {steps}"):
        Schedule().timesteps(steps)


def test_linear_betas() -> None:
    schedule = Schedule(beta_schedule="linear", beta_start=0.1, beta_end=0.3, num_train_timesteps=3)
    np.testing.assert_allclose(schedule.alpha_bar, [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], rtol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_every_output_is_taken_apart(rng: np.random.Generator, kind: str) -> None:
    clean, noise = jnp.asarray(rng.normal(size=(2, 1, 3, 3, 2)), jnp.float32)
    signal, sigma = (0.3, 0.7) if kind == "flow" else (0.3**0.5, 0.7**0.5)
    step = Step(*map(jnp.float32, (0, 0, signal, sigma, 1, 0)))
    output = {
        "epsilon": noise,
        "v_prediction": signal * noise - sigma * clean,
        "sample": clean,
        "flow": noise - clean,
    }[kind]
    found = split(output, signal * clean + sigma * noise, step, kind)
    np.testing.assert_allclose(found.clean, clean, atol=2e-6)
    np.testing.assert_allclose(found.noise, noise, atol=2e-6)


def test_own_times_are_those_of_the_levels() -> None:
    up = at_own_times(Schedule().inverting(4))
    assert up.time.tolist() == [0, 1, 251, 501]
    np.testing.assert_array_equal(up.signal, Schedule().inverting(4).signal)


def test_a_rectified_flows_step_is_eulers(rng: np.random.Generator) -> None:
    latent, velocity = jnp.asarray(rng.normal(size=(2, 1, 3, 3, 2)), jnp.float32)
    step = Step(*map(jnp.float32, (0, 0, 0.3, 0.7, 0.5, 0.5)))
    reached = DDIM().advance(latent, split(velocity, latent, step, "flow"), step)
    np.testing.assert_allclose(reached, latent + (0.5 - 0.7) * velocity, atol=1e-6)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
