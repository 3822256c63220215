"""The gain of `--focus`: scenes in large canvases, edited with and without it, against the exact answer.

    python scripts/measure_focus.py

A scene of Scenes-Bench (report third, edits of an object) is a small part of a canvas, which goes on from the scene's
border. The user's mask is the exact region of the edit, grown a little. Every scene is edited within its canvas,
with focus and without, and as a picture of its own, which is the best that focus could do. Objects are moved to the
middle of their table, and prompts name neither place nor size, since both are others in a crop around the object.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.ndimage import binary_dilation

from uam_jax import Editor, edit_picture
from uam_jax.evaluation.metrics import bootstrap, psnr
from uam_jax.evaluation.scenes_bench import Items, draw_items, judge, render_truth
from uam_jax.io.grid import labelled_grid
from uam_jax.io.images import resize
from uam_jax.runtime.backend import describe_machine
from uam_jax.scenes import captions, render

KEPT = Path("benchmarks/scenes/focus")
SIDE = 1024
SHARES = (5, 10, 20)
"""Sides of the scene, in per cent of the canvas's."""
KINDS = ("colour", "shape", "colour and shape", "remove")
WAYS = {
    "unedited": "the scene as it was",
    "off": "whole canvas\n--focus off",
    "auto": "crop\n--focus auto",
    "alone": "the scene alone\nas a picture of its own",
}


def choose(each: int) -> Items:
    """As many items of every kind, of the report third, with their objects in the middle."""
    items = draw_items().select(["report"])
    rows = [[row for row, own in enumerate(items.kinds) if own == kind][:each] for kind in KINDS]
    items = items.take([row for turn in zip(*rows, strict=True) for row in turn])
    before, after = (of.replace(place="centre") for of in (items.before, items.after))
    targets = tuple(captions(after, detail="short"))
    return dataclasses.replace(items, before=before, after=after, targets=targets)


def place(scene: np.ndarray, top: int, left: int, **pad: Any) -> np.ndarray:
    """An array of the canvas's size with the scene's at this place."""
    room = [(top, SIDE - top - len(scene)), (left, SIDE - left - len(scene))]
    return np.pad(scene, [*room, (0, 0)][: scene.ndim], **pad)


def measure(editor: Editor, items: Items, share: int) -> tuple[dict[str, Any], list[list[Any]]]:
    """Figures of one share of the canvas, and what the grid shows of its first item of each kind."""
    side = round(SIDE * share / 100)
    before, after = (np.asarray(render(of, size=side)) for of in (items.before, items.after))
    region = np.abs(before - after).max(axis=-1) > 0.04
    truth = render_truth(items, editor.native_size)
    rng = np.random.default_rng(share)
    made: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    crops, shown = [], []
    for row, target in enumerate(items.targets):
        mask = binary_dilation(region[row], iterations=max(side // 16, 1)).astype(np.float32)
        top, left = (int(at) for at in rng.integers(0, SIDE - side + 1, 2))
        canvas = place(before[row], top, left, mode="edge")
        canvas_mask = place(mask, top, left)
        made["unedited"].append(before[row])
        for focus in ("off", "auto"):
            edit = edit_picture(editor, canvas, target, mask=canvas_mask, focus=focus)
            pixels = edit.deliver().pixels
            made[focus].append(pixels[top : top + side, left : left + side])
        crops.append(edit.crop)
        made["alone"].append(edit_picture(editor, before[row], target, mask=mask).deliver().pixels)
        if row < len(KINDS):
            scenes = [made[way][row] for way in WAYS]
            shown.append([resize(canvas, (192, 192)), *scenes, after[row]])
    pictures = {way: np.stack(values) for way, values in made.items()}
    small = editor.native_size, editor.native_size
    ways = {
        way: {
            "region_psnr": bootstrap(psnr(values, after, region)),
            "success": bootstrap(
                judge(np.stack([resize(each, small) for each in values]), truth).astype(float)
            ),
        }
        for way, values in pictures.items()
    }
    gain = psnr(pictures["auto"], after, region) - psnr(pictures["off"], after, region)
    sides = [crop.height for crop in crops]
    facts = {"side": side, "crop_sides": [min(sides), float(np.median(sides)), max(sides)]}
    return {**facts, "gain": bootstrap(gain), "ways": ways}, shown


def as_markdown(summary: dict[str, Any]) -> str:
    """The table of all shares and ways."""
    lines = [
        f"`{summary['command']}`, weights `{summary['weights']}`, {summary['machine']}; {summary['items']} edits, "
        f"canvases of {SIDE}x{SIDE}; mean [95 % interval]:",
        "",
        "| Scene's side | Crop's side | Edited | PSNR to the answer in the region | Edits that succeeded |",
        "| --- | --- | --- | --- | --- |",
    ]
    for share, of in summary["shares"].items():
        low, middle, high = of["crop_sides"]
        head = f"{share} % ({of['side']} px) | {low} to {high}, median {middle:g} px"
        for way, figures in of["ways"].items():
            decibels = "{:.1f} [{:.1f}, {:.1f}] dB".format(*figures["region_psnr"])
            success = "{:.0f} [{:.0f}, {:.0f}] %".format(*(100 * x for x in figures["success"]))
            lines.append(
                f"| {head} | {WAYS[way].replace(chr(10), ', ')} | {decibels} | {success} |"
            )
            head = " | "
    gains = [
        "{} %: {:.1f} [{:.1f}, {:.1f}] dB".format(share, *of["gain"])
        for share, of in summary["shares"].items()
    ]
    return "\n".join([*lines, "", f"Gain of focus, edit by edit: {'; '.join(gains)}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--each", type=int, default=4, help="edits of every kind")
    parser.add_argument("--out", type=Path, default=KEPT, help="folder of the record")
    args = parser.parse_args()
    editor, items = Editor.load("scenes"), choose(args.each)
    shares, rows, titles = {}, [], []
    for share in SHARES:
        print(f"== {share} % of the side", flush=True)
        shares[str(share)], shown = measure(editor, items, share)
        rows += shown
        titles += [f"{share} %: {target}" for target in items.targets[: len(shown)]]
    machine = describe_machine()
    summary = {
        "command": "python scripts/measure_focus.py",
        "weights": editor.weights_hash,
        "machine": f"{machine['device']}, jax {jax.__version__}",
        "items": len(items),
        "canvas": SIDE,
        "shares": shares,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (args.out / "summary.md").write_text(as_markdown(summary), encoding="utf-8")
    columns = ["canvas\nthe mask is in the scene", *WAYS.values(), "exact answer\nrendered"]
    title = f"A scene within a canvas of {SIDE}x{SIDE}: what becomes of it with and without focus"
    grid = labelled_grid(rows, columns=columns, captions=titles, title=title)
    (args.out / "grid.png").write_bytes(grid)
    print(as_markdown(summary))


if __name__ == "__main__":
    main()
