"""The networks' shapes, read from a checkpoint's own `config.json` files, and the published ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from uam_jax.models.config_keys import (
    TEXT_INERT,
    UNET_INERT,
    UNET_OFF,
    VAE_OFF,
    is_like,
    read,
    refusal,
)

Components = Mapping[str, Mapping[str, Any]]

_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

PUBLISHED: Mapping[str, Components] = {
    "sd15": {
        "unet": {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
        "vae": _VAE,
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
        },
    },
    "sd21": {
        "unet": {
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "sample_size": 96,
            "use_linear_projection": True,
        },
        "vae": _VAE,
        "text_encoder": {
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
        },
    },
}
"""The published models' `config.json` files, less what is diffusers' or transformers' default."""


def _side(config: Mapping[str, Any], default: int, multiple: int) -> int:
    """The side of a U-Net's `sample_size`; of two sides about that of a square of their area."""
    value = config.get("sample_size")
    if value is None:
        return default
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise refusal("unet", "sample_size", value, "an integer, two of them, or null")
    if sides[0] == sides[1]:
        return sides[0]
    return max(1, round(math.sqrt(sides[0] * sides[1]) / multiple)) * multiple


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the U-Net.

    `heads` is what `attention_head_dim` holds in SD checkpoints, per level; `sample_size` is the side of the
    latents that it was trained on, or of a square of their area.
    """

    channels: tuple[int, ...]
    heads: tuple[int, ...]
    attends: tuple[bool, ...]
    layers_per_block: int
    context_width: int
    in_channels: int
    out_channels: int
    sample_size: int
    norm_groups: int
    norm_eps: float
    flip_sin_to_cos: bool
    freq_shift: float

    @property
    def transformer_blocks(self) -> int:
        """How many there are, each with one cross-attention layer."""
        return sum(self.attends) * (2 * self.layers_per_block + 1) + 1

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Reads a `unet/config.json`; absent keys take diffusers' defaults.

        Raises:
          InputError: a key or value that changes the result and is not supported.
        """
        down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
        up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
        heads = config.get("attention_head_dim", 8)
        values = read(
            "unet",
            {k: v for k, v in config.items() if k not in ("attention_head_dim", "sample_size")},
            {
                "block_out_channels": (320, 640, 1280, 1280),
                "cross_attention_dim": 1280,
                "down_block_types": down,
                "flip_sin_to_cos": True,
                "freq_shift": 0.0,
                "in_channels": 4,
                "layers_per_block": 2,
                "norm_eps": 1e-5,
                "norm_num_groups": 32,
                "out_channels": 4,
                "up_block_types": up,
            },
            off=UNET_OFF,
            inert=UNET_INERT,
        )
        channels, down, up = (
            values[k] for k in ("block_out_channels", "down_block_types", "up_block_types")
        )
        for key, kinds, known in (("down_block_types", down, "Down"), ("up_block_types", up, "Up")):
            wanted = (f"CrossAttn{known}Block2D", f"{known}Block2D")
            if len(kinds) != len(channels) or not set(kinds) <= set(wanted):
                raise refusal(
                    "unet", key, list(kinds), f"{len(channels)} of {' and '.join(wanted)}"
                )
        attends = tuple(kind.startswith("CrossAttn") for kind in down)
        if attends != tuple(kind.startswith("CrossAttn") for kind in reversed(up)):
            raise refusal(
                "unet", "up_block_types", list(up), "the mirror image of down_block_types"
            )
        heads = tuple(heads) if isinstance(heads, (list, tuple)) else (heads,) * len(channels)
        if len(heads) != len(channels) or not all(
            is_like(h, 8) and c % h == 0 for c, h in zip(channels, heads, strict=True)
        ):
            raise refusal(
                "unet", "attention_head_dim", list(heads), "divisors of block_out_channels"
            )
        if any(c % values["norm_num_groups"] for c in channels):
            raise refusal(
                "unet",
                "norm_num_groups",
                values["norm_num_groups"],
                "a divisor of block_out_channels",
            )
        return cls(
            channels=channels,
            heads=heads,
            attends=attends,
            layers_per_block=values["layers_per_block"],
            context_width=values["cross_attention_dim"],
            in_channels=values["in_channels"],
            out_channels=values["out_channels"],
            sample_size=_side(config, default=64, multiple=2 ** (len(channels) - 1)),
            norm_groups=values["norm_num_groups"],
            norm_eps=values["norm_eps"],
            flip_sin_to_cos=values["flip_sin_to_cos"],
            freq_shift=values["freq_shift"],
        )


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder; `scaling_factor` brings its latents to about unit variance."""

    channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    in_channels: int
    out_channels: int
    norm_groups: int
    scaling_factor: float

    @property
    def factor(self) -> int:
        """Picture pixels per latent pixel and side."""
        return 2 ** (len(self.channels) - 1)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Reads a `vae/config.json`; an absent scaling factor is Stable Diffusion's 0.18215.

        Raises:
          InputError: a key or value that changes the result and is not supported.
        """
        values = read(
            "vae",
            config,
            {
                "block_out_channels": (64,),
                "down_block_types": ("DownEncoderBlock2D",),
                "in_channels": 3,
                "latent_channels": 4,
                "layers_per_block": 1,
                "norm_num_groups": 32,
                "out_channels": 3,
                "scaling_factor": 0.18215,
                "up_block_types": ("UpDecoderBlock2D",),
            },
            off=VAE_OFF,
            inert=("force_upcast", "sample_size"),
        )
        for key, known in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            if set(values[key]) != {known} or len(values[key]) != len(values["block_out_channels"]):
                raise refusal("vae", key, list(values[key]), f"{known} for every level")
        return cls(
            channels=values["block_out_channels"],
            layers_per_block=values["layers_per_block"],
            latent_channels=values["latent_channels"],
            in_channels=values["in_channels"],
            out_channels=values["out_channels"],
            norm_groups=values["norm_num_groups"],
            scaling_factor=values["scaling_factor"],
        )


@dataclass(frozen=True)
class TextConfig:
    """Shape of the CLIP text encoder."""

    vocab_size: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    max_tokens: int
    activation: str
    norm_eps: float

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Reads a `text_encoder/config.json`; absent keys take transformers' defaults.

        Of a whole CLIP model's file only the part about text is read.

        Raises:
          InputError: a key or value that changes the result and is not supported.
        """
        if isinstance(text := config.get("text_config"), Mapping):
            config = text
        values = read(
            "text_encoder",
            config,
            {
                "hidden_act": "quick_gelu",
                "hidden_size": 512,
                "intermediate_size": 2048,
                "layer_norm_eps": 1e-5,
                "max_position_embeddings": 77,
                "num_attention_heads": 8,
                "num_hidden_layers": 12,
                "vocab_size": 49408,
            },
            off={"pruned_heads": ({},)},
            inert=TEXT_INERT,
        )
        if values["hidden_act"] not in ("quick_gelu", "gelu"):
            raise refusal("text_encoder", "hidden_act", values["hidden_act"], "quick_gelu or gelu")
        if values["hidden_size"] % values["num_attention_heads"]:
            raise refusal(
                "text_encoder",
                "num_attention_heads",
                values["num_attention_heads"],
                "a divisor of hidden_size",
            )
        return cls(
            vocab_size=values["vocab_size"],
            width=values["hidden_size"],
            mlp_width=values["intermediate_size"],
            layers=values["num_hidden_layers"],
            heads=values["num_attention_heads"],
            max_tokens=values["max_position_embeddings"],
            activation=values["hidden_act"],
            norm_eps=values["layer_norm_eps"],
        )
