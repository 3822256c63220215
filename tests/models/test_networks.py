"""Promises of the networks that need no PyTorch to compare with: precision and the independence of rows."""

from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import MODULES
from jax import Array
from random_networks import LATENT, STATES, assert_close, normal, params_of

from uam_jax import models
from uam_jax.models import layers

TIMESTEP = jnp.array([1, 500, 981])


@pytest.mark.parametrize("name", MODULES)
def test_what_is_expected_is_what_training_starts_from(name: str) -> None:
    module = MODULES[name]
    started = jax.jit(module.init)(jax.random.key(0), *module.example_inputs())["params"]
    assert jax.tree.map(jnp.shape, started) == jax.tree.map(
        jnp.shape, models.expected_params(module)
    )
    kernels = [leaf for leaf in jax.tree.leaves(started) if leaf.ndim > 1]
    assert all(jnp.std(kernel) > 0 for kernel in kernels)
    with pytest.raises(flax.errors.ScopeCollectionNotFound):
        module.apply({}, *module.example_inputs())


@pytest.mark.parametrize(
    ("dtype", "near"),
    # XLA's CPU backend has no float16 product that adds in float32, which attention asks for.
    [(jnp.bfloat16, 0.15), (jnp.float16, 0.02)],
)
@pytest.mark.parametrize("component", MODULES)
def test_half_precision(component: str, dtype: Any, near: float) -> None:
    module = MODULES[component]
    params = params_of(module)
    given: tuple = {
        "unet": (LATENT, TIMESTEP),
        "vae": (jnp.tanh(normal(3, 2, 8, 4, 3)),),
        "text_encoder": (jnp.arange(77)[None],),
    }[component]

    def run(dtype: Any) -> Array:
        text = (STATES.astype(dtype),) if component == "unet" else ()
        halved = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        network = type(module)(module.config, dtype)
        outputs = jax.jit(lambda params: network.apply({"params": params}, *given, *text))(halved)
        return jax.tree.leaves(outputs)[0]

    half = run(dtype)
    assert half.dtype == jnp.float32 and np.isfinite(half).all()
    assert_close(half, run(jnp.float32), near)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("norm", [layers.GroupNorm(2, 1e-5), layers.LayerNorm()], ids=["g", "l"])
def test_norms_compute_statistics_in_float32(norm: Any, dtype: Any) -> None:
    # Its squares overflow float16, and its sum has no room for the differences in either half.
    x = (256 + 4 * normal(0, 2, 300, 8)).astype(dtype)
    scale, bias = normal(1, 8), normal(2, 8)
    ours = norm.apply({"params": {"scale": scale, "bias": bias}}, x)
    wide = np.asarray(x, np.float64)
    if isinstance(norm, layers.GroupNorm):
        wide, axes = wide.reshape(2, 300, 2, 4), (1, 3)
    else:
        axes = (-1,)
    spread = np.sqrt(wide.var(axes, keepdims=True) + 1e-5)
    normed = ((wide - wide.mean(axes, keepdims=True)) / spread).reshape(x.shape)
    assert ours.dtype == dtype
    step = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), normed * scale + bias, rtol=step, atol=step
    )


def test_norms_keep_small_differences_beside_a_large_offset() -> None:
    x = 1000 + 0.1 * normal(0, 1, 64, 8)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean()) / wide.std()
    ones = {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    np.testing.assert_allclose(layers.GroupNorm(1, 0.0).apply(ones, x), expected, atol=5e-3)


def test_rows_of_a_batch_are_independent() -> None:
    module = MODULES["unet"]
    apply = jax.jit(lambda params, *given: module.apply({"params": params}, *given)[0])
    run = partial(apply, params_of(module))
    together = run(LATENT, TIMESTEP, STATES)
    order = jnp.array([2, 0, 1])
    shuffled = run(LATENT[order], TIMESTEP[order], STATES[order])
    np.testing.assert_allclose(shuffled, together[order], rtol=1e-5, atol=1e-6)
    disturbed = run(LATENT.at[1:].add(normal(3, 2, 8, 4, 4)), TIMESTEP, STATES)
    np.testing.assert_allclose(disturbed[0], together[0], rtol=1e-5, atol=1e-6)
    assert np.abs(disturbed[1] - together[1]).max() > 0.01


def test_text_encoder_is_causal() -> None:
    module = MODULES["text_encoder"]
    encode = partial(jax.jit(module.apply), {"params": params_of(module)})
    ids = jnp.arange(77)[None]
    difference = encode(ids.at[0, 40].set(99)) - encode(ids)
    changed = np.abs(difference).max(axis=-1)[0] > 1e-6
    assert not changed[:40].any() and changed[40:].all()
