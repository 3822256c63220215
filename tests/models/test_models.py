"""What the networks promise without PyTorch: attention rules, precision, independence of rows, configurations."""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax
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

CONFIGS = {
    "unet": (models.UNetConfig, UNET),
    "vae": (models.VAEConfig, VAE),
    "text_encoder": (models.TextConfig, TEXT),
}
MODULES = {
    "unet": models.UNet(models.UNetConfig.from_dict(UNET)),
    "vae": models.VAE(models.VAEConfig.from_dict(VAE)),
    "text_encoder": models.TextEncoder(models.TextConfig.from_dict(TEXT)),
}
# Two levels of different width that attend: for what is only traced, since compiling it takes long.
DEEP = models.UNet(
    models.UNetConfig.from_dict(
        UNET
        | {
            "block_out_channels": [8, 16],
            "down_block_types": ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        }
    )
)
BLOCKS = 7


def normal(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@cache
def params_of(module: Any) -> Params:
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> Array:
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), jnp.float32)

    return jax.tree.map(draw, models.expected_params(module))


STATES = normal(2, 3, 5, UNET["cross_attention_dim"])
LATENT, TIMESTEP = normal(1, 3, 8, 4, 4), jnp.array([1, 500, 981])


@cache  # compiling takes seconds
def predictor(make_rule: Callable[..., AttentionRule], network: Any = MODULES["unet"]) -> Any:
    """The jitted U-Net, whose cross-attention follows `make_rule(*given)`."""

    @jax.jit
    def run(params: Params, latent: Array, timestep: Array, *given: Any) -> Array:
        return network.apply({"params": params}, latent, timestep, make_rule(*given))

    return run


def predict(make_rule: Callable[..., AttentionRule], *given: Any) -> Array:
    return predictor(make_rule)(params_of(MODULES["unet"]), LATENT, TIMESTEP, *given)


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


def vectors(network: Any = MODULES["unet"]) -> tuple[Array, ...]:
    return models.uniform_vectors(params_of(network), STATES)


def map_rule(states: Array, uniformity: Any) -> AttentionRule:
    """The definition: cross-attention whose maps are softmax and 1/S in the given parts."""

    def rule(site: AttentionSite, x: Array, block: int) -> Array:
        q, k, v = site.query(x), site.key(states), site.value(states)
        logits = jnp.einsum("bnhd,bshd->bhns", q, k) / np.sqrt(q.shape[-1])
        text = jax.nn.softmax(logits, axis=-1)
        maps = (1 - uniformity) * text + uniformity / states.shape[1]
        return site.project(jnp.einsum("bhns,bshd->bnhd", maps, v))

    return rule


def assert_close(actual: Any, expected: Any, relative: float) -> None:
    error = np.abs(np.asarray(actual) - np.asarray(expected)).max() / np.abs(expected).max()
    assert error <= relative


def test_uniform_vectors_equal_maps_of_one_over_s() -> None:
    uniform = predict(models.uniform_attention, vectors())
    assert_close(uniform, predict(map_rule, STATES, 1.0), 1e-6)
    text = predict(models.text_attention, STATES)
    assert np.abs(uniform - text).max() > 0.01 * np.abs(text).max()


@pytest.mark.parametrize("uniformity", [0.0, 0.5, 1.0])
def test_mixed_attention_mixes_the_maps(uniformity: float) -> None:
    ours = predict(models.mixed_attention, STATES, vectors(), uniformity)
    assert_close(ours, predict(map_rule, STATES, uniformity), 2e-6)


