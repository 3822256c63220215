"""Resumable training: a run's folder with its checkpoints and log, its time budget, and the optimiser."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from PIL import Image
from scenes_presets import Preset

from uam_jax.runtime.platforms import Platform, default_device, tracing_for

Advance = Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, Any]]
"""`(state, data, first step, all steps) -> (state, losses of each step)`: several steps in one program."""

_LOG_SECONDS, _TRIAL_SECONDS = 5.0, 2.0
_MARGIN = 0.97
"""Share of the time that a trial's number of steps fills: later steps are a little slower than a trial's."""


class Run:
    """A training run: its folder with data, checkpoints and log, and its time budget.

    Attributes:
      preset: all parameters; a folder keeps those that it was begun with.
      folder: of the run.
      dtype: in which networks compute while they are trained; weights and optimiser are float32.
      every: seconds between two checkpoints.
    """

    def __init__(
        self, preset: Preset, folder: Path, *, minutes: float, dtype: str | None, every: float
    ):
        self.preset, self.folder, self.every = preset, folder.resolve(), every
        self.began, self.seconds = time.monotonic(), 60 * minutes
        usual = "float32" if default_device().platform == "cpu" else "bfloat16"
        self.dtype = jnp.dtype(dtype or usual)
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = self.folder / "preset.json"
        text = json.dumps(dataclasses.asdict(preset), indent=1)
        if stored.exists() and stored.read_text() != text:
            raise SystemExit(
                f"{stored} belongs to another preset: choose another --out, or delete the folder"
            )
        stored.write_text(text)

    @property
    def budgeted(self) -> bool:
        """Whether the run has a time limit."""
        return math.isfinite(self.seconds)

    def left(self, end: float = 1.0) -> float:
        """Seconds until this share of the time budget is used."""
        return self.began + end * self.seconds - time.monotonic()

    def has(self, name: str) -> bool:
        """Whether `cached` has an array of this name."""
        return (self.folder / f"{name}.npy").exists()

    def cached(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that is made once and then read from the folder."""
        path = self.folder / f"{name}.npy"
        if self.has(name):
            return np.load(path)
        with self.timed(name):
            made, partial = make(), path.with_suffix(".partial.npy")
            np.save(partial, made)
            partial.rename(path)
        return made

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Logs how long a stage takes."""
        began = time.monotonic()
        yield
        self.log(stage=stage, seconds=round(time.monotonic() - began, 1))

    def log(self, **row: Any) -> None:
        """Prints a row, with the seconds since the start, and appends it to `log.jsonl`."""
        row = {"at": round(time.monotonic() - self.began, 1), **row}
        print(json.dumps(row), flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The steps, seconds and last losses of every trained stage."""
        path = self.folder / "stages.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def finished(self, stage: str) -> bool:
        """Whether all steps of a stage are made."""
        made = self.stages.get(stage, {})
        return made.get("done", 0) >= made.get("steps", math.inf)

    def note(self, stage: str, **values: Any) -> None:
        """Keeps values of a stage."""
        stages = self.stages
        stages[stage] = stages.get(stage, {}) | values
        partial = self.folder / "stages.partial.json"
        partial.write_text(json.dumps(stages, indent=1))
        partial.rename(self.folder / "stages.json")

    def train(
        self,
        stage: str,
        state: Any,
        data: Any,
        program: Callable[[], Advance],
        *,
        steps: int,
        end: float,
    ) -> tuple[Any, bool]:
        """Runs a stage from its newest checkpoint; returns the state and whether the stage is complete.

        Under a time budget, the steps are as many as fit until its share `end` is used, at most `steps`, so that
        the learning-rate cycle completes. A trial decides it, and every log corrects it in both directions, since
        a compilation at the same time may slow down some of the steps.

        Args:
          stage: its name.
          state: as it is before the first step, in NumPy.
          data: that the steps draw from.
          program: gives the steps, and waits for them where they are still compiled.
          steps: of the whole stage.
          end: share of the time budget at which it ends.
        """
        count = self.preset.steps_per_call
        steps = self.stages.get(stage, {}).get("steps") or math.ceil(steps / count) * count
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        with ocp.CheckpointManager(self.folder / stage, options=options) as manager:
            done = manager.latest_step() or 0
            if done:
                state = manager.restore(done, args=ocp.args.StandardRestore(state))
            most = steps
            if done < steps:
                with self.timed(f"{stage}: wait for its program"):
                    advance = program()
                if self.budgeted:
                    seconds = self._trial(advance, state, data)
                    steps = self._fitting(most, done, _MARGIN * self.left(end) / seconds)
                    self.log(stage=stage, of=steps, seconds_per_step=round(seconds / count, 5))
            self.note(stage, steps=steps)
            state = on_device(state)
            pending: list[Any] = []
            logged = kept = time.monotonic()
            since = done
            while done < steps and self.left() > 0:
                state, losses = advance(state, data, jnp.int32(done), jnp.int32(steps))
                done += count
                # The host waits for the call before, so that the device always has the next one.
                jax.block_until_ready(pending[-1:])
                pending.append(losses)
                now = time.monotonic()
                if now - logged > _LOG_SECONDS or done >= steps:
                    means = jax.tree.map(lambda *x: round(float(np.mean(x)), 5), *pending)
                    seconds = (time.monotonic() - logged) / (done - since)
                    if done < steps:
                        steps = self._fitting(most, done, self.left(end) / (seconds * count))
                    means["seconds_per_step"] = round(seconds, 5)
                    self.log(stage=stage, step=done, of=steps, **means)
                    self.note(stage, steps=steps, done=done, **means)
                    pending, since, logged = [], done, time.monotonic()
                if now - kept > self.every and done < steps:
                    manager.save(done, args=ocp.args.StandardSave(state))
                    kept = now
            if manager.latest_step() != done:
                manager.save(done, args=ocp.args.StandardSave(state))
        return state, done >= steps

    def _trial(self, advance: Advance, state: Any, data: Any) -> float:
        """Seconds of one call."""

        def call() -> float:
            given = jax.block_until_ready(on_device(state))
            began = time.monotonic()
            jax.block_until_ready(advance(given, data, jnp.int32(0), jnp.int32(1000)))
            return time.monotonic() - began

        seconds = [call()]
        while sum(seconds) < _TRIAL_SECONDS and len(seconds) < 5:
            seconds.append(call())
        return min(seconds)

    def _fitting(self, most: int, done: int, calls: float) -> int:
        """The number of steps: `most`, or as many as fit into so many further calls, but at least one of these."""
        if not math.isfinite(calls):
            return most
        return min(most, done + max(1, int(calls)) * self.preset.steps_per_call)


def on_device(tree: Any) -> Any:
    """A copy of a tree of NumPy arrays on the default device, whose memory a program may take."""
    return jax.device_put(jax.tree.map(np.array, tree))


def traced_plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, traced for a device of the present kind without fused attention.

    Fused kernels have conditions on shapes, and on their gradients' shapes; these networks' maps are small.
    """

    def traced(*args: Any) -> Any:
        with tracing_for(Platform(default_device().platform)):
            return function(*args)

    return traced


def save_grid(path: Path, pictures: np.ndarray, columns: int) -> None:
    """Writes pictures in [-1, 1] as a grid with so many columns."""
    n, h, w, _ = pictures.shape
    grid = pictures.reshape(n // columns, columns, h, w, 3).swapaxes(1, 2)
    grid = np.clip(grid.reshape(-1, columns * w, 3) * 127.5 + 127.5, 0, 255).round()
    path.parent.mkdir(parents=True, exist_ok=True)
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
