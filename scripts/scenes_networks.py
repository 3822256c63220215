"""Training of the embedded model's networks: the VAE, then the U-Net with the text encoder."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scenes_presets import SCHEDULER
from training_run import Run, apply, optimiser, save_grid

from uam_jax import scenes
from uam_jax.method.schedule import Schedule
from uam_jax.models import VAE, TextConfig, TextEncoder, UNet, UNetConfig, VAEConfig


def values_named(caption: str) -> list[int]:
    """The value of every attribute that the caption names; the number of values for each other attribute."""
    named = scenes.read_caption(caption)
    return [named.get(name, len(words)) for name, words in scenes.ATTRIBUTES.items()]


def as_floats(pictures: np.ndarray) -> np.ndarray:
    """uint8 pictures as float32 in [-1, 1]."""
    return pictures.astype(np.float32) / 127.5 - 1


def train_vae(run: Run, pictures: np.ndarray, index: int, params: Any) -> tuple[Any, bool]:
    """Trains one phase: squared and absolute error, the error of finite differences, and a small KL term.

    Returns:
      The params, and whether the phase is complete.
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
    """Trains U-Net and text encoder to predict noise, with dropped captions and loss weights min(SNR, limit) / SNR.

    Noise prediction alone needs thousands of steps until the text encoder distinguishes the words. A second
    loss shortens this: linear heads, which are discarded later, predict the values that the caption names from
    every state from the end token on.

    Source of the weights: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy".

    Args:
      run: whose preset holds the other parameters.
      latents: of all pictures, scaled.
      ids: tokens, (pictures, phrasings, 77).
      null: tokens of the null prompt, (1, 77).
      named: `values_named` of the captions, (pictures, phrasings, attributes).
      first: initial params of `unet` and `text_encoder`; random ones if empty.
      show: called with the state and the step at every checkpoint.
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
        # One timestep from each b-th part of the range has less variance than b independent ones.
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
