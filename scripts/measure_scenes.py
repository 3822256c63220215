"""Measures the embedded model on unseen scenes, and with `--write` puts the figures into README and model card.

    python scripts/measure_scenes.py --write

Every figure is a mean over scenes that training has not seen; exact answers are rendered. It also searches
the numbers by which `compose.soft_mask` turns the share of free steps into a region, by their agreement
with the exact mask.
"""

import argparse
import dataclasses
import itertools
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uam_jax import EditConfig, Editor, scenes
from uam_jax.compose import soft_mask
from uam_jax.metrics import psnr

ROOT = Path(__file__).resolve().parents[1]
_DRAW = 104_729  # keeps these scenes apart from those of the training and of the demo
_CHUNK = 16
EDITED = ("shape", "colour", "surface", "wall")


def in_chunks(function: Callable[..., np.ndarray], *columns: Sequence[Any]) -> np.ndarray:
    """Applies a batched function to equal parts, so that it compiles once."""
    parts = range(0, len(columns[0]), _CHUNK)
    return np.concatenate(
        [np.asarray(function(*(column[i : i + _CHUNK] for column in columns))) for i in parts]
    )


def measure_vae(editor: Editor, count: int) -> dict[str, Any]:
    world = scenes.sample(jax.random.key(_DRAW), count)
    truth = scenes.render_in_chunks(world, size=editor.native_size)
    values = psnr(in_chunks(lambda x: editor.decode(editor.encode(x)), truth), truth)
    return {"PSNR": f"{values.mean():.2f} dB", "worst of all": f"{values.min():.2f} dB"}


def measure_generation(editor: Editor, count: int) -> dict[str, Any]:
    world = scenes.sample(jax.random.key(_DRAW + 1), count, empty=0.0)
    made = in_chunks(lambda texts: editor.generate(texts, seed=1), scenes.captions(world))
    named = scenes.nearest_attributes(made)
    right = {a: np.asarray(getattr(named, a)) == np.asarray(getattr(world, a)) for a in EDITED}
    both = right["shape"] & right["colour"]
    shares = {"object and colour": both} | {
        ("object" if a == "shape" else a): r for a, r in right.items()
    }
    return {name: f"{100 * share.mean():.0f} %" for name, share in shares.items()}


