"""Trains the embedded model: VAE, then latents encoded once, then text encoder and U-Net with EMA.

    python scripts/train_scenes.py --preset scenes-64 --out runs/scenes-64

One script for CPU, GPU and TPU. It resumes exactly where it stopped (Orbax checkpoints; every batch is a
function of the seed and the step), writes losses and picture grids on the way, and with `--export DIR`
writes the newest weights, in float16 and the diffusers layout, whenever it stops: at the end or when
`--minutes` run out, once the VAE is done. On a machine that is lent for a while, three commands of nine minutes:

    train="python scripts/train_scenes.py --preset scenes-128 --out runs/128 --export runs/128-fp16"
    $train --vae-minutes 7 --minutes 8.5
    $train --unet-minutes 14 --minutes 8.5
    $train --unet-minutes 14 --minutes 8.5
"""

import argparse
import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from PIL import Image
from scenes_presets import EDIT_SETTINGS, PRESETS, SCHEDULER, Preset

from uam_jax import scenes
from uam_jax.checkpoints.load import SETTINGS, Checkpoint, load_checkpoint
from uam_jax.checkpoints.tokenizer import Tokenizer
from uam_jax.checkpoints.weights import save_safetensors
from uam_jax.editor import Editor
from uam_jax.engine.parallel import Devices, program
from uam_jax.method.schedule import Schedule
from uam_jax.models import VAE, TextConfig, TextEncoder, UNet, UNetConfig, VAEConfig
from uam_jax.scenes.bpe import train_tokenizer


