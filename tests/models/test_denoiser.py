"""The denoiser: its sites, the rules that it calls there, and what they tap."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import MODULES
from jax import Array
from jax.tree_util import Partial
from random_networks import DEEPER, LATENT, STATES, TINY, assert_close, params_of

from uam_jax import models
from uam_jax.models.attention import Attention
from uam_jax.runtime.platforms import Platform
from uam_jax.types import AttentionSite, Condition, Rules, Site, plain_attention

TIME = jnp.int32(500)


@cache  # compiling takes seconds
def evaluate(rules: Rules = Rules()) -> tuple[Array, dict[str, Array]]:  # noqa: B008
    params = {"unet": params_of(TINY.unet)}
    return TINY.predict(params, LATENT, TIME, Condition(STATES), rules)


def trace(denoiser: models.StableDiffusion, rules: Rules) -> Any:
    """The shapes that an evaluation returns, without computing it."""
    params = {"unet": params_of(denoiser.unet)}
    return jax.eval_shape(lambda: denoiser.predict(params, LATENT, TIME, Condition(STATES), rules))


def test_sites_are_those_that_the_unet_calls_in_its_order() -> None:
    called, paths = [], []

    def attention(site: AttentionSite, x: Array, context: Array) -> Array:
        called.append(Site(site.number, site.level, site.kind, site.channels, site.part))
        paths.append(".".join(site.path))
        assert x.shape == (3, 8 * 4 // 4**site.level, site.channels)
        assert context.shape == (x.shape if site.kind == "own" else STATES.shape)
        return plain_attention(site, x, context)

    def residual(site: Site, h: Array) -> Array:
        called.append(site)
        assert h.shape == (3, 8 // 2**site.level, 4 // 2**site.level, site.channels)
        return h

    both = Partial(attention)
    trace(DEEPER, Rules(cross=both, own=both, residual=Partial(residual)))
    assert tuple(called) == DEEPER.sites
    first, last = "down_blocks_0.attentions_0", "up_blocks_1.attentions_1"
    block = "transformer_blocks_0"
    assert paths[:2] == [f"{first}.{block}.attn1", f"{first}.{block}.attn2"]
    assert paths[-2:] == [f"{last}.{block}.attn1", f"{last}.{block}.attn2"]
    assert paths[4].startswith("mid_block.attentions_0.")


def test_stable_diffusion_has_its_published_sites() -> None:
    config = models.UNetConfig.from_dict({"cross_attention_dim": 768})
    sites = models.StableDiffusion(models.UNet(config), MODULES["text_encoder"]).sites
    cross = [site for site in sites if site.kind == "cross"]
    assert [site.number for site in cross] == list(range(16))
    assert [site.level for site in cross] == [0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert [site for site in sites if site.kind == "own"] == [c._replace(kind="own") for c in cross]
    assert [site.part for site in cross] == ["down"] * 6 + ["middle"] + ["up"] * 9
    residual = [site for site in sites if site.kind == "residual"]
    assert [site.number for site in residual] == list(range(8 + 2 + 12))
    # Plug-and-Play's: the second ResNet block of the second level on the way up.
    assert residual[8 + 2 + 3 + 1] == Site(14, 2, "residual", 1280, "up")


def test_no_rule_is_the_plain_rule_to_the_bit() -> None:
    plain = Partial(plain_attention)
    (none, no_taps), (own, _) = evaluate(), evaluate(Rules(cross=plain, own=plain))
    np.testing.assert_array_equal(none, own)
    assert no_taps == {}


def test_taps_are_summed_over_the_sites_by_name() -> None:
    def tapping(site: AttentionSite, x: Array, context: Array) -> Any:
        maps = site.maps(site.query(x), site.key(context))
        number = jnp.full(2, float(site.number))
        return plain_attention(site, x, context), {
            "numbers": number, f"{site.level}": maps.sum(axis=(1, 2)), "maps": maps.mean(),
        }  # fmt: skip

    output, taps = evaluate(Rules(cross=Partial(tapping)))
    cross = [site for site in TINY.sites if site.kind == "cross"]
    np.testing.assert_array_equal(taps["numbers"], [sum(site.number for site in cross)] * 2)
    for level in {site.level for site in cross}:
        # A map's rows sum to 1: summed over heads (two) and pixels it counts them.
        count = sum(2 * 8 * 4 // 4**level for site in cross if site.level == level)
        np.testing.assert_allclose(taps[f"{level}"].sum(axis=-1), [count] * 3, rtol=1e-5)
    np.testing.assert_allclose(taps["maps"], len(cross) / STATES.shape[1], rtol=1e-5)
    # The compiler may share the maps between the tap and the layer.
    assert_close(output, evaluate()[0], 1e-6)


def test_own_rules_tap_beside_cross_rules() -> None:
    def tapping(site: AttentionSite, x: Array, context: Array) -> Any:
        return plain_attention(site, x, context), {site.kind: jnp.ones(()), "all": jnp.ones(())}

    _, taps = trace(DEEPER, Rules(cross=Partial(tapping), own=Partial(tapping)))
    assert set(taps) == {"own", "cross", "all"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_maps_are_those_that_attention_applies(dtype: Any) -> None:
    site = Attention(*Site(0, 0, "own", 6, "up"), heads=2, dtype=dtype)
    q, k, v = (
        jax.random.normal(key, (2, 5, 2, 3), dtype)
        for key in jax.random.split(jax.random.key(0), 3)
    )
    maps = site.maps(q, k[:1])
    assert maps.shape == (2, 2, 5, 5) and maps.dtype == jnp.float32
    applied = jnp.einsum("bhns,bshd->bnhd", maps, jnp.broadcast_to(v[:1], v.shape))
    assert_close(applied, site.attend(q, k[:1], v[:1]), 1e-6 if dtype == jnp.float32 else 1e-2)


def test_a_residual_rule_replaces_features_of_its_block_alone() -> None:
    def share(site: Site, h: Array) -> Array:
        """Gives every row the first row's features in one block."""
        return jnp.broadcast_to(h[:1], h.shape) if site.number == last else h

    last = max(site.number for site in TINY.sites if site.kind == "residual")
    seen = []

    def keep(site: Site, h: Array) -> Array:
        seen.append(site.number)
        return h

    plain, _ = evaluate()
    np.testing.assert_array_equal(evaluate(Rules(residual=Partial(keep)))[0], plain)
    assert seen == list(range(last + 1))
    shared, _ = evaluate(Rules(residual=Partial(share)))
    np.testing.assert_allclose(shared[0], plain[0], rtol=1e-5, atol=1e-6)
    assert np.abs(shared[1:] - plain[1:]).max() > 0.01