def measure_reconstruction(editor: Editor, count: int) -> dict[str, Any]:
    world = scenes.sample(jax.random.key(_DRAW + 2), count)
    truth = scenes.render_in_chunks(world, size=editor.native_size)
    texts = scenes.captions(world)
    values = {}
    for name, told, uniformity, guidance in (
        ("source prompt", True, 0.0, 1.0),
        ("null prompt", False, 0.0, 1.0),
        ("uniform maps", False, 1.0, 1.0),
        ("source prompt, guidance 7.5", True, 0.0, 7.5),
    ):

        def run(pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
            z0 = editor.encode(pictures)
            inversion = editor.invert(z0, prompts if told else "", uniformity=uniformity)  # noqa: B023
            made = editor.reconstruct(inversion, guidance=guidance)  # noqa: B023
            return psnr(np.asarray(made), np.asarray(editor.decode(z0)))

        values[name] = f"{in_chunks(run, truth, texts).mean():.2f} dB"
    return values


def edits(count: int) -> tuple[scenes.Scene, scenes.Scene, list[str]]:
    """Scenes, the same with one attribute changed, and which: each of `EDITED` in turn."""
    world = scenes.sample(jax.random.key(_DRAW + 3), count, empty=0.0)
    rng = np.random.default_rng(_DRAW)
    after, changed = [], []
    for i in range(count):
        attribute = EDITED[i % len(EDITED)]
        values = len(scenes.ATTRIBUTES[attribute])
        value = (int(getattr(world, attribute)[i]) + rng.integers(1, values)) % values
        after.append(world[i : i + 1].replace(**{attribute: int(value)}))
        changed.append(attribute)
    return world, scenes.concatenate(*after), changed


def run_edits(
    editor: Editor, config: EditConfig, before: scenes.Scene, after: scenes.Scene
) -> tuple[np.ndarray, np.ndarray]:
    """The edited pictures and the masks."""
    pictures = scenes.render_in_chunks(before, size=editor.native_size)
    texts, targets = scenes.captions(before), scenes.captions(after)
    images, masks = [], []
    for i in range(0, len(pictures), _CHUNK):
        part = slice(i, i + _CHUNK)
        told = texts[part] if config.source_context == "prompt" else None
        result = editor.edit(pictures[part], targets[part], told, config=config)
        images.append(np.asarray(result.images))
        masks.append(np.asarray(result.masks))
    return np.concatenate(images), np.concatenate(masks)


def score_edits(
    made: np.ndarray, before: scenes.Scene, after: scenes.Scene, changed: Sequence[str]
) -> dict[str, Any]:
    """Background and answer PSNR, and how many edits are nearest to the wanted value."""
    size = made.shape[1]
    truth, answers = (scenes.render_in_chunks(world, size=size) for world in (before, after))
    exact = np.asarray(scenes.edit_mask(before, after, size=size))
    right = np.zeros(len(made), bool)
    for attribute in EDITED:
        rows = np.flatnonzero(np.array(changed) == attribute)
        wanted = after[rows]
        found = np.asarray(scenes.nearest_alternative(made[rows], wanted, attribute))
        right[rows] = found == np.asarray(getattr(wanted, attribute))
    partial = exact.mean((1, 2)) < 0.99
    return {
        "background PSNR": f"{psnr(made, truth, ~exact)[partial].mean():.2f} dB",
        "PSNR to the answer": f"{psnr(made, answers).mean():.2f} dB",
        "edit succeeded": f"{100 * right.mean():.0f} %",
    }


def search_mask(masks: np.ndarray, exact: np.ndarray) -> tuple[dict[str, float], float]:
    """The `soft_mask` numbers with the best mean overlap (intersection over union) at 0.5."""
    best: tuple[dict[str, float], float] = ({}, -1.0)
    for threshold, smooth, grow in itertools.product(
        np.arange(0.05, 0.96, 0.05), (0.0, 1.0, 2.0, 4.0), (0.0, 2.0, 4.0)
    ):
        numbers = {"threshold": round(float(threshold), 2), "smooth": smooth, "grow": grow}
        overlap = mean_overlap(masks, exact, **numbers)
        if overlap > best[1]:
            best = numbers, overlap
    return best


def mean_overlap(masks: np.ndarray, exact: np.ndarray, **numbers: float) -> float:
    size = exact.shape[1:]
    found = np.stack([soft_mask(mask, size, **numbers) > 0.5 for mask in masks])
    union = np.maximum((found | exact).sum((1, 2)), 1)
    return float(((found & exact).sum((1, 2)) / union).mean())


def measure(editor: Editor, quick: bool) -> dict[str, dict[str, Any]]:
    n = 4 if quick else 1
    report: dict[str, dict[str, Any]] = {
        f"VAE, {256 // n} scenes": measure_vae(editor, 256 // n),
        f"generation, {64 // n} captions": measure_generation(editor, 64 // n),
        f"reconstruction against the VAE's, {16 // n} scenes": measure_reconstruction(
            editor, 16 // n
        ),
    }
    before, after, changed = edits(32 // n)
    exact = np.asarray(scenes.edit_mask(before, after, size=editor.native_size))
    for name, config in (
        ("default", editor.default_config),
        ("released", EditConfig.load("released")),
    ):
        made, masks = run_edits(editor, config, before, after)
        numbers, overlap = search_mask(masks, exact)
        report[f"edit, config {name}, {len(made)} scenes"] = score_edits(
            made, before, after, changed
        ) | {
            "mask overlap as shipped": f"{mean_overlap(masks, exact):.2f}",
            "best mask numbers": ", ".join(f"{k} {v:g}" for k, v in numbers.items())
            + f" ({overlap:.2f})",
            "free in any step and channel": f"{100 * (masks > 0).mean():.0f} % of pixels",
            "really changed": f"{100 * exact.mean():.0f} % of pixels",
            "evaluations": editor.evaluations(config),
        }
    return report


def as_markdown(report: dict[str, dict[str, Any]], editor: Editor, seconds: float) -> str:
    device = jax.devices()[0]
    lines = [
        f"`python scripts/measure_scenes.py --write`, weights `{editor.weights_hash}`, "
        f"{device.platform} ({device.device_kind}), jax {jax.__version__}, {seconds / 60:.0f} min:",
        "",
        "| What | Figure | Value |",
        "| --- | --- | --- |",
    ]
    for what, figures in report.items():
        for name, value in figures.items():
            lines.append(f"| {what} | {name} | {value} |")
            what = ""
    return "\n".join(lines)


def write_between_marks(path: Path, text: str) -> None:
    """Replaces what stands between the two marks of a Markdown file."""
    marks = "<!-- figures: scripts/measure_scenes.py -->", "<!-- end of figures -->"
    pattern = re.compile("(?s)" + re.escape(marks[0]) + ".*?" + re.escape(marks[1]))
    old = path.read_text(encoding="utf-8")
    if not pattern.search(old):
        sys.exit(f"{path}: the marks {marks[0]} and {marks[1]} are missing")
    path.write_text(pattern.sub(lambda _: f"{marks[0]}\n{text}\n{marks[1]}", old), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--write", action="store_true", help="into README.md and MODEL_CARD.md")
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the scenes; not to be written"
    )
    parser.add_argument(
        "--set", action="append", default=[], help="KEY=VALUE of the default config"
    )
    args = parser.parse_args()
    editor = Editor.load(args.model)
    if args.set:
        settings = {"default": editor.default_config.overridden(args.set).to_dict()}
        checkpoint = dataclasses.replace(
            editor.checkpoint, settings={**editor.checkpoint.settings, **settings}
        )
        editor = Editor(checkpoint)
    began = time.monotonic()
    text = as_markdown(measure(editor, args.quick), editor, time.monotonic() - began)
    print(text)
    if args.write and not args.quick:
        for path in (ROOT / "README.md", ROOT / "uam_jax" / "scenes" / "MODEL_CARD.md"):
            write_between_marks(path, text)


if __name__ == "__main__":
    main()
