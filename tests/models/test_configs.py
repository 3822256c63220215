"""The networks' `config.json` files: values that are read, and values that are refused."""

import dataclasses
from typing import Any

import pytest
from checkpoint_files import TEXT, UNET, VAE

from uam_jax import models
from uam_jax.errors import InputError

CONFIGS = {
    "unet": (models.UNetConfig, UNET),
    "vae": (models.VAEConfig, VAE),
    "text_encoder": (models.TextConfig, TEXT),
}
TINY = {name: config.from_dict(values) for name, (config, values) in CONFIGS.items()}


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
    assert models.VAEConfig.from_dict(VAE | {"sample_size": given}) == TINY["vae"]


def test_one_value_for_all_levels_may_be_a_list() -> None:
    """As diffusers allows."""
    lists = {
        "cross_attention_dim": [UNET["cross_attention_dim"]] * 2,
        "layers_per_block": [UNET["layers_per_block"]] * 2,
        "only_cross_attention": [False] * 2,
        "transformer_layers_per_block": [1] * 2,
        "attention_head_dim": [UNET["attention_head_dim"]] * 2,
    }
    assert models.UNetConfig.from_dict(UNET | lists) == TINY["unet"]


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
    assert models.TextConfig.from_dict(whole) == TINY["text_encoder"]


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
    assert models.UNetConfig.from_dict(UNET | inert) == TINY["unet"]


def test_one_number_of_heads_is_for_every_level() -> None:
    config = models.UNetConfig.from_dict(UNET | {"attention_head_dim": [2, 4]})
    assert (config.heads, TINY["unet"].heads) == ((2, 4), (2, 2))
