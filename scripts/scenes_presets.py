"""Presets of `train_scenes.py`: networks, data and steps of the embedded models, and their settings."""

import dataclasses
from typing import Any

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


EDIT_SETTINGS = """\
# Chosen on Scenes-Bench's tune third (configs/scenes): of all settings that cost at most three quarters of `released`
# and succeed at least as often, these come closest to the VAE's background.
[default]
guidance = 2.0
source.latents = "anchored"
control = "none"

[default.mask]
rule = "auto"
t_mask = 21
radius = 0
threshold = 0.5
"""
"""The model's own settings in `uam.toml`, which take precedence over the preset `default`."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the VAE's training with its own learning-rate cycle.

    `detail` weights the error of the pictures' finite differences, that is, of their edges.
    """

    crop: int
    batch: int
    steps: int
    rate: float
    kl_weight: float
    detail: float


@dataclasses.dataclass(frozen=True)
class Preset:
    """All parameters of a run; a run's folder keeps them."""

    size: int
    pictures: int
    vae_channels: tuple[int, ...]
    vae_phases: tuple[Phase, ...]
    unet_channels: tuple[int, ...]
    text_width: int
    text_layers: int
    unet_batch: int
    unet_steps: int
    latent_channels: int = 16
    unet_rate: float = 1.5e-3
    snr_limit: float = 5.0
    caption_weight: float = 0.1
    caption_dropout: float = 0.1
    caption_keep: float = 0.75
    ema: float = 0.998
    seed: int = 0

    @property
    def vae(self) -> dict[str, Any]:
        levels = len(self.vae_channels)
        return {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": list(self.vae_channels),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "force_upcast": False,
            "in_channels": 3,
            "latent_channels": self.latent_channels,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "out_channels": 3,
            "sample_size": self.size,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }

    @property
    def unet(self) -> dict[str, Any]:
        return {
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "attention_head_dim": 8,
            "block_out_channels": list(self.unet_channels),
            "cross_attention_dim": self.text_width,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": self.latent_channels,
            "layers_per_block": 2,
            "norm_eps": 1e-5,
            "norm_num_groups": 16,
            "out_channels": self.latent_channels,
            "sample_size": self.size // 8,
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "use_linear_projection": True,
        }

    def text(self, vocab_size: int) -> dict[str, Any]:
        return {
            "architectures": ["CLIPTextModel"],
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
            "hidden_act": "quick_gelu",
            "hidden_size": self.text_width,
            "intermediate_size": 4 * self.text_width,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": 8,
            "num_hidden_layers": self.text_layers,
            "pad_token_id": vocab_size - 1,
            "projection_dim": self.text_width,
            "vocab_size": vocab_size,
        }


PRESETS = {
    "scenes-64": Preset(
        size=64,
        pictures=12_000,
        vae_channels=(32, 48, 64, 96),
        vae_phases=(
            Phase(crop=64, batch=8, steps=1300, rate=1.5e-3, kl_weight=1e-4, detail=0.0),
            Phase(crop=64, batch=4, steps=1600, rate=1e-3, kl_weight=2e-5, detail=0.5),
        ),
        unet_channels=(64, 96, 128, 128),
        text_width=96,
        text_layers=2,
        unet_batch=64,
        unet_steps=2000,
    ),
    "scenes-128": Preset(
        size=128,
        pictures=48_000,
        vae_channels=(48, 96, 128, 128),
        vae_phases=(
            Phase(crop=64, batch=64, steps=6_000, rate=1.5e-3, kl_weight=1e-4, detail=0.5),
            Phase(crop=128, batch=32, steps=2_000, rate=5e-4, kl_weight=2e-5, detail=0.5),
        ),
        unet_channels=(64, 112, 144, 144),
        text_width=128,
        text_layers=3,
        unet_batch=256,
        unet_steps=20_000,
    ),
    # A trial of the script: every stage takes a minute or two on a CPU, and the model learns nothing.
    "rehearsal": Preset(
        size=64,
        pictures=512,
        vae_channels=(16, 16, 32, 32),
        vae_phases=(
            Phase(crop=64, batch=8, steps=40, rate=1.5e-3, kl_weight=1e-4, detail=0.0),
            Phase(crop=64, batch=4, steps=20, rate=1e-3, kl_weight=2e-5, detail=0.5),
        ),
        unet_channels=(32, 32, 32, 32),
        text_width=32,
        text_layers=1,
        unet_batch=16,
        unet_steps=400,
    ),
}