class Run:
    """A run's folder: data made once, checkpoints, log, and the clock."""

    def __init__(self, preset: Preset, args: argparse.Namespace):
        self.preset, self.folder, self.every = preset, args.out.resolve(), args.every
        self.vae_minutes, self.unet_minutes = args.vae_minutes, args.unet_minutes
        self.deadline = time.monotonic() + 60 * args.minutes
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = self.folder / "preset.json"
        text = json.dumps(dataclasses.asdict(preset), indent=1)
        if stored.exists() and stored.read_text() != text:
            raise SystemExit(f"{stored} holds another preset: choose another --out or delete it")
        stored.write_text(text)

    def cached(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if not path.exists():
            partial = path.with_suffix(".partial.npy")
            np.save(partial, make())
            partial.rename(path)
        return np.load(path, mmap_mode=None)

    def log(self, **row: Any) -> None:
        print(json.dumps(row), flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def fit(self, stage: str, steps: int, minutes: float, trial: Callable[[], None]) -> int:
        """How many steps a stage has: its preset's, or fewer if they would take longer than `minutes`.

        Decided once, by timing `trial` (a step) after it has compiled, and kept beside the checkpoints.
        """
        path = self.folder / f"{stage}-steps.json"
        if not path.exists():
            if np.isfinite(minutes):
                trial()
                began = time.monotonic()
                for _ in range(10):
                    trial()
                seconds = (time.monotonic() - began) / 10
                steps = max(20, min(steps, int(60 * minutes / seconds)))
                self.log(stage=stage, steps=steps, seconds_per_step=round(seconds, 4))
            path.write_text(json.dumps(steps))
        return json.loads(path.read_text())

    def train(
        self,
        stage: str,
        state: dict[str, Any],
        step_of: Callable[[dict[str, Any], int, int], tuple[dict[str, Any], dict[str, Any]]],
        steps: int,
        minutes: float,
        show: Callable[[dict[str, Any], int], None],
    ) -> tuple[dict[str, Any], bool]:
        """Runs a stage from its newest checkpoint; returns the state and whether the stage is done.

        `step_of(state, step, steps)` gives the next state, and may take the memory of the one before.
        """

        def trial() -> None:
            jax.block_until_ready(step_of(jax.tree.map(jnp.copy, state), 0, steps))

        steps = self.fit(stage, steps, minutes, trial)
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        with ocp.CheckpointManager(self.folder / stage, options=options) as manager:
            done = manager.latest_step() or 0
            if done:
                state = manager.restore(done, args=ocp.args.StandardRestore(state))
            losses: list[Any] = []
            began = time.monotonic()
            while done < steps and time.monotonic() < self.deadline:
                state, loss = step_of(state, done, steps)
                losses.append(loss)
                done += 1
                if done % 25 == 0 or done == steps:
                    means = jax.tree.map(lambda *x: round(float(np.mean(x)), 5), *losses)
                    seconds = round((time.monotonic() - began) / len(losses), 3)
                    self.log(stage=stage, step=done, seconds_per_step=seconds, **means)
                    losses, began = [], time.monotonic()
                if done % self.every == 0 or done == steps:
                    manager.save(done, args=ocp.args.StandardSave(state))
                    show(state, done)
            if manager.latest_step() != done:
                manager.save(done, args=ocp.args.StandardSave(state))
        return state, done >= steps


def save_grid(path: Path, pictures: np.ndarray, columns: int) -> None:
    """Writes pictures in [-1, 1] as a grid, row by row."""
    n, h, w, _ = pictures.shape
    grid = pictures.reshape(n // columns, columns, h, w, 3).swapaxes(1, 2)
    grid = np.clip(grid.reshape(-1, columns * w, 3) * 127.5 + 127.5, 0, 255).round()
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(grid.astype(np.uint8)).save(path)


def optimiser() -> optax.GradientTransformation:
    """AdamW at rate 1, gradients clipped by their global norm; `apply` takes the rate."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0, b2=0.99, weight_decay=0.01))


def apply(params: Any, updates: Any, rate: float, step: jax.Array, steps: jax.Array) -> Any:
    """Steps at a rate that warms up over at most 100 steps and then falls by a cosine to a fiftieth."""
    warm = jnp.minimum(100, steps // 5)
    along = jnp.clip((step - warm) / jnp.maximum(steps - warm, 1), 0, 1)
    falling = 0.02 + 0.98 * (1 + jnp.cos(jnp.pi * along)) / 2
    factor = rate * jnp.where(step < warm, step / warm, falling)
    return optax.apply_updates(params, jax.tree.map(lambda update: factor * update, updates))


def values_named(caption: str) -> list[int]:
    """The value of every attribute that the caption names, and one past the last for the others."""
    named = scenes.read_caption(caption)
    return [named.get(name, len(words)) for name, words in scenes.ATTRIBUTES.items()]


def as_floats(pictures: np.ndarray) -> np.ndarray:
    """uint8 -> [-1, 1]."""
    return pictures.astype(np.float32) / 127.5 - 1


def train_vae(run: Run, pictures: np.ndarray, index: int, params: Any) -> tuple[Any, bool]:
    """One phase: squared and absolute error, the error of finite differences, and a small KL term.

    Returns:
      The params, and whether the phase is done.
    """
    preset, phase = run.preset, run.preset.vae_phases[index]
    model = VAE(VAEConfig.from_dict(preset.vae))
    optimise = optimiser()

    def loss_of(params: Any, batch: jax.Array, key: jax.Array) -> Any:
        mean, log_variance = model.apply({"params": params}, batch, method="encode")
        noise = jax.random.normal(key, mean.shape)
        latent = mean + jnp.exp(0.5 * log_variance) * noise
        error = model.apply({"params": params}, latent, method="decode") - batch
        mse = jnp.mean(error**2)
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
        loss = mse + 0.1 * jnp.mean(jnp.abs(error)) + phase.kl_weight * kl
        edges = sum(jnp.mean(jnp.diff(error, axis=axis) ** 2) for axis in (1, 2))
        return loss + phase.detail * edges, {"mse": mse, "edges": edges, "kl": kl}

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, batch: jax.Array, step: jax.Array, steps: jax.Array) -> Any:
        key = jax.random.key(step)
        grads, seen = jax.grad(loss_of, has_aux=True)(state["params"], batch, key)
        updates, opt = optimise.update(grads, state["opt"], state["params"])
        params = apply(state["params"], updates, phase.rate, step, steps)
        return {"params": params, "opt": opt}, seen

    def step_of(state: Any, step: int, steps: int) -> Any:
        rng = np.random.default_rng((preset.seed, 1, index, step))
        rows = rng.integers(0, len(pictures), phase.batch)
        top, left = rng.integers(0, preset.size - phase.crop + 1, 2)
        crop = pictures[rows, top : top + phase.crop, left : left + phase.crop]
        return update(state, as_floats(crop), jnp.asarray(step), jnp.asarray(steps))

    reconstruct = jax.jit(lambda params, x: model.apply({"params": params}, x))

    def show(state: Any, step: int) -> None:
        truth = as_floats(pictures[:8])
        made = np.asarray(reconstruct(state["params"], truth))
        name = f"vae-{index}-{step:06d}.png"
        save_grid(run.folder / "grids" / name, np.concatenate([truth, made]), 8)

    if params is None:
        params = jax.jit(model.init)(jax.random.key(preset.seed), *model.example_inputs())["params"]
    state = {"params": params, "opt": optimise.init(params)}
    minutes = run.vae_minutes * phase.steps / sum(part.steps for part in preset.vae_phases)
    state, done = run.train(f"vae-{index}", state, step_of, phase.steps, minutes, show)
    return state["params"], done


@program(static=["size"], batched={"world": 0}, out=0)
def render(world: scenes.Scene, *, size: int) -> jax.Array:
    """Pictures as bytes."""
    return jnp.round((scenes.render(world, size=size) + 1) * 127.5).astype(jnp.uint8)


def render_all(world: scenes.Scene, size: int, chunk: int = 1024) -> np.ndarray:
    """Rendered on the CPUs (set JAX_NUM_CPU_DEVICES to their number): one ray after the other suits them."""
    # shard_map refuses the renderer's branches, of which some return constants.
    cpus = Devices(tuple(jax.devices("cpu")), "pmap")
    parts = []
    with jax.default_device(cpus.devices[0]):
        world = jax.tree.map(np.asarray, world)
        for first in range(0, len(world), chunk):
            parts.append(np.asarray(render(world[first : first + chunk], size=size, on=cpus)))
    return np.concatenate(parts)


def encode_all(run: Run, params: Any, pictures: np.ndarray) -> np.ndarray:
    """The posterior means of all pictures, unscaled."""
    model = VAE(VAEConfig.from_dict(run.preset.vae))
    encode = jax.jit(lambda x: model.apply({"params": params}, x, method="encode")[0])
    parts = [encode(as_floats(pictures[i : i + 64])) for i in range(0, len(pictures), 64)]
    return np.concatenate([np.asarray(part) for part in parts])


def train_unet(
    run: Run,
    latents: np.ndarray,
    ids: np.ndarray,
    null: np.ndarray,
    named: np.ndarray,
    first: dict[str, Any],
    show: Callable[[dict[str, Any], int], None],
) -> dict[str, Any]:
    """Noise prediction over text, with dropped captions and loss weights min(SNR, limit) / SNR.

    From noise prediction alone the text encoder learns to tell one word after the other apart, for
    thousands of steps. So every state from the end token on must also say, through linear heads that
    are thrown away, which values the caption named.

    Source of the weights: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy".

    Args:
      run: its preset says the rest.
      latents: of all pictures, scaled.
      ids: tokens, (pictures, phrasings, 77).
      null: tokens of the null prompt, (1, 77).
      named: `values_named` of the captions, (pictures, phrasings, attributes).
      first: params of `unet` and `text_encoder` to begin with; none begins with random ones.
      show: called with the state and step at every checkpoint.
    """
    preset = run.preset
    unet = UNet(UNetConfig.from_dict(preset.unet))
    text = TextEncoder(TextConfig.from_dict(preset.text(int(null.max()) + 1)))
    optimise = optimiser()
    alpha_bar = jnp.asarray(Schedule.from_config(SCHEDULER).alpha_bar, jnp.float32)

    classes = [len(words) + 1 for words in scenes.ATTRIBUTES.values()]

    def caption_loss(heads: Any, states: jax.Array, tokens: jax.Array, values: jax.Array) -> Any:
        after_end = (tokens == null.max()).astype(jnp.float32)
        logits = [states @ head for head in heads]
        errors = [
            optax.softmax_cross_entropy_with_integer_labels(
                logit, jnp.broadcast_to(values[:, i, None], tokens.shape)
            )
            for i, logit in enumerate(logits)
        ]
        return jnp.sum(sum(errors) * after_end) / jnp.sum(after_end)

    def loss_of(params: Any, latent: Any, tokens: Any, values: Any, key: jax.Array) -> Any:
        key_t, key_noise = jax.random.split(key)
        b = latent.shape[0]
        # One timestep out of each b-th of the range: less variance than b independent ones.
        strata = (jnp.arange(b) + jax.random.uniform(key_t, (b,))) / b
        timestep = jnp.minimum((strata * 1000).astype(jnp.int32), 999)
        level = alpha_bar[timestep][:, None, None, None]
        noise = jax.random.normal(key_noise, latent.shape)
        noisy = jnp.sqrt(level) * latent + jnp.sqrt(1 - level) * noise
        states = text.apply({"params": params["text_encoder"]}, tokens)
        predicted, _ = unet.apply({"params": params["unet"]}, noisy, timestep, states)
        squared = jnp.mean((predicted - noise) ** 2, axis=(1, 2, 3))
        snr = (level / (1 - level))[:, 0, 0, 0]
        loss = jnp.mean(jnp.minimum(snr, preset.snr_limit) / snr * squared)
        words = caption_loss(params["heads"], states, tokens, values)
        return loss + preset.caption_weight * words, {
            "loss": loss,
            "mse": jnp.mean(squared),
            "caption": words,
        }

    @functools.partial(jax.jit, donate_argnums=0)
    def update(
        state: Any, latent: Any, tokens: Any, values: Any, step: jax.Array, steps: jax.Array
    ) -> Any:
        key = jax.random.fold_in(jax.random.key(preset.seed), step)
        grads, seen = jax.grad(loss_of, has_aux=True)(state["params"], latent, tokens, values, key)
        updates, opt = optimise.update(grads, state["opt"], state["params"])
        params = apply(state["params"], updates, preset.unet_rate, step, steps)
        decay = jnp.minimum(preset.ema, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state["ema"], params)
        return {"params": params, "ema": ema, "opt": opt}, seen

    def step_of(state: Any, step: int, steps: int) -> Any:
        rng = np.random.default_rng((preset.seed, 2, step))
        rows = rng.integers(0, len(latents), preset.unet_batch)
        phrasing = rng.integers(0, ids.shape[1], preset.unet_batch)
        dropped = rng.random((len(rows), 1)) < preset.caption_dropout
        tokens = np.where(dropped, null, ids[rows, phrasing])
        values = np.where(dropped, np.array(classes) - 1, named[rows, phrasing])
        at = jnp.asarray(step), jnp.asarray(steps)
        return update(state, latents[rows], tokens, values, *at)

    def start() -> Any:
        keys = jax.random.split(jax.random.key(preset.seed))
        # Initialised outside jit: tracing all initialisers into one program compiles for minutes.
        params = first or {
            "unet": unet.init(keys[0], *unet.example_inputs())["params"],
            "text_encoder": text.init(keys[1], *text.example_inputs())["params"],
        }
        params["heads"] = [jnp.zeros((preset.text_width, count)) for count in classes]
        return {
            "params": params,
            "ema": jax.tree.map(jnp.copy, params),
            "opt": optimise.init(params),
        }

    return run.train("unet", start(), step_of, preset.unet_steps, run.unet_minutes, show)[0]


def assemble(
    run: Run, vae: Any, scaling_factor: float, tokenizer: Tokenizer, ema: Any
) -> tuple[Checkpoint, dict[str, Any]]:
    """The model as the library sees it, and its config files by their paths."""
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
    """Writes the diffusers layout: float16 weights in shards of at most 12 MB."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
    shutil.copytree(run.folder / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    words = ", ".join(f'"{word}"' for word in sorted(scenes.VOCABULARY))
    (folder / SETTINGS).write_text(
        f"# What the captions of the training say.\nwords = [{words}]\n\n{EDIT_SETTINGS}"
    )
    for component, params in checkpoint.params.items():
        for old in (folder / component).glob("*.safetensors*"):
            old.unlink()
        half = jax.tree.map(lambda x: np.asarray(x, np.float16), params)
        save_safetensors(half, folder / component, component, shard_bytes=11_900_000)
        for file in (folder / component).iterdir():
            file.chmod(0o644)


def show_samples(run: Run, checkpoint: Checkpoint, step: int, count: int = 32) -> None:
    """Draws captions that training has not seen as such; logs how many show object and colour."""
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
        "--out", type=Path, required=True, help="the run's folder; resumed if it exists"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop in good order after so long"
    )
    for stage in ("vae", "unet"):
        parser.add_argument(
            f"--{stage}-minutes",
            type=float,
            default=float("inf"),
            help="train it in fewer steps than the preset's if those took longer; decided once",
        )
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument(
        "--export", type=Path, help="write the checkpoint in the diffusers layout there"
    )
    parser.add_argument(
        "--start", help="begin with this model's VAE, U-Net and text encoder, as `scenes`"
    )
    parser.add_argument("--steps", dest="unet_steps", type=int, help="of the U-Net's training")
    parser.add_argument("--rate", dest="unet_rate", type=float, help="its highest learning rate")
    parser.add_argument("--seed", type=int, help="of weights, batches and noise")
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