def test_mixed_attention_takes_a_map_for_every_block_and_pixel() -> None:
    blocks, (b, h, w, _) = len(vectors()), LATENT.shape
    maps = np.random.default_rng(5).uniform(size=(blocks, b, h, w)).astype(np.float32)

    def by_definition(states: Array, maps: Array) -> AttentionRule:
        def rule(site: AttentionSite, x: Array, block: int) -> Array:
            side = int(np.sqrt(h * w / x.shape[1]))
            own = maps[block].reshape(b, h // side, side, w // side, side).mean((2, 4))
            return map_rule(states, own.reshape(b, 1, -1, 1))(site, x, block)

        return rule

    ours = predict(models.mixed_attention, STATES, vectors(), maps)
    assert_close(ours, predict(by_definition, STATES, maps), 2e-6)
    whole = predict(models.mixed_attention, STATES, vectors(), np.ones((1, 1, h, w), np.float32))
    assert_close(whole, predict(models.uniform_attention, vectors()), 1e-6)


def test_uniform_rule_asks_nothing_of_the_layer() -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was called")

    rule = models.uniform_attention([normal(0, 1, 6), normal(1, 1, 6)])
    np.testing.assert_array_equal(rule(Untouchable(), normal(2, 3, 4, 6), 1), normal(1, 1, 6)[None])


def test_uniform_evaluation_costs_less() -> None:
    def flops(make_rule: Callable[..., AttentionRule], *given: Any) -> float:
        lowered = predictor(make_rule, DEEP).lower(params_of(DEEP), LATENT, TIMESTEP, *given)
        return lowered.cost_analysis()["flops"]

    text = flops(models.text_attention, STATES)
    uniform = flops(models.uniform_attention, vectors(DEEP))
    batch, pixels, tokens, width = 3, 8 * 4, STATES.shape[1], 8
    # The products of Q and of the output, the two of the maps, K and V; twice, multiply and add.
    per_pixel = 2 * width + 2 * tokens
    block = 2 * batch * width * (pixels * per_pixel + 2 * tokens * STATES.shape[2])
    assert text - uniform > 3 * block  # the three blocks of the outer level, at least


def test_uniform_vectors_are_in_execution_order() -> None:
    seen: dict[int, tuple] = {}

    def keep_order(site: Any, x: Array, block: int) -> Array:
        assert block == len(seen)
        seen[block] = site.path
        return x

    run, params = predictor(lambda: keep_order, DEEP), params_of(DEEP)
    jax.eval_shape(run, params, LATENT, TIMESTEP)
    found = vectors(DEEP)
    assert list(seen) == list(range(BLOCKS)) and len(found) == BLOCKS
    for block, path in seen.items():
        attn = params
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

    apply = partial(DEEP.apply, cross=models.text_attention(STATES), own=own)
    shape = jax.eval_shape(apply, {"params": params_of(DEEP)}, LATENT, TIMESTEP)
    assert blocks == list(range(BLOCKS)) and shape.shape == LATENT.shape


@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (5, 4), (1, 3)])
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 1, "SAME"), (3, 1, [(1, 1), (1, 1)]), (3, 2, [(1, 1), (1, 1)]), (3, 2, [(0, 1), (0, 1)]), (1, 1, "SAME")],
)  # fmt: skip
def test_products_equal_the_convolution(
    sides: tuple[int, int], size: int, stride: int, padding: Any
) -> None:
    picture, kernel = normal(0, 2, *sides, 3), normal(1, size, size, 3, 5)
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    ours = layers._convolve(picture, kernel, (stride, stride), padding, **numbers)
    direct = lax.conv_general_dilated(picture, kernel, (stride, stride), padding, **numbers)
    np.testing.assert_allclose(ours, direct, rtol=1e-5, atol=1e-5)


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
        rules = (models.text_attention(STATES.astype(dtype)),) if component == "unet" else ()
        halved = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        network = type(module)(module.config, dtype)
        return jax.jit(lambda params: network.apply({"params": params}, *given, *rules))(halved)

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
    run = partial(predictor(models.text_attention), params_of(MODULES["unet"]))
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


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("unet", "act_fn", "gelu"),
        ("unet", "addition_embed_type", "text_time"),
        ("unet", "attention_head_dim", [3, 3]),
        ("unet", "block_out_channels", "wide"),
        ("unet", "cross_attention_dim", [8, 12]),
        ("unet", "down_block_types", ["CrossAttnDownBlock2D", "AttnDownBlock2D"]),
        ("unet", "norm_num_groups", 3),
        ("unet", "transformer_layers_per_block", [1, 2]),
        ("unet", "up_block_types", ["CrossAttnUpBlock2D", "UpBlock2D"]),
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


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("unet", "attention_head_dim", 0),
        ("unet", "attention_head_dim", [2, "2"]),
        ("unet", "block_out_channels", ["8", "8"]),
        ("unet", "norm_num_groups", 0),
        ("unet", "layers_per_block", True),
        ("unet", "layers_per_block", [1, 2]),
        ("unet", "sample_size", [8]),
        ("unet", "sample_size", [8, "8"]),
        ("unet", "sample_size", 0),
        ("unet", "sample_size", True),
        ("unet", "sample_size", {}),
        ("vae", "scaling_factor", True),
        ("vae", "scaling_factor", "0.2"),
        ("text_encoder", "num_attention_heads", 0),
    ],
)
def test_values_of_another_kind_are_named(component: str, key: str, value: Any) -> None:
    test_unsupported_configurations_are_named(component, key, value)


@pytest.mark.parametrize(
    ("given", "side"),
    [(64, 64), ([96, 96], 96), ([64, 144], 96), ([60, 80], 70), ([1, 1], 1), (None, 64)],
)
def test_a_sample_size_may_have_two_sides_or_none(given: Any, side: int) -> None:
    """In place of two sides that of a square of about their area, which the levels of the U-Net can halve."""
    config = models.UNetConfig.from_dict(UNET | {"sample_size": given})
    assert config == dataclasses.replace(models.UNetConfig.from_dict(UNET), sample_size=side)
    assert models.VAEConfig.from_dict(VAE | {"sample_size": given}) == MODULES["vae"].config


def test_one_value_for_all_levels_may_be_a_list() -> None:
    """As diffusers allows."""
    lists = {
        "cross_attention_dim": [UNET["cross_attention_dim"]] * 2,
        "layers_per_block": [UNET["layers_per_block"]] * 2,
        "only_cross_attention": [False] * 2,
        "transformer_layers_per_block": [1] * 2,
        "attention_head_dim": [UNET["attention_head_dim"]] * 2,
    }
    assert models.UNetConfig.from_dict(UNET | lists) == MODULES["unet"].config


def test_of_a_whole_clip_model_the_text_part_is_read() -> None:
    """As transformers 4 wrote it, with all that text generation has."""
    generation = {"length_penalty": 1.0, "max_length": 20, "num_beams": 1, "top_p": 1.0}
    whole = {
        "architectures": ["CLIPModel"],
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 8,
        "text_config": TEXT | generation | {"pruned_heads": {}, "is_decoder": False},
        "text_config_dict": None,
        "vision_config": {"hidden_size": 24},
    }
    assert models.TextConfig.from_dict(whole) == MODULES["text_encoder"].config


def test_whole_numbers_and_floats_are_the_same_config() -> None:
    both = [models.UNetConfig.from_dict(UNET | {"freq_shift": value}) for value in (0, 0.0)]
    assert repr(both[0]) == repr(both[1])


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
    assert models.UNetConfig.from_dict(UNET | inert) == MODULES["unet"].config


def test_one_number_of_heads_is_for_every_level() -> None:
    config = models.UNetConfig.from_dict(UNET | {"attention_head_dim": [2, 4]})
    assert (config.heads, MODULES["unet"].config.heads) == ((2, 4), (2, 2))
