"""The learned null conditions against a loop in float64, and the care for each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.method.inversions import NullTextInversion, SourceBranch
from uam_jax.method.sample import denoise, invert
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.schedule import Schedule, split
from uam_jax.types import Condition, Latent, Prediction, Predictor, Step

COUNT, GUIDANCE = 4, 3.0
SCHEDULE = Schedule()
UP, DOWN = SCHEDULE.inverting(COUNT), SCHEDULE.denoising(COUNT)
PROMPT, NULL = 0.4, 0.37
"""All states of the source's and of the null condition."""
CALLS: list[int] = []


def under(condition: Condition) -> Predictor:
    """A noise that is little of the latent's tanh and the mean of the states."""

    def predict(latent: Latent, step: Step) -> Prediction:
        jax.debug.callback(lambda: CALLS.append(1))
        noise = 0.01 * jnp.tanh(latent) + condition.states.mean(axis=(1, 2))[:, None, None, None]
        return split(noise, latent, step, "epsilon")

    return predict


def inverted(z0: Latent, prompt: float = PROMPT, null: float | None = NULL) -> dict[str, jax.Array]:
    shape = (len(z0), 3, 2)
    condition = Condition(jnp.full(shape, prompt))
    source = SourceBranch(
        under(condition),
        under,
        condition,
        None if null is None else Condition(jnp.full(shape, null)),
        GUIDANCE,
    )
    options = {"sampler": SAMPLERS["ddim"], "keep": (0, COUNT), "source": source}
    return NullTextInversion().run(under(condition), z0, UP, **options)


@pytest.fixture(autouse=True)
def _calls() -> None:
    CALLS.clear()


@pytest.fixture
def z0() -> Latent:
    return 0.5 * jax.random.normal(jax.random.key(0), (2, 4, 3, 2))


def loop(z0: np.ndarray, way: np.ndarray) -> tuple[list[float], list[int]]:
    """The mean of one example's states after every step, and how many updates it took."""
    latent, mean, learned, taken = way[-1].astype(np.float64), NULL, [], []
    steps = [np.asarray(part, np.float64) for part in DOWN]
    for i in range(COUNT):
        _, _, a, s, a2, s2 = (part[i] for part in steps)
        factor, below = s2 - s * a2 / a, way[COUNT - 1 - i]
        own = 0.01 * np.tanh(latent)

        def reached(mean: float, own=own, latent=latent, a=a, a2=a2, factor=factor) -> np.ndarray:
            return a2 / a * latent + factor * (own + mean + GUIDANCE * (PROMPT - mean))

        first = second = 0.0
        for number in range(1, 11):
            missed = reached(mean) - below
            # Every one of the six states has this slope.
            slope = np.mean(2 * missed) * factor * (1 - GUIDANCE) / 6
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            size = np.sqrt(second / (1 - 0.999**number)) + 1e-8
            mean -= 1e-2 * (1 - i / 100) * first / (1 - 0.9**number) / size
            if np.mean(missed**2) < 1e-5 + 2e-5 * i:
                break
        taken.append(number)
        latent = reached(mean)
        learned.append(mean)
    return learned, taken


def test_the_states_are_those_of_the_loop(z0: Latent) -> None:
    data = inverted(z0)
    jax.effects_barrier()
    calls = len(CALLS)
    way, _ = invert(under(Condition(jnp.full((2, 3, 2), PROMPT))), z0, UP, keep="all")
    expected = [loop(np.asarray(z0[i]), np.asarray(way[:, i])) for i in range(2)]
    assert data["null_states"].shape == (COUNT, 2, 3, 2)
    np.testing.assert_allclose(
        data["null_states"], np.stack([e[0] for e in expected], 1)[..., None, None] * np.ones((3, 2)),
        atol=1e-4,
    )  # fmt: skip
    # The way up; and of each step the prompt's, every update of the slower example, and the step itself.
    updates = np.max([e[1] for e in expected], axis=0)
    assert (
        calls
        == COUNT + 2 * COUNT + updates.sum()
        < COUNT * (1 + NullTextInversion().source_cost(2))
    )


def test_an_example_does_not_depend_on_its_batch(z0: Latent) -> None:
    big = jnp.concatenate([z0, 8 * z0])
    together = inverted(big)
    for i in range(4):
        alone = inverted(big[i : i + 1])
        np.testing.assert_allclose(
            together["null_states"][:, i], alone["null_states"][:, 0], atol=1e-5
        )
        np.testing.assert_allclose(together["error"][:, i], alone["error"][:, 0], atol=1e-5)


def test_learning_leads_back_to_the_way_up(z0: Latent) -> None:
    data = inverted(z0)
    figure = NullTextInversion().figures(data)["step_error"]
    np.testing.assert_array_equal(figure, data["error"].max(axis=0))
    guided = under(Condition(jnp.full((2, 3, 2), NULL + GUIDANCE * (PROMPT - NULL))))
    missed = np.asarray(denoise(guided, data["latents"][1], DOWN) - z0)
    unlearned = np.sqrt(
        (missed**2).mean(axis=(1, 2, 3)) / (np.asarray(z0) ** 2).mean(axis=(1, 2, 3))
    )
    assert (data["error"][-1] < 0.3 * unlearned).all()


def test_without_guidance_there_is_nothing_to_learn(z0: Latent) -> None:
    data, method = inverted(z0, null=None), NullTextInversion()
    assert set(data) == {"latents"} and method.source_cost(1) == 0
    assert method.per_step(data) == method.figures(data) == {}
    given = {"null": Condition(jnp.zeros((1, 3, 2)))}
    step = jax.tree.map(lambda part: part[0], DOWN)
    assert method.conditions(given, {}, step) is given
