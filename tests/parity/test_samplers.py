"""DPM-Solver++ (2M) against diffusers' scheduler, step by step on the same levels."""

import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import predictor

from uam_jax.method.sample import invert
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.schedule import Schedule
from uam_jax.types import Latent, Step

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation")]


@pytest.mark.parametrize("steps", [6, 20])
def test_dpmpp_2m_is_diffusers(steps: int) -> None:
    schedule = Schedule()
    theirs = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        final_sigmas_type="sigma_min",
        lower_order_final=False,
    )
    theirs.set_timesteps(timesteps=schedule.timesteps(steps).tolist())
    start = np.random.default_rng(0).normal(size=(2, 4, 3, 2)).astype(np.float32)

    @predictor
    def noise(latent: Latent, step: Step) -> Latent:
        return jnp.tanh(0.7 * latent + step.time / 1000.0)

    latent, reached = torch.from_numpy(start), []
    for time in theirs.timesteps:
        output = torch.tanh(0.7 * latent + time / 1000.0)
        latent = theirs.step(output, time, latent).prev_sample
        reached.append(latent.numpy())
    down = schedule.denoising(steps)
    ours, _ = invert(noise, jnp.asarray(start), down, sampler=SAMPLERS["dpm++2m"], keep="all")
    largest = np.abs(reached).max()
    np.testing.assert_allclose(ours[1:], reached, rtol=0, atol=1e-5 * largest)
