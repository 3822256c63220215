"""Schedule and steps against diffusers' DDIM schedulers, wherever the definitions coincide."""

import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.errors import InputError
from uam_jax.method.samplers.ddim import DDIM
from uam_jax.method.schedule import Schedule
from uam_jax.types import Step

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.parity

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
VARIANTS = [
    {},
    {"prediction_type": "v_prediction"},
    {"set_alpha_to_one": True},
    {"steps_offset": 0},
    {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    {"beta_schedule": "linear"},
]
# "leading" coincides for every number of steps, "trailing" for those that divide 1000.
STEPS = [1, 7, 30, 50]


def pairs() -> list:
    return [
        (changes, steps)
        for changes in VARIANTS
        for steps in STEPS
        if "timestep_spacing" not in changes or 1000 % steps == 0
    ]


def output_of(sample: np.ndarray, timestep: int) -> np.ndarray:
    """A stand-in for what the network returns."""
    return np.tanh(0.7 * sample + timestep / 1000).astype(np.float32)


def ours(schedule: Schedule, latent: np.ndarray, step: Step) -> tuple[np.ndarray, np.ndarray]:
    latent = jnp.asarray(latent)
    output = jnp.asarray(output_of(latent, int(step.time)))
    prediction = schedule.split(output, latent, step)
    return np.asarray(DDIM().advance(latent, prediction, step)), np.asarray(prediction.clean)


def test_tables() -> None:
    for changes in VARIANTS:
        theirs = diffusers.DDIMScheduler(**SD | changes).alphas_cumprod.numpy()
        ours = Schedule.from_config(SD | changes).alpha_bar
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)


@pytest.mark.parametrize("offset", [0, 1, 2])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_of_every_number_of_steps(spacing: str, offset: int) -> None:
    """Of a file that names the spacing, and of another file with the spacing set afterwards."""
    config = SD | {"timestep_spacing": spacing, "steps_offset": offset}
    other = "trailing" if spacing == "leading" else "leading"
    theirs, ours = diffusers.DDIMScheduler(**config), Schedule.from_config(config)
    assert Schedule.from_config(config | {"timestep_spacing": other}).spaced(spacing) == ours
    for steps in range(1, 999):
        theirs.set_timesteps(steps)
        expected = theirs.timesteps.numpy()[:steps]
        if expected.max() >= 1000:  # beyond their table
            with pytest.raises(InputError, match=f"it would visit timestep {expected.max()}"):
                ours.timesteps(steps)
            continue
        np.testing.assert_array_equal(ours.timesteps(steps), expected, str(steps))


@pytest.mark.parametrize(("changes", "steps"), pairs())
@pytest.mark.parametrize("down", [True, False], ids=["denoise", "invert"])
def test_every_step_of_both_directions(changes: dict, steps: int, down: bool) -> None:
    """Step by step from shared latents, as the levels' rounding is theirs, not the step's."""
    config = SD | changes
    kind = diffusers.DDIMScheduler if down else diffusers.DDIMInverseScheduler
    theirs, schedule = kind(**config), Schedule.from_config(config)
    theirs.set_timesteps(steps)
    stacked = schedule.denoising(steps) if down else schedule.inverting(steps)
    latent = np.random.default_rng(0).normal(size=(1, 4, 4, 2)).astype(np.float32)
    for i, timestep in enumerate(theirs.timesteps.tolist()):
        step = Step(*(part[i] for part in stacked))
        assert int(step.time) == timestep
        output = torch.from_numpy(output_of(latent, timestep))
        expected = theirs.step(output, timestep, torch.from_numpy(latent))
        reached, clean = ours(schedule, latent, step)
        np.testing.assert_allclose(clean, expected.pred_original_sample, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(reached, expected.prev_sample, rtol=1e-5, atol=1e-5)
        latent = expected.prev_sample.numpy()


@pytest.mark.parametrize(
    ("spacing", "steps", "fixed"),
    [
        ("trailing", 30, False),
        ("linspace", 50, False),
        ("trailing", 50, True),
        ("leading", 30, True),
    ],
)
def test_levels_differ_only_where_the_docstring_says(spacing: str, steps: int, fixed: bool) -> None:
    """There a step leads to `timestep - 1000 // N`, here to the next timestep visited."""
    schedule = Schedule(timestep_spacing=spacing)
    timesteps = schedule.timesteps(steps)
    theirs = timesteps - 1000 // steps
    assert np.array_equal(theirs[:-1], timesteps[1:]) == fixed
