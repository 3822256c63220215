"""The condition in the null prompt's place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax import EditConfig, InputError
from uam_jax.method.inversions import NegativePromptInversion
from uam_jax.method.plan import Row
from uam_jax.method.schedule import Schedule
from uam_jax.types import Condition

STEP = jax.tree.map(lambda part: part[0], Schedule().denoising(2))


def unguided(share: float, source: Condition, null: Condition) -> Condition:
    given = {"null": null, "negative": null, "source": source, "target": source}
    found = NegativePromptInversion(share).conditions(given, {}, STEP)
    assert found["null"] is found["negative"] and found["target"] is source
    return found["null"]


def test_it_goes_along_the_arc_from_the_sources_to_the_null_prompts() -> None:
    """Two vectors of length 2 at a right angle, and two that are parallel."""
    source = Condition(jnp.asarray([[[2.0, 0.0]], [[0.0, 1.0]]]), jnp.ones((2, 3)))
    null = Condition(jnp.asarray([[[0.0, 2.0]]]), 3 * jnp.ones((1, 3)))
    assert unguided(0.0, source, null) is source
    root = np.sqrt(3)
    third = unguided(1 / 3, source, null)
    np.testing.assert_allclose(third.states, [[[root, 1.0]], [[0.0, 4 / 3]]], rtol=1e-5)
    np.testing.assert_allclose(third.pooled, np.full((2, 3), 5 / 3), rtol=1e-5)
    end = unguided(1.0, source, null)
    np.testing.assert_allclose(end.states, np.broadcast_to(null.states, (2, 1, 2)), atol=1e-6)


def test_the_sources_unguided_half_is_evaluated_only_if_it_differs() -> None:
    source = {"condition": "prompt", "latents": "replay"}
    changes = {"steps": 4, "source": source, "control": "none", "inversion": "negative-prompt"}
    config, times = EditConfig().updated(changes), Schedule().timesteps(4)
    source = [row for row in config.plan(times).rows if row.branch == "source"]
    assert source == [Row("source", "source")]
    between = config.overridden(["inversion.interpolation=0.5"])
    rows = [row for row in between.plan(times).rows if row.branch == "source"]
    assert rows == [Row("source", "null", "unguided"), Row("source", "source")]
    # The auxiliary branch has the null prompt alone, and so plain inversion.
    assert config.auxiliary_inversion.method == EditConfig().inversion.method


def test_without_a_source_prompt_it_is_refused() -> None:
    config = EditConfig().updated({"inversion": "negative-prompt"})
    with pytest.raises(InputError, match=r"set source\.condition=prompt"):
        config.plan(Schedule().timesteps(4))