def test_one_row_of_the_condition_serves_all() -> None:
    params = {"unet": params_of(TINY.unet)}
    one, _ = TINY.predict(params, LATENT, TIME, Condition(STATES[:1]))
    each, _ = TINY.predict(params, LATENT, TIME, Condition(jnp.repeat(STATES[:1], 3, axis=0)))
    assert_close(one, each, 1e-6)


def test_a_text_is_encoded_as_if_it_were_alone() -> None:
    params = {"text_encoder": params_of(TINY.text_encoder)}
    ids = jnp.arange(2 * 77).reshape(2, 77) % 100
    both, second = TINY.condition(params, ids), TINY.condition(params, ids[1:], size=(8, 8))
    assert both.pooled is None and both.states.shape[:2] == (2, 77)
    np.testing.assert_array_equal(both.states[1:], second.states)


def test_a_denoiser_is_a_value_and_tells_its_sides() -> None:
    again = models.StableDiffusion(models.UNet(TINY.unet.config), TINY.text_encoder)
    assert again == TINY and hash(again) == hash(TINY) and again != DEEPER
    config = TINY.unet.config
    assert (TINY.native_side, TINY.side_multiple) == (config.sample_size, 2)
    hopper, cpu = Platform("gpu", (9, 0)), Platform("cpu")
    assert TINY.attention_backends(cpu) == {"xla"}
    half = models.StableDiffusion(
        models.UNet(models.UNetConfig.from_dict({"cross_attention_dim": 768}), jnp.bfloat16),
        TINY.text_encoder,
    )
    assert half.attention_backends(hopper) == {"cudnn", "xla"}
    assert half.with_attention("xla").unet.backend == "xla" and half.unet.backend is None
