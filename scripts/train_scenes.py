"""Trains an embedded model: first the VAE, then text encoder and U-Net with EMA on latents that are encoded once.

    python scripts/train_scenes.py --preset scenes-128 --out runs/128 --export runs/128-fp16 --minutes 9

The same script runs on CPU, GPU and TPU; on the latter two, networks compute in bfloat16. `--minutes` is the budget of
all stages (pictures, VAE, latents, U-Net, export, figures): each one ends at its share of it, and the number of
steps is what a timed trial shows to fit. Without it, a preset's steps are made. A run that is stopped resumes by the
same command (Orbax checkpoints; every batch is a function of the seed and the step). The model is written in float16
and in diffusers' layout when the U-Net ends, and then measured; figures for which no time is left are measured by
the next call of the same command. `--start runs/128-fp16` with another `--out` goes on from a model.

Compilation is much of a short run. The first run of `scenes-128` on an H100 (`benchmarks/training`) compiled each
program when it was needed: the VAE's in 52 s, the U-Net's in 186 s, and of the figures' only the VAE's before the end.
Its steps took 10.7 ms and 31 ms, so that the U-Net made 2,020 of 20,000. Therefore the programs of the U-Net and the
figures are now compiled while pictures are drawn and the VAE is trained; how much this gains on a GPU has not been
measured yet. The script sets XLA's `--xla_gpu_autotune_level=1`, without which the VAE's program was not there after
70 s; what `XLA_FLAGS` says takes precedence.
"""

import argparse
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from scenes_data import learn_tokenizer, make_texts, render_all
from scenes_export import export, write_card
from scenes_figures import draw_bench, measure, rehearse
from scenes_networks import encode_all, train_unet, train_vae, unet_program, vae_program
from scenes_presets import PRESETS
from training_run import Advance, Run

from uam_jax import scenes
from uam_jax.checkpoints.load import Checkpoint, load_checkpoint
from uam_jax.models import UNetConfig
from uam_jax.runtime.backend import cache_folder, configure
from uam_jax.runtime.platforms import default_device

FLAGS = "--xla_gpu_autotune_level=1"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="scenes-64")
    parser.add_argument(
        "--out", type=Path, required=True, help="the run's folder; an existing run is resumed"
    )
    parser.add_argument("--export", type=Path, help="the model's folder; by default OUT/model")
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="time budget of all stages; the same command goes on with what is not finished",
    )
    parser.add_argument("--every", type=float, default=120, help="seconds between two checkpoints")
    parser.add_argument(
        "--start",
        help="start from the VAE, U-Net and text encoder of this model, for example `scenes`",
    )
    parser.add_argument(
        "--steps", dest="unet_steps", type=int, help="highest number of the U-Net's steps"
    )
    parser.add_argument(
        "--rate", dest="unet_rate", type=float, help="highest learning rate of the U-Net's training"
    )
    parser.add_argument("--seed", type=int, help="seed of weights, batches and noise")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the computation; by default float32 on a CPU, else bfloat16",
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
    configure(cache=cache_folder())
    changed = {name: getattr(args, name) for name in ("unet_steps", "unet_rate", "seed")}
    changed = {name: value for name, value in changed.items() if value is not None}
    preset = dataclasses.replace(PRESETS[args.preset], **changed)
    run = Run(preset, args.out, minutes=args.minutes, dtype=args.dtype, every=args.every)
    run.log(device=str(jax.devices()[0]), jax=jax.__version__, dtype=str(run.dtype))
    begun = load_checkpoint(args.start) if args.start else None
    if begun and begun.unet.config != UNetConfig.from_dict(preset.unet):
        raise SystemExit(f"{args.start} has another U-Net than the preset {args.preset}")
    with ThreadPoolExecutor() as beside:
        train(run, args, begun, beside)


def train(run: Run, args: argparse.Namespace, begun: Checkpoint | None, beside: Executor) -> None:
    """All stages; what a later one needs is drawn, and on an accelerator compiled, beside the earlier ones."""
    preset, folder = run.preset, args.export or run.folder / "model"
    world = jax.tree.map(np.asarray, scenes.sample(jax.random.key(preset.seed), preset.pictures))
    words = run.folder / "tokenizer"
    if begun:
        shutil.copytree(begun.path / "tokenizer", words, dirs_exist_ok=True)
    tokenizer = begun.tokenizer if begun else learn_tokenizer(preset, world, words)
    vocabulary = tokenizer.vocab_size

    # On a CPU, compilation would slow down the training beside it, and begins when it is needed.
    free = default_device().platform != "cpu"

    def ahead(stage: str, compiled: Callable[[], Advance]) -> Callable[[], Advance]:
        """The steps of a stage, whose compilation may begin now, unless they are made."""

        def timed() -> Advance:
            with run.timed(f"{stage}: compilation"):
                return compiled()

        return beside.submit(timed).result if free and not run.finished(stage) else timed

    phases = () if begun else range(len(preset.vae_phases))
    vae_programs = [ahead(f"vae-{i}", functools.partial(vae_program, run, i)) for i in phases]
    of_unet = ahead("unet", functools.partial(unet_program, run, tokenizer))
    pictures = None
    if not run.has("latents"):
        render = functools.partial(render_all, world, preset.size)
        if begun:  # They are needed only once, and not kept.
            with run.timed("pictures"):
                pictures = render()
        else:
            pictures = run.cached("pictures", render)
        pictures = jax.device_put(pictures)
    bench = beside.submit(draw_bench, preset.figures, preset.size).result
    texts = beside.submit(make_texts, preset, world, tokenizer).result
    early = free and not run.finished("unet")
    rehearsal = beside.submit(rehearse, run, bench, vocabulary, words) if early else None

    vae = jax.device_get(begun.params["vae"]) if begun else train_vae(run, pictures, vae_programs)
    if vae is None:
        run.log(stage="vae", left_to_the_next_call="the rest")
        return
    latents = run.cached("latents", lambda: encode_all(preset, vae, pictures))
    del pictures
    scale = begun.vae.config.scaling_factor if begun else float(1 / latents.std())
    run.log(stage="latents", scaling_factor=scale, vocabulary=vocabulary)
    first = {name: begun.params[name] for name in ("unet", "text_encoder")} if begun else None
    data = jax.device_put((latents * np.float32(scale), texts().ids, texts().named))
    params = train_unet(run, data, vocabulary, first and jax.device_get(first), of_unet)
    del data
    with run.timed("export"):
        export(run, folder, params | {"vae": vae}, scale, vocabulary, words)
        card = functools.partial(write_card, run, folder, args.preset, args.start)
        card({})
    if rehearsal:
        rehearsal.result()
    measure(run, folder, bench(), card)
    run.log(stage="export", model=str(folder), stages=json.dumps(run.stages))


if __name__ == "__main__":
    main()
