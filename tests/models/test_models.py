"""What the networks promise without PyTorch: attention rules, precision, independence of rows, configurations."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import TEXT, UNET, VAE
from jax import Array, lax

from uam_jax import models
from uam_jax.errors import InputError
from uam_jax.models import layers
from uam_jax.types import AttentionRule, AttentionSite, Params

# Two levels that attend: one block on the way down, one in the middle, two on the way up, of each.
CONFIG = UNET | {
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
}
BLOCKS = 7
MODULES = {
    "unet": models.UNet(models.UNetConfig.from_dict(CONFIG)),
    "vae": models.VAE(models.VAEConfig.from_dict(VAE)),
    "text_encoder": models.TextEncoder(models.TextConfig.from_dict(TEXT)),
}
CONFIGS = {
    "unet": (models.UNetConfig, CONFIG),
    "vae": (models.VAEConfig, VAE),
    "text_encoder": (models.TextConfig, TEXT),
}


def normal(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@cache
def params_of(component: str) -> Params:
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> Array:
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), jnp.float32)

    return jax.tree.map(draw, models.expected_params(MODULES[component]))


def predict(make_rule: Callable[[Any], AttentionRule], given: Any, dtype: Any = jnp.float32) -> Any:
    """The jitted U-Net on a batch of three, lowered by the caller or called."""
    network = models.UNet(MODULES["unet"].config, dtype)

    @jax.jit
    def run(params: Params, given: Any, latent: Array, timestep: Array) -> Array:
        return network.apply({"params": params}, latent, timestep, make_rule(given))

    return run, (params_of("unet"), given, *LATENT_AND_TIMESTEP)


def result(compiled: Any) -> Array:
    run, arguments = compiled
    return run(*arguments)


LATENT_AND_TIMESTEP = normal(1, 3, 8, 4, 4), jnp.array([1, 500, 981])
STATES = normal(2, 3, 5, CONFIG["cross_attention_dim"])


def map_rule(states: Array, uniformity: float) -> AttentionRule:
    """The definition: cross-attention whose maps are softmax and 1/S in the given parts."""

    def rule(site: AttentionSite, x: Array, block: int) -> Array:
        q, k, v = site.query(x), site.key(states), site.value(states)
        logits = jnp.einsum("bnhd,bshd->bhns", q, k) / np.sqrt(q.shape[-1])
        text = jax.nn.softmax(logits, axis=-1)
        maps = (1 - uniformity) * text + uniformity / states.shape[1]
        return site.project(jnp.einsum("bhns,bshd->bnhd", maps, v))

    return rule


def vectors() -> tuple[Array, ...]:
    return models.uniform_vectors(params_of("unet"), STATES)


def assert_close(actual: Any, expected: Any, relative: float) -> None:
    error = np.abs(np.asarray(actual) - np.asarray(expected)).max() / np.abs(expected).max()
    assert error <= relative


def test_uniform_vectors_equal_maps_of_one_over_s() -> None:
    uniform = result(predict(models.uniform_attention, vectors()))
    assert_close(uniform, result(predict(partial(map_rule, uniformity=1.0), STATES)), 1e-6)
    text = result(predict(models.text_attention, STATES))
    assert np.abs(uniform - text).max() > 0.01 * np.abs(text).max()


@pytest.mark.parametrize("uniformity", [0.0, 0.5, 1.0])
def test_mixed_attention_mixes_the_maps(uniformity: float) -> None:
    def mixed(given: Any) -> AttentionRule:
        return models.mixed_attention(*given)

    ours = result(predict(mixed, (STATES, vectors(), uniformity)))
    assert_close(ours, result(predict(partial(map_rule, uniformity=uniformity), STATES)), 2e-6)


def test_uniform_rule_asks_nothing_of_the_layer() -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was called")

    rule = models.uniform_attention([normal(0, 1, 6), normal(1, 1, 6)])
    np.testing.assert_array_equal(rule(Untouchable(), normal(2, 3, 4, 6), 1), normal(1, 1, 6)[None])


def test_uniform_evaluation_costs_less() -> None:
    def flops(compiled: Any) -> float:
        run, arguments = compiled
        return run.lower(*arguments).cost_analysis()["flops"]

    text = flops(predict(models.text_attention, STATES))
    saved = text - flops(predict(models.uniform_attention, vectors()))
    pixels, width, tokens, context = 3 * 8 * 4, 8, STATES.shape[1], STATES.shape[2]
    # Of each block at least the products of Q, of K and V, of the maps and of the output.
    products = pixels * width * (2 * width + 2 * tokens) + 3 * tokens * context * 2 * width
    outer = 3  # blocks of the outer level; the others add to it
    assert saved > outer * 2 * products


def test_uniform_vectors_are_in_execution_order() -> None:
    seen: dict[int, tuple] = {}

    def keep_order(states: Array) -> AttentionRule:
        def rule(site: Any, x: Array, block: int) -> Array:
            assert block == len(seen)
            seen[block] = site.path
            return models.text_attention(states)(site, x, block)

        return rule

    run, arguments = predict(keep_order, STATES)
    jax.eval_shape(run, *arguments)
    assert list(seen) == list(range(BLOCKS))
    found = vectors()
    assert len(found) == BLOCKS
    for block, path in seen.items():
        attn = params_of("unet")
        for name in path:
            attn = attn[name]
        value = STATES.mean(axis=1) @ attn["to_v"]["kernel"]
        expected = value @ attn["to_out_0"]["kernel"] + attn["to_out_0"]["bias"]
        np.testing.assert_allclose(found[block], expected, rtol=1e-5, atol=1e-6)


def test_self_attention_rule_may_be_replaced() -> None:
    blocks = []

    def own(site: AttentionSite, x: Array, block: int) -> Array:
        blocks.append(block)
        return jnp.zeros_like(x)

    rule = models.uniform_attention(vectors())
    shape = jax.eval_shape(
        partial(MODULES["unet"].apply, cross=rule, own=own),
        {"params": params_of("unet")},
        *LATENT_AND_TIMESTEP,
    )
    assert blocks == list(range(BLOCKS)) and shape.shape == LATENT_AND_TIMESTEP[0].shape


@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (4, 4), (2, 4)])
def test_products_equal_the_convolution(sides: tuple[int, int]) -> None:
    picture, kernel = normal(0, 2, *sides, 3), normal(1, 3, 3, 3, 5)
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    for padding in ("SAME", [(1, 1), (1, 1)]):
        ours = layers._convolve(picture, kernel, (1, 1), padding, **numbers)
        direct = lax.conv_general_dilated(picture, kernel, (1, 1), padding, **numbers)
        np.testing.assert_allclose(ours, direct, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "near"), [(jnp.float16, 0.02), (jnp.bfloat16, 0.15)])
@pytest.mark.parametrize("component", MODULES)
def test_half_precision(component: str, dtype: Any, near: float) -> None:
    params = params_of(component)
    halved = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    module = type(MODULES[component])

    def run(params: Params, dtype: Any) -> Array:
        network = module(MODULES[component].config, dtype)
        given = {
            "unet": lambda: (*LATENT_AND_TIMESTEP, models.text_attention(STATES)),
            "vae": lambda: (jnp.tanh(normal(3, 2, 8, 4, 3)),),
            "text_encoder": lambda: (jnp.arange(77)[None],),
        }[component]()
        return jax.jit(lambda params: network.apply({"params": params}, *given))(params)

    full, half = run(params, jnp.float32), run(halved, dtype)
    assert half.dtype == jnp.float32 and np.isfinite(half).all()
    assert_close(half, full, near)


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
    run, (params, states, latent, timestep) = predict(models.text_attention, STATES)
    together = run(params, states, latent, timestep)
    order = jnp.array([2, 0, 1])
    shuffled = run(params, states[order], latent[order], timestep[order])
    np.testing.assert_allclose(shuffled, together[order], rtol=1e-5, atol=1e-6)
    disturbed = run(params, states, latent.at[1:].add(3.0), timestep)
    np.testing.assert_allclose(disturbed[0], together[0], rtol=1e-5, atol=1e-6)
    assert np.abs(disturbed[1] - together[1]).max() > 0.01


def test_text_encoder_is_causal() -> None:
    encode = jax.jit(MODULES["text_encoder"].apply)
    ids = jnp.arange(77)[None]
    before = encode({"params": params_of("text_encoder")}, ids)
    after = encode({"params": params_of("text_encoder")}, ids.at[0, 40].set(99))
    changed = np.abs(after - before).max(axis=-1)[0] > 1e-6
    assert not changed[:40].any() and changed[40:].all()


@pytest.mark.parametrize(
    ("shape", "dtype", "platform", "backend"),
    [
        ((1, 64, 8, 40), jnp.bfloat16, "gpu", "cudnn"),
        ((1, 64, 8, 128), jnp.float16, "gpu", "cudnn"),
        ((1, 64, 8, 40), jnp.float32, "gpu", "xla"),
        ((1, 64, 8, 136), jnp.bfloat16, "gpu", "xla"),
        ((1, 64, 8, 20), jnp.bfloat16, "gpu", "xla"),
        ((1, 64, 8, 40), jnp.bfloat16, "cpu", "xla"),
    ],
)
def test_fused_attention_only_where_it_works(
    shape: tuple, dtype: Any, platform: str, backend: str
) -> None:
    assert models.attention_backend(shape, dtype, platform) == backend


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("unet", "act_fn", "gelu"),
        ("unet", "addition_embed_type", "text_time"),
        ("unet", "attention_head_dim", [3, 3]),
        ("unet", "block_out_channels", "wide"),
        ("unet", "cross_attention_dim", [8, 8]),
        ("unet", "down_block_types", ["CrossAttnDownBlock2D", "AttnDownBlock2D"]),
        ("unet", "norm_num_groups", 3),
        ("unet", "transformer_layers_per_block", [1, 2]),
        ("unet", "up_block_types", ["UpBlock2D", "CrossAttnUpBlock2D"]),
        ("unet", "invented_by_a_later_version", 3),
        ("vae", "latents_mean", [0.0]),
        ("vae", "shift_factor", 0.1),
        ("vae", "up_block_types", ["UpDecoderBlock2D"]),
        ("vae", "invented_by_a_later_version", "yes"),
        ("text_encoder", "hidden_act", "relu"),
        ("text_encoder", "num_attention_heads", 3),
        ("text_encoder", "invented_by_a_later_version", 1.5),
    ],
)
def test_unsupported_configurations_are_named(component: str, key: str, value: Any) -> None:
    kind, config = CONFIGS[component]
    with pytest.raises(InputError) as caught:
        kind.from_dict(config | {key: value})
    message = str(caught.value)
    assert f"{component}/config.json" in message and key in message and repr(value) in message


def test_absent_keys_take_the_libraries_defaults() -> None:
    unet = models.UNetConfig.from_dict({"cross_attention_dim": 768})
    assert unet == models.UNetConfig(
        channels=(320, 640, 1280, 1280),
        heads=(8, 8, 8, 8),
        attends=(True, True, True, False),
        layers_per_block=2,
        context_width=768,
        in_channels=4,
        out_channels=4,
        sample_size=64,
        norm_groups=32,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0.0,
    )
    vae = models.VAEConfig.from_dict({})
    assert (vae.scaling_factor, vae.latent_channels, vae.factor) == (0.18215, 4, 1)
    text = models.TextConfig.from_dict({})
    assert (text.width, text.layers, text.activation, text.max_tokens) == (
        512,
        12,
        "quick_gelu",
        77,
    )


def test_keys_without_influence_are_accepted() -> None:
    inert = {"_class_name": "x", "upcast_attention": True, "later": None, "also_later": False}
    assert models.UNetConfig.from_dict(CONFIG | inert) == MODULES["unet"].config


def test_one_number_of_heads_is_for_every_level() -> None:
    config = models.UNetConfig.from_dict(CONFIG | {"attention_head_dim": [2, 4]})
    assert (config.heads, MODULES["unet"].config.heads) == ((2, 4), (2, 2))
