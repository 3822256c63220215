"""The threshold inside the guidance, and which of the two forms corrects latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.method.inversions import ProximalInversion
from uam_jax.method.sample import invert
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.schedule import Schedule, split
from uam_jax.types import Latent, Prediction, Step

DOWN = Schedule().denoising(10)
LATE = jax.tree.map(lambda part: part[7], DOWN)
EARLY = jax.tree.map(lambda part: part[2], DOWN)
CORRECTED = ProximalInversion(form="proxnpi", radius=0)


def row(*values: float) -> Latent:
    """Examples of one line of pixels."""
    return jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)


def test_what_is_left_of_the_differences() -> None:
    """The quantile 0.75 of four values and as many zeros of the source is their median."""
    given = row(1.0, -2.0, 4.0, -6.0)
    soft, recorded = ProximalInversion().guide({"target": given}, LATE)
    level = np.quantile([0, 0, 0, 0, 1, 2, 4, 6], 0.75)
    np.testing.assert_allclose(soft["target"], row(0, 0, 4 - level, level - 6), rtol=1e-6)
    assert not recorded
    hard, _ = ProximalInversion(threshold="hard").guide({"target": given}, LATE)
    np.testing.assert_allclose(hard["target"], row(0, 0, 4, -6), rtol=1e-6)
    # A source that is guided has its part in the quantile.
    both, _ = ProximalInversion(quantile=0.5).guide({"target": given, "source": 2 * given}, LATE)
    level = np.quantile([1, 2, 4, 6, 2, 4, 8, 12], 0.5)
    np.testing.assert_allclose(both["source"][0, 0, 3], level - 12, rtol=1e-6)
    # Without guidance there is nothing to threshold.
    assert CORRECTED.guide({}, LATE) == ({}, {})


def test_an_example_has_its_own_threshold() -> None:
    given = jnp.concatenate([row(1.0, -2.0, 4.0, -6.0), 100 * row(1.0, -2.0, 4.0, 6.0)])
    together, _ = CORRECTED.guide({"target": given}, LATE)
    alone, _ = CORRECTED.guide({"target": given[:1]}, LATE)
    np.testing.assert_array_equal(together["target"][0], alone["target"][0])


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_the_corrected_form_leads_what_is_small_to_the_way_up(rate: float) -> None:
    method = ProximalInversion(form="proxnpi", radius=0, rate=rate)
    level = float(np.quantile([0, 0, 0, 0, 1, 2, 4, 9], 0.75))
    _, recorded = method.guide({"target": row(1.0, -2.0, 4.0, -9.0)}, LATE)
    assert list(recorded) == ["large_target"] and 9 - level > level > 4 - level
    latents, below = {"target": row(1, 1, 1, 1), "source": row(2, 2, 2, 2)}, row(5, 6, 7, 8)
    led = method.after(latents, {"below": below, **recorded}, LATE)
    np.testing.assert_allclose(led["target"], row(*(1 + rate * n for n in (4, 5, 6)), 1))
    # The source has no difference, so all of it goes there.
    np.testing.assert_allclose(led["source"], 2 + rate * (below - 2))
    early = method.after(latents, {"below": below, **recorded}, EARLY)
    np.testing.assert_array_equal(early["target"], latents["target"])
    assert int(LATE.time) < 400 < int(EARLY.time)
    wide = ProximalInversion(form="proxnpi", radius=1).guide({"target": row(1, -2, 4, -9.0)}, LATE)[
        1
    ]
    np.testing.assert_array_equal(wide["large_target"], row(0, 0, 1, 1))


def test_the_benchmarks_form_leaves_the_latents_alone() -> None:
    method, latents = ProximalInversion(), {"target": row(1, 2), "source": row(3, 4)}
    assert method.after(latents, {}, LATE) is latents

    def predict(latent: Latent, step: Step) -> Prediction:
        return split(jnp.tanh(latent), latent, step, "epsilon")

    up, z0 = Schedule().inverting(10), row(0.5, -1.0)
    options = {"sampler": SAMPLERS["ddim"], "keep": (0, 10)}
    assert set(method.run(predict, z0, up, **options)) == {"latents", "residual"}
    assert method.per_step(method.run(predict, z0, up, **options)) == {}
    below = CORRECTED.per_step(CORRECTED.run(predict, z0, up, **options))["below"]
    way, _ = invert(predict, z0, up, keep="all")
    np.testing.assert_allclose(below, way[:-1][::-1], rtol=1e-6)
