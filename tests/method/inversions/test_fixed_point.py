"""The implicit step against its closed-form solution, and the care that is taken where the iteration diverges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import predictor

from uam_jax import InputError
from uam_jax.method.inversions import FixedPointInversion
from uam_jax.method.inversions.fixed_point import averaged, descended, implicit
from uam_jax.method.sample import denoise, invert
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.schedule import Schedule
from uam_jax.types import Latent, Predictor, Step

SCHEDULE = Schedule()
UP, DOWN = SCHEDULE.inverting(10), SCHEDULE.denoising(10)


@pytest.fixture
def latent() -> Latent:
    return jax.random.normal(jax.random.key(0), (3, 4, 3, 2))


@predictor
def nonlinear(latent: Latent, step: Step) -> Latent:
    return jnp.tanh(0.7 * latent + step.time / 1000.0 + 0.1 * jnp.roll(latent, 1, axis=1))


def linear(factor: float | Latent) -> Predictor:
    return predictor(lambda latent, step: factor * latent)


def round_trip(
    predict: Predictor, latent: Latent, iterations: int, anderson: bool = False
) -> float:
    led = implicit(predict, iterations, anderson=anderson) if iterations else predict
    top, _ = invert(led, latent, UP)
    return float(jnp.abs(denoise(predict, top, DOWN) - latent).max())


@pytest.mark.parametrize("anderson", [False, True])
def test_the_way_down_returns_to_the_start(latent: Latent, anderson: bool) -> None:
    errors = [round_trip(nonlinear, latent, k, anderson) for k in (0, 1, 3, 12)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[3] < 1e-4


def test_the_fixed_point_of_a_linear_map(latent: Latent) -> None:
    """Its solution: z' = α'(z - σε)/α + σ'ε with ε = c·z' has the solution z' = (α'/α)z / (1 - c(σ' - σα'/α))."""
    c, step = 0.4, jax.tree.map(lambda part: part[5], UP)
    ratio = step.signal_next / step.signal
    exact = ratio * latent / (1 - c * (step.sigma_next - step.sigma * ratio))
    for anderson in (False, True):
        found = implicit(linear(c), 12, anderson=anderson)(latent, step)
        np.testing.assert_allclose(found.noise, c * exact, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            latent - step.sigma * found.noise, step.signal * found.clean, atol=1e-5
        )
        assert found.taps["residual"].shape == (3,) and float(found.taps["residual"].max()) < 1e-5


def test_mixing_three_iterates_is_faster_where_the_map_is_slow(latent: Latent) -> None:
    """Residuals of two slopes cancel exactly from three iterates on, up to the regularisation."""
    slope = jnp.where(jnp.arange(2) == 0, 2.0, -1.5)
    step = jax.tree.map(lambda part: part[-1], SCHEDULE.inverting(3))
    plain, mixed = (
        implicit(linear(slope), 5, anderson=each)(latent, step) for each in (False, True)
    )
    assert float(mixed.taps["residual"].max()) < 0.05 * float(plain.taps["residual"].min())


def test_where_it_diverges_the_best_iterate_is_kept(latent: Latent) -> None:
    factor = jnp.asarray([0.3, -40.0, 0.3])[:, None, None, None]
    predict = linear(factor)
    step = jax.tree.map(lambda part: part[5], UP)
    found = implicit(predict, 8)(latent, step)
    # The second example's residual grows from the first iterate on: it keeps the plain step.
    np.testing.assert_allclose(found.noise[1], predict(latent, step).noise[1], rtol=1e-6)
    others = implicit(linear(0.3), 8)(latent, step)
    np.testing.assert_allclose(found.noise[0], others.noise[0], rtol=1e-5)
    assert np.isfinite(found.noise).all()


@pytest.mark.parametrize("anderson", [False, True])
def test_an_example_does_not_depend_on_its_batch(latent: Latent, anderson: bool) -> None:
    scaled = latent * jnp.asarray([1.0, 6.0, 0.1])[:, None, None, None]
    predict = implicit(nonlinear, 4, anderson=anderson)
    together, taps = invert(predict, scaled, UP)
    assert taps["residual"].shape == (10, 3)
    for i in range(3):
        alone, own = invert(predict, scaled[i : i + 1], UP)
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
        np.testing.assert_allclose(own["residual"][:, 0], taps["residual"][:, i], atol=1e-5)


def test_every_step_takes_one_evaluation_more_for_each_iteration(latent: Latent) -> None:
    calls: list[int] = []

    @predictor
    def counted(latent: Latent, step: Step) -> Latent:
        jax.debug.callback(lambda: calls.append(1))
        return 0.1 * latent

    jax.block_until_ready(invert(implicit(counted, 3), latent, UP))
    jax.effects_barrier()
    assert len(calls) == 4 * 10


def step_of(time: int) -> Step:
    """An inverting step whose network call has this timestep."""
    step = jax.tree.map(lambda part: part[5], UP)
    return step._replace(time=jnp.asarray(time))


@pytest.mark.parametrize(("time", "first", "last"), [(249, 0, 5), (251, 8, 10)])
def test_an_average_is_of_the_published_iterates(
    latent: Latent, time: int, first: int, last: int
) -> None:
    """With ε = c·z and f(z') = A + B·z', the iterates are z_{j+1} = A + B·z_j."""
    c, step = 0.4, step_of(time)
    ratio = step.signal_next / step.signal
    reached, noises = np.asarray(latent, np.float64), []
    for _ in range(10):
        noises.append(c * reached)
        reached = ratio * latent + (step.sigma_next - step.sigma * ratio) * c * reached
    found = averaged(linear(c), 9)(latent, step)
    np.testing.assert_allclose(found.noise, np.mean(noises[first:last], axis=0), rtol=1e-5)
    assert found.taps["residual"].shape == (3,)


def test_descent_is_the_float64_loop(latent: Latent) -> None:
    """AdamW on the mean of (A + B·z - z)², whose slope is 2(B - 1)(A + (B - 1)z)/n, with torch's defaults."""
    c, step, updates = 2.0, step_of(500), 6
    ratio = float(step.signal_next / step.signal)
    slope = c * (float(step.sigma_next) - float(step.sigma) * ratio)
    # The third example begins nearer than where it may stop: it moves once.
    given = latent * jnp.asarray([1.0, 0.3, 1e-3])[:, None, None, None]
    found = descended(linear(c), updates)(given, step)
    for i in range(3):
        below = np.asarray(given[i], np.float64)
        z, first, second, taken = ratio * below + slope * below, 0.0, 0.0, 0
        for number in range(1, updates + 1):
            residual = ratio * below + slope * z - z
            grown = 2 * (slope - 1) * residual / residual.size
            first, second = 0.9 * first + 0.1 * grown, 0.999 * second + 0.001 * grown**2
            size = np.sqrt(second / (1 - 0.999**number)) + 1e-8
            z = z - 1e-3 * (first / (1 - 0.9**number) / size + 0.01 * z)
            taken = number
            if np.mean(residual**2) < 5e-6:
                break
        reached = ratio * given[i] + (slope / c) * found.noise[i]
        np.testing.assert_allclose(reached, z, atol=2e-5)
        assert i == 1 or taken == (1 if i == 2 else updates)


@pytest.mark.parametrize("solver", ["average", "gradient"])
def test_a_solver_lessens_the_error_and_counts_each_example_alone(
    latent: Latent, solver: str
) -> None:
    method = FixedPointInversion(iterations=9, solver=solver)
    options = {"sampler": SAMPLERS["ddim"], "keep": (0, 10)}
    data = method.run(nonlinear, latent, UP, **options)
    plain = round_trip(nonlinear, latent, 0)
    assert float(jnp.abs(denoise(nonlinear, data["latents"][1], DOWN) - latent).max()) < plain
    alone = method.run(nonlinear, latent[1:2], UP, **options)
    np.testing.assert_allclose(alone["latents"][:, 0], data["latents"][:, 1], atol=1e-5)
    assert method.cost == 10 and method.figures(data)["residual"].shape == (3,)


def test_only_the_iteration_is_accelerated() -> None:
    with pytest.raises(InputError, match="set anderson to false"):
        FixedPointInversion(solver="average", anderson=True)
