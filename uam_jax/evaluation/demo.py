"""`uam demo`: reconstructs and edits four unseen scenes, and compares the results with their exact answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uam_jax import scenes
from uam_jax.editor import Editor
from uam_jax.evaluation.metrics import psnr
from uam_jax.io.encoding import encode_image, encode_mask
from uam_jax.io.grid import labelled_grid
from uam_jax.io.outputs import write_files
from uam_jax.jobs.report import render_report
from uam_jax.method.config import EditConfig

EDITS = ("colour", "shape", "surface", "wall")
"""The attribute that each scene's edit changes."""

_DRAW = 7919
"""Makes the demo's scenes differ from those of the training, which are drawn from small keys."""


def run_demo(
    editor: Editor, out: Path, seed: int = 0, progress: Callable[[str], None] = lambda stage: None
) -> dict[str, Any]:
    """Reconstructs and edits, measures the results, and writes `grid.png` and a page, `index.html`.

    Args:
      editor: of the embedded model.
      out: folder for both files.
      seed: determines the scenes and their edits.
      progress: receives the name of each stage.

    Returns:
      The tables "reconstruction" and "edits" (means over the scenes, PSNR in dB, evaluations per picture), and
      the paths of grid and page.
    """
    before, after = draw(seed)
    size = editor.native_size
    progress("rendering four scenes")
    pictures, answers = (scenes.render_in_chunks(world, size=size) for world in (before, after))
    changed = np.asarray(scenes.edit_mask(before, after, size=size))
    sources, targets = scenes.captions(before), scenes.captions(after)

    progress("encoding")
    z0 = editor.encode(pictures)
    ceiling = np.asarray(editor.decode(z0))
    reconstructions = []
    for name, prompts, uniformity in (
        ("source prompt", sources, 0.0),
        ("null prompt", "", 0.0),
        ("uniform maps", "", 1.0),
    ):
        progress(f"reconstructing with {name}")
        inversion = editor.invert(z0, prompts, uniformity=uniformity)
        made = np.asarray(editor.reconstruct(inversion))
        reconstructions.append(
            {
                "maps": name,
                "psnr": psnr(made, pictures).mean(),
                "psnr_to_vae_ceiling": psnr(made, ceiling).mean(),
                "vae_ceiling": psnr(ceiling, pictures).mean(),
                "evaluations": 2 * inversion.key.steps,
            }
        )
    rebuilt = made

    edits, results = [], {}
    for name, config in (
        ("default", editor.default_config),
        ("released", EditConfig.load("released")),
    ):
        progress(f"editing with {name}")
        own = None if config.source.condition == "null" else sources
        result = editor.edit(pictures, targets, own, config=config)
        results[name] = result
        made = np.asarray(result.images)
        edits.append(
            {
                "config": name,
                "background_psnr": psnr(made, pictures, ~changed).mean(),
                "psnr_to_answer": psnr(made, answers).mean(),
                "edited_right": f"{sum(shows(made, after))} of {len(EDITS)}",
                "evaluations": editor.evaluations(config),
            }
        )

    grid = labelled_grid(
        [
            [
                pictures[i],
                rebuilt[i],
                np.asarray(results["default"].images[i]),
                np.asarray(results["released"].images[i]),
                answers[i],
                np.asarray(results["default"].masks[i]),
                changed[i].astype(np.float32),
            ]
            for i in range(len(EDITS))
        ],
        columns=[
            "source\nrendered",
            "reconstruction\nuniform maps",
            "edit\nconfig default",
            "edit\nconfig released",
            "exact answer\nrendered",
            "edited part\nconfig default",
            "part to be edited\nexact mask",
        ],
        captions=targets,
        title="Uniform Attention Maps: each picture is edited to match the text above it; "
        "nothing else should change",
    )
    path, pages = out / "grid.png", {}
    rows = []
    for name, result in results.items():
        for i, attribute in enumerate(EDITS):
            one = slice(i, i + 1)
            made = np.asarray(result.images[one], np.float32)
            names = {kind: f"gallery/{attribute}-{kind}.png" for kind in ("original", "answer")} | {
                kind: f"gallery/{attribute}-{name}-{kind}.png" for kind in ("edit", "mask")
            }
            pages |= {
                names["original"]: encode_image("x.png", pictures[i]),
                names["answer"]: encode_image("x.png", answers[i]),
                names["edit"]: encode_image("x.png", made[0]),
                names["mask"]: encode_mask(np.asarray(result.masks[i], np.float32)),
            }
            rows.append(
                {
                    "id": f"{attribute}, {name}",
                    "status": "ok",
                    "image": sources[i],
                    "target": targets[i],
                    "output": names["edit"],
                    "preview": names["original"],
                    "mask": names["mask"],
                    "answer": names["answer"],
                    "mask_share": float(result.masks[i].mean()),
                    "confidence": float(result.confidence[i]),
                    "review": result.review[i],
                    "figures": {
                        "background_psnr": psnr(made, pictures[one], ~changed[one]).item(),
                        "psnr_to_answer": psnr(made, answers[one]).item(),
                    },
                }
            )
    facts = {"model": editor.name, "weights": editor.weights_hash}
    pages |= render_report(rows, title="Uniform Attention Maps: the demo's edits", facts=facts)
    write_files({path: grid} | {out / name: content for name, content in pages.items()})
    return {
        "reconstruction": reconstructions,
        "edits": edits,
        "model": editor.name,
        "weights": editor.weights_hash,
        "grid": path,
        "page": out / "index.html",
    }


def draw(seed: int) -> tuple[scenes.Scene, scenes.Scene]:
    """Four scenes with an object, and the same scenes with one attribute changed."""
    key = jax.random.fold_in(jax.random.key(_DRAW), seed)
    before = scenes.sample(key, len(EDITS), empty=0.0)
    shifts = np.asarray(jax.random.randint(jax.random.fold_in(key, 1), (len(EDITS),), 1, 1 << 16))
    changed = []
    for i, attribute in enumerate(EDITS):
        count = len(scenes.ATTRIBUTES[attribute])
        value = (int(getattr(before, attribute)[i]) + 1 + int(shifts[i]) % (count - 1)) % count
        changed.append(before[i : i + 1].replace(**{attribute: value}))
    return before, scenes.concatenate(*changed)


def shows(pictures: np.ndarray, wanted: scenes.Scene) -> list[bool]:
    """Whether each picture shows the wanted value of its edited attribute rather than any other value."""
    right = []
    for i, attribute in enumerate(EDITS):
        scene = wanted[i : i + 1]
        nearest = scenes.nearest_alternative(pictures[i : i + 1], scene, attribute)
        right.append(int(nearest[0]) == int(getattr(scene, attribute)[0]))
    return right
