"""Trains the embedded model: first the VAE, then text encoder and U-Net with EMA on latents that are encoded once.

    python scripts/train_scenes.py --preset scenes-64 --out runs/scenes-64

The same script runs on CPU, GPU and TPU. It resumes exactly where it stopped (Orbax checkpoints; every batch is a
function of the seed and the step) and writes losses and picture grids meanwhile. With `--export DIR` it writes the
newest weights, in float16 and in diffusers' layout, whenever it stops after the VAE is complete: at the end, or
when `--minutes` have passed. On a machine with a time limit, for instance, three commands of nine minutes each:

    train="python scripts/train_scenes.py --preset scenes-128 --out runs/128 --export runs/128-fp16"
    $train --vae-minutes 7 --minutes 8.5
    $train --unet-minutes 14 --minutes 8.5
    $train --unet-minutes 14 --minutes 8.5
"""

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scenes_networks import encode_all, train_unet, train_vae, values_named
from scenes_presets import EDIT_SETTINGS, PRESETS, SCHEDULER
from training_run import Run, save_grid

from uam_jax import scenes
from uam_jax.checkpoints.load import SETTINGS, Checkpoint, load_checkpoint
from uam_jax.checkpoints.tokenizer import Tokenizer
from uam_jax.checkpoints.weights import save_safetensors
from uam_jax.editor import Editor
from uam_jax.engine.parallel import Devices, program
from uam_jax.method.schedule import Schedule
from uam_jax.models import VAE, TextConfig, TextEncoder, UNet, UNetConfig, VAEConfig
from uam_jax.scenes.bpe import train_tokenizer


@program(static=["size"], batched={"world": 0}, out=0)
def render(world: scenes.Scene, *, size: int) -> jax.Array:
    """Pictures as bytes."""
    return jnp.round((scenes.render(world, size=size) + 1) * 127.5).astype(jnp.uint8)


def render_all(world: scenes.Scene, size: int, chunk: int = 1024) -> np.ndarray:
    """Renders on the CPUs, whose number JAX_NUM_CPU_DEVICES should give: ray marching is faster there than on a GPU."""
    # shard_map rejects the renderer's branches, because some of them return constants.
    cpus = Devices(tuple(jax.devices("cpu")), "pmap")
    parts = []
    with jax.default_device(cpus.devices[0]):
        world = jax.tree.map(np.asarray, world)
        for first in range(0, len(world), chunk):
            parts.append(np.asarray(render(world[first : first + chunk], size=size, on=cpus)))
    return np.concatenate(parts)


