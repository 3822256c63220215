"""The way down that asks the network where the way up did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.engine.predictors import retracing
from uam_jax.method.inversions import ResidualInversion
from uam_jax.method.inversions.way_up import estimated_residual, whole_way
from uam_jax.method.sample import denoise
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.schedule import Schedule, split
from uam_jax.types import Latent, Prediction, Predictor, Step

SCHEDULE, DDIM = Schedule(), SAMPLERS["ddim"]
UP, DOWN = SCHEDULE.inverting(10), SCHEDULE.denoising(10)


@pytest.fixture
def latent() -> Latent:
    return jax.random.normal(jax.random.key(0), (3, 4, 3, 2))


def nonlinear(kind: str) -> Predictor:
    """A network whose output is of this prediction type."""

    def predict(latent: Latent, step: Step) -> Prediction:
        output = jnp.tanh(0.7 * latent + step.time / 1000.0 + 0.1 * jnp.roll(latent, 1, axis=1))
        return split(output, latent, step, kind)

    return predict


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_same_predictor_returns_exactly_where_ddim_does_not(kind: str, latent: Latent) -> None:
    predict, method = nonlinear(kind), ResidualInversion()
    data = method.run(predict, latent, UP, sampler=DDIM, keep=(0, 10))
    assert np.array_equal(data["latents"][0], latent)
    top, per_step = data["latents"][1], method.per_step(data)
    led, sampler = retracing(predict, DDIM, method, per_step, DOWN)
    size = float(jnp.abs(top).max())
    assert float(jnp.abs(denoise(led, top, DOWN, sampler=sampler) - latent).max()) < 1e-5 * size
    assert float(jnp.abs(denoise(predict, top, DOWN) - latent).max()) > 1e-2 * size


def test_a_branch_beside_the_sources_is_asked_beside_its_input(latent: Latent) -> None:
    step = jax.tree.map(lambda part: part[4], DOWN)
    shifted, start = ResidualInversion().query({"target": latent}, {"shift": 0.5 * latent}, step)
    np.testing.assert_allclose(shifted["target"], 1.5 * latent, rtol=1e-6)
    assert float(start.sigma) == float(step.sigma_next) and int(start.time) == int(step.time)


def test_the_residual_is_estimated_from_the_next_steps_noise(latent: Latent) -> None:
    predict = nonlinear("epsilon")
    way, noise = whole_way(predict, latent, UP, sampler=DDIM)
    residual = estimated_residual(way, noise, UP)
    assert residual.shape == (10, 3) and not residual[-1].any()
    step = jax.tree.map(lambda part: part[6], UP)
    other = predict(way[7], jax.tree.map(lambda part: part[7], UP)).noise
    again = DDIM.advance(way[6], split(other, way[6], step, "epsilon"), step)
    size = [
        np.sqrt((np.asarray(each) ** 2).mean(axis=(1, 2, 3))) for each in (again - way[7], way[6])
    ]
    np.testing.assert_allclose(residual[6], size[0] / size[1], rtol=1e-4)
