"""The noises that join independent levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import predictor

from uam_jax import EditConfig, InputError
from uam_jax.engine.predictors import retracing
from uam_jax.method.inversions import EditFriendlyInversion
from uam_jax.method.sample import denoise
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.schedule import Schedule
from uam_jax.types import Latent, Step

SCHEDULE, DDPM = Schedule(), SAMPLERS["ddpm"]
METHOD = EditFriendlyInversion()


@pytest.fixture
def latent() -> Latent:
    return jax.random.normal(jax.random.key(0), (3, 8, 8, 4))


@predictor
def nonlinear(latent: Latent, step: Step) -> Latent:
    return jnp.tanh(0.7 * latent + step.time / 1000.0 + 0.1 * jnp.roll(latent, 1, axis=1))


def test_the_same_predictor_returns_up_to_the_last_noise(latent: Latent) -> None:
    data = METHOD.run(nonlinear, latent, SCHEDULE.inverting(10), sampler=DDPM, keep=(0, 1, 10))
    down = SCHEDULE.denoising(10)
    led, sampler = retracing(nonlinear, DDPM, METHOD, METHOD.per_step(data), down)
    end = denoise(led, data["latents"][2], down, sampler=sampler)
    one = SCHEDULE.denoising(10, 1)
    np.testing.assert_allclose(
        end, denoise(nonlinear, data["latents"][1], one, sampler=DDPM), atol=1e-5
    )
    size = [
        np.sqrt((np.asarray(each) ** 2).mean(axis=(1, 2, 3))) for each in (end - latent, latent)
    ]
    found = METHOD.figures(data)["round_trip_error"]
    np.testing.assert_allclose(found, size[0] / size[1], rtol=1e-3)
    assert 0 < float(found.max()) < 0.1


def test_levels_are_under_noise_of_their_own_the_same_for_every_picture(latent: Latent) -> None:
    def ways(seed: int, depth: int) -> np.ndarray:
        up = SCHEDULE.inverting(10, depth)
        method = EditFriendlyInversion(seed=seed)
        data = method.run(nonlinear, latent, up, sampler=DDPM, keep=range(depth + 1))
        signal, sigma = (
            part[:, None, None, None, None] for part in (up.signal_next, up.sigma_next)
        )
        return np.asarray((data["latents"][1:] - signal * latent) / sigma)

    noise = ways(0, 10)
    np.testing.assert_allclose(noise, np.broadcast_to(noise[:, :1], noise.shape), atol=1e-3)
    flat = noise[1:, 0].reshape(9, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(9)).max() < 0.25 and abs(flat.std() - 1) < 0.05
    np.testing.assert_allclose(ways(0, 4), noise[:4], atol=1e-3)
    assert np.abs(ways(1, 4) - noise[:4]).max() > 0.5


def test_a_perfect_estimate_leaves_the_posteriors_noise(latent: Latent) -> None:
    """Where the clean estimate is z0, the noises are those of q(x' | x, x0), of DDPM's variance."""

    @predictor
    def perfect(noisy: Latent, step: Step) -> Latent:
        return (noisy - step.signal * latent) / step.sigma

    big = jnp.broadcast_to(latent, (3, 8, 8, 4))
    data = METHOD.run(perfect, big, SCHEDULE.inverting(10), sampler=DDPM, keep=(0, 10))
    down = SCHEDULE.denoising(10)
    # x' = signal'·z0 + sigma'·e' and the mean is signal'·z0 + √(sigma'² - s²)·e: of independent e and e'.
    expected = 2 * down.sigma_next**2 - DDPM.variance(down)
    found = np.asarray(data["noise"])[:-1, 0].reshape(9, -1).var(axis=1)
    np.testing.assert_allclose(found, np.asarray(expected)[:-1], rtol=0.35)


def test_an_edit_leaves_out_the_first_steps() -> None:
    changes = {"inversion": "edit-friendly", "sampler": "ddpm", "auxiliary": {"latents": "replay"}}
    plan = EditConfig().updated(changes).plan(SCHEDULE.timesteps(50))
    assert (plan.segments[0].start, plan.start, plan.depth) == (12, 38, 38)
    assert plan.evaluations() == 38 + 2 * 38 + 38 * 3
    none = EditConfig().updated(changes).overridden(["inversion.skip=1.0"])
    assert none.plan(SCHEDULE.timesteps(50)).start == 1


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [
        ("edit-friendly", "ddim"),
        ("belm", "dpm++2m"),
        ("belm", "ddpm"),
        ("ddim", "belm"),
        ("ddim", "ddpm"),
    ],
)
def test_another_sampler_is_refused(kind: str, sampler: str) -> None:
    config = EditConfig().updated({"inversion": kind, "sampler": sampler})
    with pytest.raises(InputError, match=f"sampler is .*{sampler[:3]}.*set sampler="):
        config.plan(SCHEDULE.timesteps(50))