def assemble(
    run: Run, vae: Any, scaling_factor: float, tokenizer: Tokenizer, ema: Any
) -> tuple[Checkpoint, dict[str, Any]]:
    """The model as a checkpoint of the library, and its config files by path."""
    preset = run.preset
    vae_config = preset.vae | {"scaling_factor": scaling_factor}
    text_config = preset.text(tokenizer.vocab_size)
    checkpoint = Checkpoint(
        name=f"{run.folder}",
        path=run.folder,
        unet=UNet(UNetConfig.from_dict(preset.unet)),
        vae=VAE(VAEConfig.from_dict(vae_config)),
        text_encoder=TextEncoder(TextConfig.from_dict(text_config)),
        params={"vae": vae, "unet": ema["unet"], "text_encoder": ema["text_encoder"]},
        tokenizer=tokenizer,
        schedule=Schedule.from_config(SCHEDULER),
        weights_hash="in training",
        settings={},
    )
    index = {
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
    files = {
        "model_index.json": index,
        "unet/config.json": preset.unet,
        "vae/config.json": vae_config,
        "text_encoder/config.json": text_config,
        "scheduler/scheduler_config.json": SCHEDULER,
    }
    return checkpoint, files


def export(run: Run, folder: Path, checkpoint: Checkpoint, files: dict[str, Any]) -> None:
    """Writes the model in diffusers' layout: float16 weights in shards of at most 12 MB."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
    shutil.copytree(run.folder / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    words = ", ".join(f'"{word}"' for word in sorted(scenes.VOCABULARY))
    (folder / SETTINGS).write_text(
        f"# The words of the training's captions.\nwords = [{words}]\n\n{EDIT_SETTINGS}"
    )
    for component, params in checkpoint.params.items():
        for old in (folder / component).glob("*.safetensors*"):
            old.unlink()
        half = jax.tree.map(lambda x: np.asarray(x, np.float16), params)
        save_safetensors(half, folder / component, component, shard_bytes=11_900_000)
        for file in (folder / component).iterdir():
            file.chmod(0o644)


def show_samples(run: Run, checkpoint: Checkpoint, step: int, count: int = 32) -> None:
    """Generates pictures from unseen captions and logs the share that show the object and the colour."""
    world = scenes.sample(jax.random.key(run.preset.seed + 1), count, empty=0.0)
    pictures = np.asarray(Editor(checkpoint).generate(scenes.captions(world), steps=25))
    save_grid(run.folder / "grids" / f"unet-{step:06d}.png", pictures, 8)
    truth = scenes.render_in_chunks(world, size=run.preset.size)
    save_grid(run.folder / "grids" / "truth.png", truth, 8)
    named = scenes.nearest_attributes(pictures)
    right = {
        a: np.asarray(getattr(named, a)) == np.asarray(getattr(world, a))
        for a in ("shape", "colour")
    }
    run.log(
        stage="samples",
        step=step,
        shape=float(right["shape"].mean()),
        colour=float(right["colour"].mean()),
        both=float((right["shape"] & right["colour"]).mean()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="scenes-64")
    parser.add_argument(
        "--out", type=Path, required=True, help="the run's folder; an existing run is resumed"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="stop after so many minutes; the same command resumes",
    )
    for stage in ("vae", "unet"):
        parser.add_argument(
            f"--{stage}-minutes",
            type=float,
            default=float("inf"),
            help="reduce its steps, once, so that they take no longer than this",
        )
    parser.add_argument("--every", type=int, default=200, help="steps between two checkpoints")
    parser.add_argument(
        "--export", type=Path, help="write the checkpoint there, in diffusers' layout"
    )
    parser.add_argument(
        "--start",
        help="start from the VAE, U-Net and text encoder of this model, for example `scenes`",
    )
    parser.add_argument(
        "--steps", dest="unet_steps", type=int, help="steps of the U-Net's training"
    )
    parser.add_argument(
        "--rate", dest="unet_rate", type=float, help="highest learning rate of the U-Net's training"
    )
    parser.add_argument("--seed", type=int, help="seed of weights, batches and noise")
    args = parser.parse_args()
    changed = {name: getattr(args, name) for name in ("unet_steps", "unet_rate", "seed")}
    changed = {name: value for name, value in changed.items() if value is not None}
    preset = dataclasses.replace(PRESETS[args.preset], **changed)
    run = Run(preset, args)
    run.log(device=str(jax.devices()[0]), jax=jax.__version__)

    world = scenes.sample(jax.random.key(preset.seed), preset.pictures)
    began = time.monotonic()
    pictures = run.cached("pictures", lambda: render_all(world, preset.size))
    run.log(stage="pictures", seconds=round(time.monotonic() - began, 1))
    begun = load_checkpoint(args.start) if args.start else None
    first = dict(begun.params) if begun else {}
    vae = first.pop("vae", None)
    for index in range(0 if vae else len(preset.vae_phases)):
        vae, done = train_vae(run, pictures, index, vae)
        if not done:
            return
    latents = run.cached("latents", lambda: encode_all(run, vae, pictures))
    scaling_factor = begun.vae.config.scaling_factor if begun else float(1 / latents.std())
    phrases = [scenes.captions(world, (preset.seed, i), keep=preset.caption_keep) for i in range(4)]
    if begun:
        shutil.copytree(begun.path / "tokenizer", run.folder / "tokenizer", dirs_exist_ok=True)
        tokenizer = begun.tokenizer
    else:
        tokenizer = train_tokenizer(
            [text for texts in phrases for text in texts[:4000]],
            run.folder / "tokenizer",
            vocab_size=1024,
        )
    ids = np.stack([tokenizer.encode(texts) for texts in phrases], axis=1)
    null = tokenizer.encode([""])
    run.log(stage="latents", scaling_factor=scaling_factor, vocabulary=int(null.max()) + 1)

    def assembled(state: Any) -> tuple[Checkpoint, dict[str, Any]]:
        return assemble(run, vae, scaling_factor, tokenizer, state["ema"])

    def show(state: Any, step: int) -> None:
        show_samples(run, assembled(state)[0], step)

    named = np.stack([[values_named(text) for text in texts] for texts in phrases], axis=1)
    state = train_unet(run, latents * scaling_factor, ids, null, named, first, show)
    if args.export:
        export(run, args.export, *assembled(state))


if __name__ == "__main__":
    main()
