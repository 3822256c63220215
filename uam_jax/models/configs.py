"""The networks' shapes, read from the checkpoint's own `config.json` files.

A value that would change the result and is not supported is an error: every key is either read, or known to
be without influence on inference, or accepted at the values that mean "off".
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from uam_jax.errors import InputError

_UNET_OFF: dict[str, Collection[Any]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
}
# Inert unless another key (refused above) switches their feature on, or only in training.
_UNET_INERT = (
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "class_embeddings_concat",
    "dropout",
    "projection_class_embeddings_input_dim",
    # Logits and softmax are always float32 here, so both values mean the same.
    "upcast_attention",
    # A 1x1 convolution and a linear layer are one computation; the weights' shape says which was saved.
    "use_linear_projection",
)
_VAE_OFF: dict[str, Collection[Any]] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None, 0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_TEXT_INERT = (
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dropout",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "projection_dim",
    "return_dict",
    "torch_dtype",
    "transformers_version",
)


def _refuse(part: str, key: str, value: Any, accepted: str) -> InputError:
    return InputError(
        f"{part}/config.json: {key} = {value!r} is not supported (supported: {accepted}); "
        "use a Stable Diffusion 1.x or 2.x checkpoint"
    )


def _take(
    part: str,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    off: Mapping[str, Collection[Any]],
    inert: Collection[str],
) -> dict[str, Any]:
    """Returns `defaults` overlaid by `config`; raises InputError for anything that is not understood."""
    values = dict(defaults)
    for key, value in config.items():
        if key in defaults:
            kind = type(defaults[key])
            if not isinstance(value, kind) and not (
                kind in (float, tuple) and _is_like(value, kind)
            ):
                raise _refuse(part, key, value, f"a value like {defaults[key]!r}")
            values[key] = tuple(value) if kind is tuple else value
        elif key in off:
            if not any(value == accepted for accepted in off[key]):
                raise _refuse(part, key, value, " or ".join(map(repr, off[key])))
        elif not (key.startswith("_") or key in inert or value is None or value is False):
            raise _refuse(part, key, value, "the key is unknown here")
    return values


def _is_like(value: Any, kind: type) -> bool:
    return isinstance(value, list) if kind is tuple else isinstance(value, int)


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the U-Net. `heads` is what `attention_head_dim` holds in SD checkpoints, per level."""

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
        values = _take(
            "unet",
            {k: v for k, v in config.items() if k != "attention_head_dim"},
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
                "sample_size": 64,
                "up_block_types": up,
            },
            off=_UNET_OFF,
            inert=_UNET_INERT,
        )
        channels, down, up = (
            values[k] for k in ("block_out_channels", "down_block_types", "up_block_types")
        )
        for key, kinds, known in (("down_block_types", down, "Down"), ("up_block_types", up, "Up")):
            wanted = (f"CrossAttn{known}Block2D", f"{known}Block2D")
            if len(kinds) != len(channels) or not set(kinds) <= set(wanted):
                raise _refuse(
                    "unet", key, list(kinds), f"{len(channels)} of {' and '.join(wanted)}"
                )
        attends = tuple(kind.startswith("CrossAttn") for kind in down)
        if attends != tuple(kind.startswith("CrossAttn") for kind in reversed(up)):
            raise _refuse(
                "unet", "up_block_types", list(up), "the mirror image of down_block_types"
            )
        heads = tuple(heads) if isinstance(heads, (list, tuple)) else (heads,) * len(channels)
        if len(heads) != len(channels) or any(c % h for c, h in zip(channels, heads, strict=True)):
            raise _refuse(
                "unet", "attention_head_dim", list(heads), "divisors of block_out_channels"
            )
        if any(c % values["norm_num_groups"] for c in channels):
            raise _refuse(
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
            sample_size=values["sample_size"],
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
    sample_size: int
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
        values = _take(
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
                "sample_size": 32,
                "scaling_factor": 0.18215,
                "up_block_types": ("UpDecoderBlock2D",),
            },
            off=_VAE_OFF,
            inert=("force_upcast",),
        )
        for key, known in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            if set(values[key]) != {known} or len(values[key]) != len(values["block_out_channels"]):
                raise _refuse("vae", key, list(values[key]), f"{known} for every level")
        return cls(
            channels=values["block_out_channels"],
            layers_per_block=values["layers_per_block"],
            latent_channels=values["latent_channels"],
            in_channels=values["in_channels"],
            out_channels=values["out_channels"],
            sample_size=values["sample_size"],
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

        Raises:
          InputError: a key or value that changes the result and is not supported.
        """
        values = _take(
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
            off={},
            inert=_TEXT_INERT,
        )
        if values["hidden_act"] not in ("quick_gelu", "gelu"):
            raise _refuse("text_encoder", "hidden_act", values["hidden_act"], "quick_gelu or gelu")
        if values["hidden_size"] % values["num_attention_heads"]:
            raise _refuse(
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
