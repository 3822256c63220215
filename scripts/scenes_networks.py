"""Training of the embedded model's networks: the VAE, then the U-Net with the text encoder.

A stage is a function of several steps, compiled once: each step draws its batch from data that lie on the device, by
random numbers that depend on the seed and the step alone, so that a run can stop and resume anywhere.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from scenes_presets import PHRASES, SCHEDULER, Phase, Preset
from training_run import Advance, Run, apply, optimiser, traced_plainly

from uam_jax import scenes
from uam_jax.checkpoints.tokenizer import Tokenizer
from uam_jax.method.schedule import Schedule
from uam_jax.models import VAE, TextConfig, TextEncoder, UNet, UNetConfig, VAEConfig
from uam_jax.models.layers import expected_params
from uam_jax.runtime.platforms import default_device

CLASSES = [len(words) + 1 for words in scenes.ATTRIBUTES.values()]
"""For every attribute the number of its values, and one more for a caption that does not name it."""
CLASSES[0] += 1  # An empty table is a value of the shape.


def initialised(module: nn.Module, seed: tuple[int, ...]) -> Any:
    """Random weights in NumPy, the same on every machine: kernels scaled by their inputs, norms that change nothing."""
    rng = np.random.default_rng(seed)

    def weight(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        match path[-1].key:
            case "kernel":
                deviation = math.prod(leaf.shape[:-1]) ** -0.5
            case "embedding":
                deviation = leaf.shape[-1] ** -0.5
            case name:
                return np.full(leaf.shape, float(name == "scale"), np.float32)
        return deviation * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(weight, expected_params(module))


def unmoved(optimise: optax.GradientTransformation, params: Any) -> Any:
    """The optimiser's state before the first step: zeros, in NumPy."""
    shapes = jax.eval_shape(optimise.init, params)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


class Steps:
    """A call, an `Advance`, of `count` steps of `step_of(state, data, step, steps) -> (state, losses)`.

    An accelerator gets them as one program. A CPU gets them one by one, since XLA computes the gradients of
    convolutions ten times more slowly on it inside of a loop.
    """

    def __init__(self, step_of: Callable[..., Any], count: int):
        def scanned(state: Any, data: Any, first: jax.Array, steps: jax.Array) -> Any:
            def step(state: Any, number: jax.Array) -> Any:
                return step_of(state, data, number, steps)

            return lax.scan(step, state, first + jnp.arange(count))

        self.count, self.single = count, default_device().platform == "cpu"
        self.program: Any = jax.jit(
            traced_plainly(step_of if self.single else scanned), donate_argnums=0
        )

    def compiled(self, state: Any, data: Any) -> Self:
        """Compiles the program for a state and data of these shapes, which may be shapes alone."""
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (state, data)
        )
        number = jax.ShapeDtypeStruct((), jnp.int32)
        self.program = self.program.lower(*shapes, number, number).compile()
        return self

    def __call__(self, state: Any, data: Any, first: jax.Array, steps: jax.Array) -> Any:
        if not self.single:
            return self.program(state, data, first, steps)
        losses = []
        for number in range(self.count):
            state, seen = self.program(state, data, first + number, steps)
            losses.append(seen)
        return state, jax.tree.map(lambda *each: jnp.stack(each), *losses)


def as_floats(pictures: jax.Array) -> jax.Array:
    """uint8 pictures as float32 in [-1, 1]."""
    return pictures.astype(jnp.float32) / 127.5 - 1


# The VAE


def vae_steps(preset: Preset, index: int, dtype: Any) -> Steps:
    """Steps of a phase: squared and absolute error, the error of finite differences, and a small KL term.

    The data are pictures in uint8.
    """
    phase: Phase = preset.vae_phases[index]
    model, optimise = VAE(VAEConfig.from_dict(preset.vae), dtype), optimiser()

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

    def step_of(state: Any, pictures: jax.Array, step: jax.Array, steps: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.key(preset.seed), 1 + index)
        for_rows, for_place, for_noise = jax.random.split(jax.random.fold_in(key, step), 3)
        rows = jax.random.randint(for_rows, (phase.batch,), 0, len(pictures))
        top, left = jax.random.randint(for_place, (2,), 0, preset.size - phase.crop + 1)
        crop = (phase.batch, phase.crop, phase.crop, 3)
        batch = as_floats(lax.dynamic_slice(pictures[rows], (0, top, left, 0), crop))
        grads, seen = jax.grad(loss_of, has_aux=True)(state["params"], batch, for_noise)
        updates, opt = optimise.update(grads, state["opt"], state["params"])
        params = apply(state["params"], updates, phase.rate, step, steps)
        return {"params": params, "opt": opt}, seen

    return Steps(step_of, preset.steps_per_call)


def vae_state(preset: Preset, params: Any = None) -> Any:
    """The state of a phase before its first step; random weights where none are given."""
    if params is None:
        params = initialised(VAE(VAEConfig.from_dict(preset.vae)), (preset.seed, 0))
    return {"params": params, "opt": unmoved(optimiser(), params)}


def vae_program(run: Run, index: int) -> Advance:
    """The compiled steps of a phase."""
    preset = run.preset
    pictures = jax.ShapeDtypeStruct((preset.pictures, preset.size, preset.size, 3), jnp.uint8)
    return vae_steps(preset, index, run.dtype).compiled(vae_state(preset), pictures)


