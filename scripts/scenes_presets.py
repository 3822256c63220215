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


PHRASES = 4
"""Captions of every picture."""

EDIT_SETTINGS = """\
# Chosen for scenes-64 on Scenes-Bench's tune third (configs/scenes): of all settings that cost at most three
# quarters of `released` and succeed at least as often, these come closest to the VAE's background.
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

    `detail` weights the error of the pictures' finite differences, that is, of their edges. `steps` is their
    largest number: with a time budget, the phase ends when its share `end` of it is used.
    """

    crop: int
    batch: int
    steps: int
    rate: float
    kl_weight: float
    detail: float
    end: float


@dataclasses.dataclass(frozen=True)
class Preset:
    """All parameters of a run; a run's folder keeps them.

    A time budget is shared by the ends of the stages: the VAE's phases end at theirs, the U-Net at `unet_end`, and
    the rest is for export and figures. `steps_per_call` steps are one program, without the host between them.
    """

    size: int
    pictures: int
    vae_channels: tuple[int, ...]
    vae_phases: tuple[Phase, ...]
    unet_channels: tuple[int, ...]
    text_width: int
    text_layers: int
    unet_batch: int
    unet_steps: int
    unet_end: float
    figures: int = 128
    steps_per_call: int = 20
    heads: int = 8
    latent_channels: int = 16
    unet_rate: float = 1.5e-3
    snr_limit: float = 5.0
    caption_weight: float = 0.1
    caption_dropout: float = 0.1
    caption_keep: float = 0.75
    ema: float = 0.998
    seed: int = 0

    @property
    def side(self) -> int:
        """The side of a latent."""
        return self.size // 2 ** (len(self.vae_channels) - 1)

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
            "attention_head_dim": self.heads,
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
            "sample_size": self.side,
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
            Phase(64, batch=8, steps=1300, rate=1.5e-3, kl_weight=1e-4, detail=0.0, end=0.09),
            Phase(64, batch=4, steps=1600, rate=1e-3, kl_weight=2e-5, detail=0.5, end=0.2),
        ),
        unet_channels=(64, 96, 128, 128),
        text_width=96,
        text_layers=2,
        unet_batch=64,
        unet_steps=2000,
        unet_end=0.95,
    ),
    # For an accelerator: widths are multiples of 32, those of heads of 8. One phase, because each one compiles.
    "scenes-128": Preset(
        size=128,
        pictures=48_000,
        vae_channels=(32, 64, 96, 128),
        vae_phases=(
            Phase(128, batch=32, steps=12_000, rate=1e-3, kl_weight=2e-5, detail=0.5, end=0.4),
        ),
        unet_channels=(64, 128, 128, 96),
        heads=4,
        text_width=128,
        text_layers=2,
        unet_batch=256,
        unet_steps=20_000,
        unet_rate=1e-3,
        unet_end=0.86,
        caption_dropout=0.15,
        ema=0.999,
    ),
    # A trial of the script: every stage takes seconds on a CPU, and the model learns nothing.
    "rehearsal": Preset(
        size=64,
        pictures=256,
        vae_channels=(16, 16, 32, 32),
        vae_phases=(
            Phase(64, batch=8, steps=40, rate=1.5e-3, kl_weight=1e-4, detail=0.0, end=0.2),
            Phase(32, batch=4, steps=20, rate=1e-3, kl_weight=2e-5, detail=0.5, end=0.35),
        ),
        unet_channels=(32, 32, 32, 32),
        text_width=32,
        text_layers=1,
        unet_batch=16,
        unet_steps=400,
        unet_end=0.6,
        figures=8,
        steps_per_call=10,
    ),
}
