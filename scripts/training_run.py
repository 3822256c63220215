"""Resumable training: a run's folder with its checkpoints and log, its time limits, and the optimiser."""

import argparse
import dataclasses
import json
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
from scenes_presets import Preset


class Run:
    """A training run: its folder with data, checkpoints and log, and its time limits."""

    def __init__(self, preset: Preset, args: argparse.Namespace):
        self.preset, self.folder, self.every = preset, args.out.resolve(), args.every
        self.vae_minutes, self.unet_minutes = args.vae_minutes, args.unet_minutes
        self.deadline = time.monotonic() + 60 * args.minutes
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = self.folder / "preset.json"
        text = json.dumps(dataclasses.asdict(preset), indent=1)
        if stored.exists() and stored.read_text() != text:
            raise SystemExit(
                f"{stored} belongs to another preset: choose another --out, or delete the folder"
            )
        stored.write_text(text)

    def cached(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that is made once and then read from the folder."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            partial = path.with_suffix(".partial.npy")
            np.save(partial, make())
            partial.rename(path)
        return np.load(path, mmap_mode=None)

    def log(self, **row: Any) -> None:
        """Prints a row and appends it to `log.jsonl`."""
        print(json.dumps(row), flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def fit(self, stage: str, steps: int, minutes: float, trial: Callable[[], None]) -> int:
        """The number of steps of a stage: `steps`, or fewer if these would take longer than `minutes`.

        It is decided once, by timing `trial` (one step) after its compilation, and kept beside the checkpoints.
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
        """Runs a stage from its newest checkpoint; returns the state and whether the stage is complete.

        `step_of(state, step, steps)` returns the next state and the losses; it may reuse the memory of `state`.
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
    """Writes pictures in [-1, 1] as a grid with so many columns."""
    n, h, w, _ = pictures.shape
    grid = pictures.reshape(n // columns, columns, h, w, 3).swapaxes(1, 2)
    grid = np.clip(grid.reshape(-1, columns * w, 3) * 127.5 + 127.5, 0, 255).round()
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(grid.astype(np.uint8)).save(path)


def optimiser() -> optax.GradientTransformation:
    """AdamW with a learning rate of 1, which `apply` scales; gradients are clipped by their global norm."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0, b2=0.99, weight_decay=0.01))


def apply(params: Any, updates: Any, rate: float, step: jax.Array, steps: jax.Array) -> Any:
    """Updates params at a rate that warms up over at most 100 steps and then falls by a cosine to a fiftieth."""
    warm = jnp.minimum(100, steps // 5)
    along = jnp.clip((step - warm) / jnp.maximum(steps - warm, 1), 0, 1)
    falling = 0.02 + 0.98 * (1 + jnp.cos(jnp.pi * along)) / 2
    factor = rate * jnp.where(step < warm, step / warm, falling)
    return optax.apply_updates(params, jax.tree.map(lambda update: factor * update, updates))
