"""Heat maps of words: on a small attention layer by hand, and added up over steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tiny import SOURCE, assert_close

from uam_jax import Editor
from uam_jax.evaluation.attention import word_maps
from uam_jax.evaluation.plots import heat_grid
from uam_jax.method.heat_maps import WordHeat, heat_maps
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.schedule import Schedule
from uam_jax.models.attention import Attention
from uam_jax.types import Prediction, plain_attention


def test_a_layers_heat_is_brought_to_the_latents_size() -> None:
    rng = np.random.default_rng(0)
    x, context = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 6, 6), (1, 5, 8))
    )
    layer = Attention(3, 1, "cross", 6, "up", 2, jnp.float32)
    words = jnp.zeros((1, 2, 5)).at[0, 0, jnp.array([1, 3])].set(1)

    def run(layer: Any) -> Any:
        heated = WordHeat((4, 6), words)(layer, x, context)
        return (
            heated,
            plain_attention(layer, x, context),
            layer.maps(layer.query(x), layer.key(context)),
        )

    ((out, taps), plain, maps), _ = layer.init_with_output(jax.random.key(0), method=run)
    assert_close(out, plain, 1e-5)
    expected = np.asarray(maps)[0].mean(0)[:, [1, 3]].sum(1).reshape(2, 3)
    assert_close(taps["heat"][0, 0], expected.repeat(2, 0).repeat(2, 1), 1e-6)
    assert not np.asarray(taps["heat"][0, 1]).any()


def test_heat_is_the_mean_over_steps_and_layers() -> None:
    seen = []

    def predict(latent: Any, step: Any) -> Prediction:
        heat = jnp.broadcast_to(step.index.astype(jnp.float32), (1, 2, 2, 2))
        seen.append(heat.shape)
        return Prediction(latent, latent, {"heat": heat})

    steps = Schedule().inverting(5)
    found = heat_maps(
        predict, jnp.ones((1, 2, 2, 3)), steps, sampler=SAMPLERS["ddim"], words=2, layers=4
    )
    np.testing.assert_allclose(found, np.full((1, 2, 2, 2), (0 + 1 + 2 + 3 + 4) / 5 / 4))
    assert len(seen) == 1  # in one scan


def test_the_words_of_a_prompt(editor: Editor) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (8, 12, 3)).astype(np.float32)
    found = word_maps(editor, image, SOURCE + ", a cube!", steps=3)
    assert [*found] == ["a", "red", "cube"]
    heat = np.stack([*found.values()])
    assert heat.shape == (3, 4, 6) and (heat >= 0).all()
    assert (heat.sum(0) < 1).all()  # the other tokens have the rest
    assert heat_grid(image, found, title=SOURCE).startswith(b"\x89PNG")
