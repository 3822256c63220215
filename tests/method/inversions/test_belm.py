"""O-BELM's relation against its published form, and the way back from the last two latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import predictor

from uam_jax.engine.predictors import retracing
from uam_jax.method.inversions import BELMInversion, InversionMethod
from uam_jax.method.sample import denoise, invert
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.schedule import Schedule, at_own_times
from uam_jax.types import Latent, Step

BELM = SAMPLERS["belm"]
SCHEDULES = {
    "Stable Diffusion": Schedule(),
    # Level 0 and the first timestep are one level.
    "equal levels": Schedule(steps_offset=0),
    "to no noise": Schedule(timestep_spacing="linspace", set_alpha_to_one=True),
}


@pytest.fixture
def latent() -> Latent:
    return jax.random.normal(jax.random.key(0), (3, 4, 3, 2))


@predictor
def nonlinear(latent: Latent, step: Step) -> Latent:
    return jnp.tanh(0.7 * latent + step.time / 1000.0 + 0.1 * jnp.roll(latent, 1, axis=1))


def way_back(latent: Latent, schedule: Schedule, count: int) -> tuple[float, float]:
    """The largest errors of the way there and back, over the noisiest latent's largest value: BELM's and DDIM's."""
    up, down = schedule.inverting(count), schedule.denoising(count)
    keep = (0, count - 1, count)
    data = BELMInversion().run(nonlinear, latent, at_own_times(up), sampler=BELM, keep=keep)
    _, below, top = data["latents"]
    led, sampler = retracing(nonlinear, BELM, InversionMethod(), {}, down, (below,))
    own = jnp.abs(denoise(led, top, down, sampler=sampler) - latent).max()
    plain, _ = invert(nonlinear, latent, up)
    ddim = jnp.abs(denoise(nonlinear, plain, down) - latent).max()
    return tuple(float(error / jnp.abs(top).max()) for error in (own, ddim))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_round_trip_is_exact_where_ddims_is_not(name: str, latent: Latent) -> None:
    own, ddim = way_back(latent, SCHEDULES[name], 20)
    assert own < 1e-5 and ddim > 100 * own


def test_the_relation_is_the_published_one(latent: Latent) -> None:
    """X' = (h²/h1²)(a'/a1)·x1 + ((h1²-h²)/h1²)(a'/a)·x - (h(h+h1)/h1)·a'·ε, in float64; the first step is DDIM's."""
    down = Schedule().denoising(6)
    x, before, reached = np.asarray(latent, np.float64), None, []
    for time, a, s, a2, s2 in zip(
        *(np.asarray(part, np.float64) for part in down[1:]), strict=True
    ):
        noise = np.tanh(0.7 * x + time / 1000.0 + 0.1 * np.roll(x, 1, axis=1))
        h = s / a - s2 / a2
        if before is None:
            new = a2 / a * x - h * a2 * noise
        else:
            x1, a1, h1 = before
            new = (h / h1) ** 2 * a2 / a1 * x1 + (h1**2 - h**2) / h1**2 * a2 / a * x
            new = new - h * (h + h1) / h1 * a2 * noise
        x, before = new, (x, a, h)
        reached.append(x)
    ours, _ = invert(nonlinear, latent, down, sampler=BELM, keep="all")
    np.testing.assert_allclose(ours[1:], reached, rtol=1e-4, atol=1e-4)


def test_the_bend_is_the_distance_from_ddims_step(latent: Latent) -> None:
    up = at_own_times(Schedule().inverting(5))
    options = {"sampler": BELM, "keep": tuple(range(6))}
    way, bend = BELMInversion().run(nonlinear, latent, up, **options).values()
    step = jax.tree.map(lambda part: part[3], up)
    plain = SAMPLERS["ddim"].advance(way[3], nonlinear(way[3], step), step)
    size = [
        np.sqrt((np.asarray(each) ** 2).mean(axis=(1, 2, 3))) for each in (way[4] - plain, way[3])
    ]
    np.testing.assert_allclose(bend[3], size[0] / size[1], rtol=1e-3)
    np.testing.assert_allclose(bend[0], 0, atol=1e-6)
