"""The agreement of pictures with prompts that a stand-in for the network knows well or badly."""

import jax
import jax.numpy as jnp
import numpy as np

from uam_jax.method.agreement import EVALUATIONS, RESULT, agreement
from uam_jax.method.schedule import Schedule
from uam_jax.types import Latent, Step

Z0 = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 4)), jnp.float32)
STEPS = Schedule().at(RESULT)


def test_it_is_the_logarithm_of_the_ratio_of_errors() -> None:
    asked = []

    def noise_of(latent: Latent, step: Step) -> tuple[Latent, Latent]:
        jax.debug.callback(lambda time: asked.append(int(time)), step.time)
        noise = (latent - step.signal * Z0) / step.sigma
        # Under the target's prompt the error is that of the number of the picture, from 1 on; under the null prompt 2.
        return noise + 2.0, noise + jnp.arange(1.0, 4.0)[:, None, None, None]

    found = jax.jit(lambda z0: agreement(noise_of, z0, STEPS))(Z0)
    jax.effects_barrier()
    np.testing.assert_allclose(found["agreement"], 2 * np.log(2 / np.arange(1, 4)), atol=2e-5)
    np.testing.assert_allclose(found["loss"], 2 * np.log(np.arange(1, 4)), atol=2e-5)
    assert sorted(asked) == [450, 850] and len(asked) * 2 == EVALUATIONS


def test_noise_is_that_of_the_schedule_and_the_same_for_all_pictures() -> None:
    """A network that finds no noise at all errs by its mean square, of which the pictures see the same."""
    latents = []

    def noise_of(latent: Latent, step: Step) -> tuple[Latent, Latent]:
        latents.append((latent - step.signal * Z0) / step.sigma)
        return jnp.zeros_like(latent), latent

    alike = jnp.broadcast_to(Z0[:1], Z0.shape)
    with jax.disable_jit():
        agreement(noise_of, Z0, STEPS)
        agreement(noise_of, alike, STEPS)
    first, second = (np.asarray(each) for each in latents[:2])
    np.testing.assert_allclose(first[0], first[1], atol=1e-5)
    assert np.abs(first - second).max() > 0.5, "each level has noise of its own"
    assert abs(first.mean()) < 0.5 and 0.5 < first.std() < 1.5


def test_where_the_network_is_perfect_nothing_divides_by_zero() -> None:
    def noise_of(latent: Latent, step: Step) -> tuple[Latent, Latent]:
        noise = (latent - step.signal * Z0) / step.sigma
        return noise, noise

    found = agreement(noise_of, Z0, STEPS)
    assert all(np.isfinite(np.asarray(each)).all() for each in found.values())