def train_vae(
    run: Run, pictures: jax.Array | None, programs: Sequence[Callable[[], Advance]]
) -> Any:
    """Trains all phases; returns the params in NumPy, or None if the time is over before they are complete.

    Args:
      run: with the preset.
      pictures: in uint8; complete phases need none.
      programs: give the steps of each phase.
    """
    params = None
    for index, (phase, program) in enumerate(zip(run.preset.vae_phases, programs, strict=True)):
        state, complete = run.train(
            f"vae-{index}",
            vae_state(run.preset, params),
            pictures,
            program,
            steps=phase.steps,
            end=phase.end,
        )
        if not complete:
            return None
        params = jax.device_get(state["params"])
    return params


def encode_all(preset: Preset, params: Any, pictures: jax.Array, chunk: int = 32) -> np.ndarray:
    """The posterior means of all pictures, unscaled."""
    model = VAE(VAEConfig.from_dict(preset.vae))

    @jax.jit
    @traced_plainly
    def encode(params: Any, part: jax.Array) -> jax.Array:
        return model.apply({"params": params}, as_floats(part), method="encode")[0]

    params = jax.device_put(params)
    parts = [encode(params, pictures[i : i + chunk]) for i in range(0, len(pictures), chunk)]
    return np.concatenate([np.asarray(part) for part in parts])


# The U-Net with the text encoder


def unet_steps(preset: Preset, vocabulary: int, null: np.ndarray, dtype: Any) -> Steps:
    """Steps of the noise's prediction, with dropped captions and loss weights min(SNR, limit) / SNR.

    Noise prediction alone needs thousands of steps until the text encoder distinguishes the words. A second
    loss shortens this: linear heads, which are discarded later, predict the values that the caption names from
    every state from the end token on.

    The data are scaled latents (n, h, w, c), token ids of several captions each (n, captions, 77), and the
    values that these name (n, captions, attributes).

    Source of the weights: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy".
    """
    unet = UNet(UNetConfig.from_dict(preset.unet), dtype, backend="xla")
    # In float32, since the gradient of an embedding sums up that of thousands of tokens.
    text = TextEncoder(TextConfig.from_dict(preset.text(vocabulary)))
    optimise, alpha_bar = optimiser(), jnp.float32(Schedule.from_config(SCHEDULER).alpha_bar)
    unnamed, end = np.asarray(CLASSES) - 1, int(null.max())

    def caption_loss(heads: Any, states: jax.Array, tokens: jax.Array, values: jax.Array) -> Any:
        after_end = (tokens == end).astype(jnp.float32)
        errors = [
            optax.softmax_cross_entropy_with_integer_labels(
                states @ head, jnp.broadcast_to(values[:, i, None], tokens.shape)
            )
            for i, head in enumerate(heads)
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

    def step_of(state: Any, data: Any, step: jax.Array, steps: jax.Array) -> Any:
        latents, ids, named = data
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(preset.seed), 0), step)
        for_rows, for_phrases, for_drops, for_loss = jax.random.split(key, 4)
        rows = jax.random.randint(for_rows, (preset.unet_batch,), 0, len(latents))
        phrases = jax.random.randint(for_phrases, rows.shape, 0, ids.shape[1])
        dropped = jax.random.uniform(for_drops, (len(rows), 1)) < preset.caption_dropout
        tokens = jnp.where(dropped, null, ids[rows, phrases])
        values = jnp.where(dropped, unnamed, named[rows, phrases])
        grads, seen = jax.grad(loss_of, has_aux=True)(
            state["params"], latents[rows], tokens, values, for_loss
        )
        updates, opt = optimise.update(grads, state["opt"], state["params"])
        params = apply(state["params"], updates, preset.unet_rate, step, steps)
        decay = jnp.minimum(preset.ema, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state["ema"], params)
        return {"params": params, "ema": ema, "opt": opt}, seen

    return Steps(step_of, preset.steps_per_call)


def unet_state(preset: Preset, vocabulary: int, first: Any = None) -> Any:
    """The state before the first step, from weights of both networks if they are given."""
    params = first or {
        "unet": initialised(UNet(UNetConfig.from_dict(preset.unet)), (preset.seed, 1)),
        "text_encoder": initialised(
            TextEncoder(TextConfig.from_dict(preset.text(vocabulary))), (preset.seed, 2)
        ),
    }
    heads = [np.zeros((preset.text_width, count), np.float32) for count in CLASSES]
    params = params | {"heads": heads}
    return {"params": params, "ema": params, "opt": unmoved(optimiser(), params)}


def unet_program(run: Run, tokenizer: Tokenizer) -> Advance:
    """The compiled steps of U-Net and text encoder."""
    preset, n = run.preset, run.preset.pictures
    vocabulary, [null] = tokenizer.vocab_size, tokenizer.encode([""])
    data = (
        jax.ShapeDtypeStruct((n, preset.side, preset.side, preset.latent_channels), jnp.float32),
        jax.ShapeDtypeStruct((n, PHRASES, len(null)), jnp.int32),
        jax.ShapeDtypeStruct((n, PHRASES, len(CLASSES)), jnp.int32),
    )
    steps = unet_steps(preset, vocabulary, null, run.dtype)
    return steps.compiled(unet_state(preset, vocabulary), data)


def train_unet(
    run: Run, data: Any, vocabulary: int, first: Any, program: Callable[[], Advance]
) -> Any:
    """Trains U-Net and text encoder; returns the mean of their weights over the steps (EMA), in NumPy."""
    state, _ = run.train(
        "unet",
        unet_state(run.preset, vocabulary, first),
        data,
        program,
        steps=run.preset.unet_steps,
        end=run.preset.unet_end,
    )
    ema = jax.device_get(state["ema"])
    return {name: ema[name] for name in ("unet", "text_encoder")}
