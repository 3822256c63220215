"""Uniform and mixed attention maps, against maps that are written out."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.tree_util import Partial
from random_networks import DEEPER, LATENT, STATES, TINY, assert_close, normal, params_of

from uam_jax.method.uniform import MixedMaps, UniformMaps
from uam_jax.models.attention import Attention
from uam_jax.types import AttentionRule, AttentionSite, Condition, Rules

TIME = jnp.int32(500)


def predict(rule: AttentionRule | None, states: Array = STATES) -> Array:
    params = {"unet": params_of(TINY.unet)}
    return TINY.predict(params, LATENT, TIME, Condition(states), Rules(cross=rule))[0]


@cache  # compiling takes seconds
def plain() -> Array:
    return predict(None)


def written_out(
    maps: Any, other: Array | None, site: AttentionSite, x: Array, context: Array
) -> Array:
    """The definition: maps that are softmax and 1/S in the parts that `maps(site)` says."""
    uniformity = maps(site)
    q, k, v = site.query(x), site.key(context), site.value(context)
    logits = jnp.einsum("bnhd,bshd->bhns", q, k) / np.sqrt(q.shape[-1])
    text = (1 - uniformity) * jax.nn.softmax(logits, axis=-1)
    share = uniformity / context.shape[1] * jnp.ones_like(logits)
    values = v if other is None else jnp.broadcast_to(site.value(other), v.shape)
    return site.project(
        jnp.einsum("bhns,bshd->bnhd", text, v) + jnp.einsum("bhns,bshd->bnhd", share, values)
    )


def definition(maps: Any, other: Array | None = None) -> AttentionRule:
    return Partial(partial(written_out, maps, other))


def test_uniform_maps_are_one_over_s() -> None:
    uniform = predict(UniformMaps())
    assert_close(uniform, predict(definition(lambda site: 1.0)), 1e-6)
    assert np.abs(uniform - plain()).max() > 0.01 * np.abs(plain()).max()


def test_uniform_maps_are_what_attention_makes_of_equal_keys() -> None:
    def equal_keys(site: AttentionSite, x: Array, context: Array) -> Array:
        key = jnp.broadcast_to(site.key(context)[:, :1], site.key(context).shape)
        return site.project(site.attend(site.query(x), key, site.value(context)))

    assert_close(predict(UniformMaps()), predict(Partial(equal_keys)), 1e-6)


@pytest.mark.parametrize("uniformity", [0.0, 0.5, 1.0])
def test_mixed_maps_are_mixed(uniformity: float) -> None:
    ours = predict(MixedMaps(uniformity))
    assert_close(ours, predict(definition(lambda site: uniformity)), 2e-6)
    if uniformity == 0:
        assert_close(ours, plain(), 1e-6)


def test_uniform_maps_may_be_of_another_text() -> None:
    other = normal(9, 1, 5, STATES.shape[2])
    assert_close(predict(UniformMaps(other)), predict(UniformMaps(), jnp.repeat(other, 3, 0)), 1e-6)
    mixed = predict(MixedMaps(0.5, other))
    assert_close(mixed, predict(definition(lambda site: 0.5, other)), 2e-6)
    assert np.abs(mixed - predict(MixedMaps(0.5))).max() > 0.001 * np.abs(mixed).max()


def test_mixed_maps_differ_by_block_example_and_pixel() -> None:
    blocks, (b, h, w, _) = sum(site.kind == "cross" for site in TINY.sites), LATENT.shape
    shares = np.random.default_rng(5).uniform(size=(blocks, b, h, w)).astype(np.float32)

    def maps(site: AttentionSite) -> np.ndarray:
        side = 2**site.level
        own = shares[site.number].reshape(b, h // side, side, w // side, side).mean((2, 4))
        return own.reshape(b, 1, -1, 1)

    assert_close(predict(MixedMaps(jnp.asarray(shares))), predict(definition(maps)), 2e-6)
    assert_close(predict(MixedMaps(jnp.ones((1, 1, h, w)))), predict(UniformMaps()), 1e-6)


class Recorder:
    """A site that says which of its parts are computed."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def value(self, context: Array) -> Array:
        self.parts.append(f"value of {context.shape[:2]}")
        return context[:, :, None]

    def project(self, out: Array) -> Array:
        self.parts.append(f"project {out.shape[:2]}")
        return out[:, :, 0]


def test_uniform_maps_need_one_value_and_no_query_or_key() -> None:
    site: Any = Recorder()
    x, context = normal(0, 3, 16, 6), normal(1, 3, 5, 6)
    out = UniformMaps()(site, x, context)
    np.testing.assert_allclose(out, context.mean(axis=1, keepdims=True), rtol=1e-6)
    assert site.parts == ["value of (3, 1)", "project (3, 1)"]


def test_uniform_maps_are_rounded_once_in_half_precision() -> None:
    layer = Attention(0, 0, "cross", channels=8, part="up", heads=2, dtype=jnp.bfloat16)
    weights = {
        "to_v": {"kernel": normal(0, 6, 8)},
        "to_out_0": {"kernel": normal(1, 8, 8), "bias": normal(2, 8)},
    }
    weights = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
    x, context = normal(3, 3, 16, 8), normal(4, 3, 5, 6)
    x, context = x.astype(jnp.bfloat16), context.astype(jnp.bfloat16)
    out = layer.apply({"params": weights}, method=lambda site: UniformMaps()(site, x, context))
    v, project, bias, states = (
        np.asarray(each, np.float64)
        for each in (
            weights["to_v"]["kernel"],
            weights["to_out_0"]["kernel"],
            weights["to_out_0"]["bias"],
            context,
        )
    )
    exact = states.mean(axis=1, keepdims=True) @ v @ project + bias
    assert out.dtype == jnp.bfloat16
    # Its 8 bits of precision leave half a unit of 2⁻⁷ of a number's power of two.
    assert (np.abs(np.asarray(out, np.float64) - exact) <= 2.0**-8 * np.abs(exact) * 1.01).all()


def test_a_uniform_evaluation_costs_less() -> None:
    def flops(rule: AttentionRule | None) -> float:
        def run(params: Any, states: Array) -> Array:
            return DEEPER.predict(params, LATENT, TIME, Condition(states), Rules(cross=rule))[0]

        return jax.jit(run).lower({"unet": params_of(DEEPER.unet)}, STATES).cost_analysis()["flops"]

    batch, pixels, tokens, width = 3, 8 * 4, STATES.shape[1], 8
    # The products of Q and of the output, the two of the maps, K and V; twice, multiply and add.
    per_pixel = 2 * width + 2 * tokens
    block = 2 * batch * width * (pixels * per_pixel + 2 * tokens * STATES.shape[2])
    # The value of the mean token and its output.
    uniform = 2 * batch * width * (STATES.shape[2] + width)
    # The three blocks of the outer level, at least.
    assert flops(None) - flops(UniformMaps()) > 3 * (block - uniform)
