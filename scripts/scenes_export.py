"""The trained model as a folder of the library: diffusers' layout, float16 weights, settings and a model card."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scenes_presets import EDIT_SETTINGS, SCHEDULER
from training_run import Run

from uam_jax import scenes
from uam_jax.checkpoints.load import SETTINGS
from uam_jax.checkpoints.weights import save_safetensors
from uam_jax.runtime.backend import describe_host, describe_machine

_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export(
    run: Run, folder: Path, params: Any, scaling_factor: float, vocabulary: int, tokenizer: Path
) -> None:
    """Writes the model: float16 weights in shards of at most 12 MB, and everything beside them.

    Args:
      run: whose preset describes the networks.
      folder: of the model; its files are replaced.
      params: of VAE, U-Net and text encoder.
      scaling_factor: of the latents.
      vocabulary: number of the tokens.
      tokenizer: the folder of its files.
    """
    preset = run.preset
    for name, content in {
        "model_index.json": _INDEX,
        "unet/config.json": preset.unet,
        "vae/config.json": preset.vae | {"scaling_factor": scaling_factor},
        "text_encoder/config.json": preset.text(vocabulary),
        "scheduler/scheduler_config.json": SCHEDULER,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    words = ", ".join(f'"{word}"' for word in sorted(scenes.VOCABULARY))
    (folder / SETTINGS).write_text(
        f"# The words of the training's captions.\nwords = [{words}]\n\n{EDIT_SETTINGS}"
    )
    for component, tree in params.items():
        for old in (folder / component).glob("*.safetensors*"):
            old.unlink()
        half = jax.tree.map(lambda x: np.asarray(x, np.float16), tree)
        save_safetensors(half, folder / component, component, shard_bytes=11_900_000)
        for file in (folder / component).iterdir():
            file.chmod(0o644)


def write_card(run: Run, folder: Path, name: str, start: str | None, figures: dict) -> None:
    """Writes a draft of the model card: data, sizes, steps that were made, machine, versions and figures."""
    preset, machine, host = run.preset, describe_machine(), describe_host()
    sizes = [len(values) for values in scenes.ATTRIBUTES.values()]
    side, channels = preset.size // 8, preset.latent_channels
    rows = {
        "Pictures": f"{preset.size}x{preset.size}, rendered by `uam_jax.scenes.render`; "
        + ", ".join(f"{n} {name}s" for name, n in zip(scenes.ATTRIBUTES, sizes, strict=True)),
        "Latents": f"{side}x{side}x{channels}; VAE channels {preset.vae_channels}",
        "U-Net": f"channels {preset.unet_channels}, {preset.heads} heads, epsilon prediction",
        "Text": f"width {preset.text_width}, {preset.text_layers} layers, 77 tokens",
        "Data": f"{preset.pictures:,} pictures drawn by seed {preset.seed}, four captions each; "
        f"{100 * preset.caption_dropout:g} % of the captions dropped",
        "Script": f"`python scripts/train_scenes.py --preset {name}`, seed {preset.seed}",
        "Start": f"the weights of `{start}`" if start else "random weights",
    }
    for stage, made in run.stages.items():
        losses = (f"{k} {v}" for k, v in made.items() if k not in ("steps", "done"))
        done, steps = made.get("done", 0), made["steps"]
        rows[f"Stage {stage}"] = f"{done:,} of {steps:,} steps; {', '.join(losses)}"
    rows |= {
        "Device": f"{machine['device']}; {host['processor']}, {host['cores']} cores",
        "Versions": ", ".join(f"{k} {v}" for k, v in machine["versions"].items()),
        "Precision": f"computed in {run.dtype}, weights float32, stored in float16",
    }
    lines = [f"# {name}", "", "| | |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in rows.items()]
    lines += ["", "## Figures", ""]
    if figures.get("parts"):
        lines += [f"{figures['items']} edits of Scenes-Bench's tune third:", ""]
        lines += ["| Subject | Figure | Value |", "| --- | --- | --- |"]
        for subject, values in figures["parts"].items():
            lines += [f"| {subject} | {k} | {v} |" for k, v in values.items()]
    else:
        lines.append("Not measured yet: the same command goes on with them.")
    (folder / "MODEL_CARD.md").write_text("\n".join(lines) + "\n")
