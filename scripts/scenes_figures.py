"""Figures of a trained model on Scenes-Bench's tune third, each kept as soon as it is measured."""

import functools
import json
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from scenes_export import export
from scenes_networks import unet_state, vae_state
from training_run import Run, save_grid

from uam_jax import Editor, scenes
from uam_jax.evaluation.metrics import psnr
from uam_jax.evaluation.reconstruction import Reconstruction, invert, prompts_of
from uam_jax.evaluation.scenes_bench import Items, Truth, draw_items, render_truth
from uam_jax.evaluation.scores import score_edits

_SHOWN = 8
_NAMED = ("shape", "colour", "surface", "wall")
_RECONSTRUCTIONS = {
    "source prompt": Reconstruction("source", 50),
    "null prompt": Reconstruction("null", 50),
    "uniform maps": Reconstruction("null", 50, uniform="all"),
}


class Bench(NamedTuple):
    """Items of Scenes-Bench with their exact answers."""

    items: Items
    truth: Truth


def draw_bench(count: int, size: int) -> Bench:
    """So many items of the tune third; rendered on the CPU, so that an accelerator is free meanwhile."""
    with _on_the_cpu():
        items = draw_items().select(["tune"], count)
        return Bench(items, render_truth(items, size))


def _on_the_cpu() -> Any:
    return jax.default_device(jax.local_devices(backend="cpu")[0])


Part = Callable[[], tuple[dict[str, float], np.ndarray]]
"""Measures some figures; returns them, and pictures to look at."""


def rehearse(run: Run, bench: Callable[[], Bench], vocabulary: int, tokenizer: Path) -> None:
    """Measures a model with random weights, and so compiles the programs of the figures ahead of time.

    Only encoder and decoder, whose programs know the latents' scale, are compiled once more.

    Args:
      run: whose preset describes the networks.
      bench: gives the items that the trained model is measured on.
      vocabulary: number of the tokens.
      tokenizer: the folder of its files.
    """
    params = unet_state(run.preset, vocabulary)["params"]
    params = {name: params[name] for name in ("unet", "text_encoder")}
    params["vae"] = vae_state(run.preset)["params"]
    items = bench()
    with run.timed("rehearsal of the figures"), tempfile.TemporaryDirectory() as folder:
        export(run, Path(folder), params, 1.0, vocabulary, tokenizer)
        parts = parts_of(Editor.load(folder, dtype="float32"), *items)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda part: part(), parts.values()))


def measure(run: Run, model: Path, bench: Bench, card: Callable[[dict[str, Any]], None]) -> None:
    """Measures what the run's folder lacks if there is time.

    Args:
      run: whose folder keeps figures.json and grid.png.
      model: the folder of the model, which gets both as well.
      bench: on which it is measured.
      card: writes the model's card with the number of items, the weights and the parts measured so far.
    """
    editor, folder = Editor.load(model, dtype="float32"), run.folder / "figures"
    path = run.folder / "figures.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("weights") != editor.weights_hash:
        found = {"weights": editor.weights_hash, "items": len(bench.items), "parts": {}}
    parts = parts_of(editor, *bench)
    wanted = [name for name in parts if name not in found["parts"]] if run.left() > 0 else []

    def measured(name: str) -> tuple[str, dict[str, float], np.ndarray]:
        with run.timed(f"figures: {name}"):
            return name, *parts[name]()

    with ThreadPoolExecutor() as pool:  # Their programs are compiled at the same time.
        for part in as_completed([pool.submit(measured, name) for name in wanted]):
            name, values, pictures = part.result()
            found["parts"][name] = {key: round(float(value), 4) for key, value in values.items()}
            run.log(stage="figures", part=name, **found["parts"][name])
            save_grid(folder / f"{name}.png", pictures, _SHOWN)
            _keep(found, folder, [run.folder, model], parts)
            card(found)
    _keep(found, folder, [run.folder, model], parts)
    card(found)
    if missing := [name for name in parts if name not in found["parts"]]:
        run.log(stage="figures", left_to_the_next_call=missing)


def _keep(found: dict[str, Any], folder: Path, places: list[Path], order: Iterable[str]) -> None:
    """Writes the figures and one grid of the parts' pictures."""
    strips = [folder / f"{part}.png" for part in order if part in found["parts"]]
    for place in places if strips else ():
        grid = np.concatenate([np.asarray(Image.open(strip)) for strip in strips])
        Image.fromarray(grid).save(place / "grid.png")
        (place / "figures.json").write_text(json.dumps(found, indent=1) + "\n")


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, computed once for the same arguments, also where several threads ask for it."""
    lock, cached = threading.Lock(), functools.cache(function)

    def call(*args: Any) -> Any:
        with lock:
            return cached(*args)

    return call


def parts_of(editor: Editor, items: Items, truth: Truth) -> dict[str, Part]:
    """All figures, in the order in which they are measured."""

    @once
    def encoded() -> tuple[Any, np.ndarray]:
        """Latents, and the VAE's pictures: no reconstruction can come closer to the source."""
        z0 = editor.encode(truth.sources)
        return z0, np.asarray(editor.decode(z0))

    def vae() -> tuple[dict[str, float], np.ndarray]:
        quality = psnr(encoded()[1], truth.sources)
        shown = np.concatenate([truth.sources[:_SHOWN], encoded()[1][:_SHOWN]])
        return {"PSNR (dB)": quality.mean(), "worst PSNR (dB)": quality.min()}, shown

    def generation() -> tuple[dict[str, float], np.ndarray]:
        made = np.asarray(editor.generate(scenes.captions(items.before), steps=25))
        with _on_the_cpu():
            seen = scenes.nearest_attributes(made)
        right = {
            name: np.asarray(getattr(seen, name)) == np.asarray(getattr(items.before, name))
            for name in _NAMED
        }
        right["all four"] = np.all([*right.values()], axis=0)
        return {f"{name} as captioned": of.mean() for name, of in right.items()}, made[:_SHOWN]

    def reconstruction() -> tuple[dict[str, float], np.ndarray]:
        values: dict[str, float] = {}
        for name, method in _RECONSTRUCTIONS.items():
            inversion = invert(editor, method, encoded()[0], prompts_of(method, items))
            made = np.asarray(editor.reconstruct(inversion))
            quality = psnr(made, encoded()[1])
            values |= {
                f"{name}, PSNR to the VAE's picture (dB)": quality.mean(),
                f"{name}, share below 30 dB": (quality < 30).mean(),
            }
        return values, made[:_SHOWN]

    def edits() -> tuple[dict[str, float], np.ndarray]:
        result = editor.edit_latents(
            encoded()[0], list(items.targets), list(items.sources), images=truth.sources
        )
        made = np.asarray(result.images, np.float32)
        free = np.asarray(result.masks, np.float32)
        threshold = editor.default_config.mask.threshold
        scores = score_edits(made, free, truth, threshold=threshold)
        ceiling = psnr(encoded()[1], truth.sources, ~truth.region)
        values = {
            "success": scores["success"].mean(),
            "background PSNR (dB)": np.nanmean(scores["background_psnr"]),
            "the VAE's background PSNR (dB)": np.nanmean(ceiling),
        }
        for kind in dict.fromkeys(items.kinds):
            values[f"success, {kind}"] = scores["success"][np.array(items.kinds) == kind].mean()
        return values, np.concatenate([made[:_SHOWN], truth.answers[:_SHOWN]])

    return {"vae": vae, "generation": generation, "reconstruction": reconstruction, "edits": edits}
