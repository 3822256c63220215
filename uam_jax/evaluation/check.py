"""`uam check`: four photographs through a user's model on a user's machine, as a page and a record to send back.

Reconstructions are compared with the VAE's picture, the best that any inversion can return to.
"""

import base64
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uam_jax.checkpoints.load import EMBEDDED
from uam_jax.engine.delivery import EditResult, fetch
from uam_jax.engine.describe import describe_model
from uam_jax.engine.parallel import Devices
from uam_jax.evaluation import metrics
from uam_jax.evaluation.reconstruction import Reconstruction, fidelity, invert
from uam_jax.evaluation.timing import timed
from uam_jax.io.encoding import encode_image
from uam_jax.io.images import by, read_image, resize, working_size
from uam_jax.jobs.pages import render_page
from uam_jax.method.config import EditConfig
from uam_jax.runtime import backend

if TYPE_CHECKING:
    from uam_jax.editor import Editor

FORMAT = 1
"""Version of the record's format."""
_FOLDER = resources.files("uam_jax.evaluation")
_GAIN = 8
_DIFFERENCE = f"difference to the VAE × {_GAIN}"


class Photo(NamedTuple):
    """A bundled photograph: its name, a description, and that of the edited picture."""

    name: str
    source: str
    target: str

    def read(self, size: tuple[int, int]) -> np.ndarray:
        """The photograph at a size (height, width): (h, w, 3) float32 in [-1, 1]."""
        file = f"{self.name}.jpg"
        content = (_FOLDER / "photos" / file).read_bytes()
        return resize(read_image(file, content).pixels, size)


PHOTOS = (
    Photo("cat", "a photo of a cat", "a photo of a tiger"),
    Photo(
        "coffee",
        "a photo of a red cup of coffee on a wooden table",
        "a photo of a blue cup of coffee on a wooden table",
    ),
    Photo(
        "astronaut",
        "a photo of an astronaut in an orange space suit",
        "a photo of an astronaut in a green space suit",
    ),
    Photo("rocket", "a photo of a rocket in the evening", "a photo of a lighthouse in the evening"),
)

MAPS = {"uniform maps": ("null", "all"), "source prompt": ("source", "none")}
"""Kinds of reconstruction, by the prompt of both directions and the layers with uniform maps."""


@dataclass(frozen=True)
class CheckSettings:
    """Settings of a check.

    Attributes:
      config: of the edits.
      steps: of the reconstructions.
      photos: how many of `PHOTOS` are taken.
      size: side of the pictures in pixels; None for the model's own.
    """

    config: EditConfig
    steps: tuple[int, ...] = (20, 50)
    photos: int = len(PHOTOS)
    size: int | None = None


def run_check(
    editor: "Editor", settings: CheckSettings, progress: Callable[[str], None] = lambda stage: None
) -> tuple[dict[str, Any], bytes]:
    """Reconstructs and edits the photographs, one at a time, on one device.

    Args:
      editor: of the model.
      settings: of the check.
      progress: receives the name of each stage.

    Returns:
      The record, which JSON can hold, and the page with its pictures. A figure that is not finite is None.

    Raises:
      InputError: the size is smaller than the model allows.
    """
    devices = Devices.local(1)
    editor = editor.on(devices)
    wanted = settings.size or editor.native_size
    size = working_size((wanted, wanted), wanted, editor.size_multiple)
    photos = PHOTOS[: settings.photos]
    pictures = [photo.read(size)[None] for photo in photos]

    rows, shown = [], []
    for photo, picture in zip(photos, pictures, strict=True):
        progress(f"reconstructing {photo.name}")
        row, images = _reconstruct(editor, photo, picture, settings.steps)
        rows.append(row)
        shown.append(images)
    results, speed = _edit(editor, photos, pictures, settings.config, progress)
    for row, images, picture, result in zip(rows, shown, pictures, results, strict=True):
        row["edit"] = _edit_figures(result, picture)
        images["edit"] = result.images[0]
        images["taken from the edit"] = _grey(result.masks[0])
    progress("counting the operations of an evaluation")
    record = _finite(
        {
            "format": FORMAT,
            "date": datetime.now(UTC).date().isoformat(),
            "notes": _notes(editor, shown),
            "model": describe_model(editor) | {"model": _without_folders(editor.name)},
            "machine": {**backend.describe_machine(), "host": backend.describe_host()},
            "size": by(size),
            "config": settings.config.to_dict(),
            "speed": speed,
            "photos": rows,
        }
    )
    return record, _page(record, shown)


def _reconstruct(
    editor: "Editor", photo: Photo, picture: np.ndarray, steps: Sequence[int]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A photograph's row of the record, and the pictures that the page shows of it by their captions."""
    z0 = editor.encode(picture)
    ceiling = np.asarray(editor.decode(z0))
    images, found = {"original": picture[0], "VAE": ceiling[0]}, []
    for maps, (prompt, uniform) in MAPS.items():
        for count in steps:
            method = Reconstruction(prompt, count, uniform=uniform)
            prompts = [photo.source if prompt == "source" else ""]
            began = time.perf_counter()
            with backend.CompileClock() as clock:
                inversion = invert(editor, method, z0, prompts)
                rebuilt = np.asarray(editor.reconstruct_latents(inversion))
            seconds = time.perf_counter() - began - clock.seconds
            made = np.asarray(editor.decode(rebuilt))
            figures = fidelity(made, rebuilt, pictures=picture, ceiling=ceiling, z0=np.asarray(z0))
            row = {"maps": maps, "steps": count}
            row |= {name: float(value[0]) for name, value in figures.items()}
            found.append(row | {"evaluations": 2 * count, "seconds": seconds})
            if uniform == "all":
                images.pop(_DIFFERENCE, None)  # of fewer steps
                images[f"{maps}, {count} steps"] = made[0]
                images[_DIFFERENCE] = _grey(_difference(made, ceiling)[0])
    vae = {"psnr": float(metrics.psnr(ceiling, picture)[0])}
    vae["ssim"] = float(metrics.ssim(ceiling, picture)[0])
    return {**photo._asdict(), "vae": vae, "reconstructions": found}, images


def _edit(
    editor: "Editor",
    photos: Sequence[Photo],
    pictures: Sequence[np.ndarray],
    config: EditConfig,
    progress: Callable[[str], None],
) -> tuple[list[EditResult], dict[str, Any]]:
    """The edits, and their speed: from picture to picture on the host, the first one apart.

    A single photograph is edited twice, so that there is a time without compilation.
    """
    prompted = config.source.condition != "null"
    results: dict[str, EditResult] = {}
    pending = itertools.cycle(zip(photos, pictures, strict=True))

    def run() -> Any:
        photo, picture = next(pending)
        source = photo.source if prompted else None
        result = results[photo.name] = editor.edit(picture, [photo.target], source, config=config)
        return result.images

    evaluations, again = editor.evaluations(config), max(len(photos) - 1, 1)
    progress(f"editing, {evaluations} evaluations per picture")
    speed = timed(run, again, editor.devices, lambda text: progress(f"editing again, {text}"))
    seconds = speed["seconds"]["median"]
    speed |= {
        "evaluations": evaluations,
        "images_per_second": 1 / seconds,
        "evaluations_per_second": evaluations / seconds,
    }
    return fetch([results[photo.name] for photo in photos]), speed


def _edit_figures(result: EditResult, picture: np.ndarray) -> dict[str, Any]:
    images, masks = np.asarray(result.images), np.asarray(result.masks)
    return {
        "mask_share": float(masks.mean()),
        "psnr_outside_mask": float(metrics.psnr(images, picture, masks <= 0.5)[0]),
        "psnr_inside_mask": float(metrics.psnr(images, picture, masks > 0.5)[0]),
        "confidence": float(result.confidence[0]),
        "review": result.review[0],
        **{name: float(values[0]) for name, values in result.figures.items()},
    }


def _notes(editor: "Editor", shown: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """Warnings to a reader of the figures."""
    notes = []
    if editor.name in EMBEDDED:
        notes.append(
            f"The embedded model {editor.name} knows only its own world of tables and objects: it has never seen "
            "a photograph or such prompts."
        )
    if editor.weights_hash.startswith("random-"):
        notes.append("The weights are random: only speed and memory mean something.")
    if not all(np.isfinite(pixels).all() for images in shown for pixels in images.values()):
        notes.append("The network gave numbers that are not finite: try --dtype float32.")
    return notes


def _without_folders(model: str) -> str:
    """A model's name without the folders that lead to it, which are nobody's business; hub ids stay."""
    return Path(model).resolve().name if Path(model).exists() else model


def _finite(value: Any) -> Any:
    """The same value with None for numbers that JSON lacks, and six digits of the others."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of the channels, amplified, in [0, 1]."""
    return np.minimum(_GAIN * np.abs(a - b).mean(axis=-1) / 2, 1)


def _grey(values: np.ndarray) -> np.ndarray:
    """A picture of values in [0, 1], black to white."""
    return np.repeat(np.asarray(values, np.float32)[..., None] * 2 - 1, 3, axis=-1)


def mean_reconstructions(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each kind of reconstruction, with means over the photographs; None where one is missing."""
    rows = []
    for same in zip(*(photo["reconstructions"] for photo in record["photos"]), strict=True):
        row = {name: same[0][name] for name in ("maps", "steps", "evaluations")}
        for name in (name for name in same[0] if name not in row):
            values = [each[name] for each in same]
            row[name] = None if None in values else sum(values) / len(values)
        rows.append(row)
    return rows


def _page(record: Mapping[str, Any], shown: Sequence[Mapping[str, np.ndarray]]) -> bytes:
    model, machine, speed = (record[name] for name in ("model", "machine", "speed"))
    values = {
        "record": record,
        "pictures": [
            {name: _address(pixels) for name, pixels in images.items()} for images in shown
        ],
        "reconstruction": mean_reconstructions(record),
        "facts": {
            "date": record["date"],
            "device": machine["device"],
            "host": machine["host"],
            "versions": machine["versions"],
            "weights": model["weights"],
            "dtype": model["dtype"],
            "attention": model["attention"],
            "size": record["size"],
            "evaluations per edit": speed["evaluations"],
            "images per second": speed["images_per_second"],
            "evaluations per second": speed["evaluations_per_second"],
            "seconds of compilation": speed["compile_seconds"],
            "memory": speed["memory"],
        },
    }
    template = (_FOLDER / "check.html.jinja").read_text(encoding="utf-8")
    return render_page(template, values)


def _address(pixels: np.ndarray) -> str:
    """A picture as a URL that holds it; grey stands where a network gave no number."""
    content = encode_image("x.jpg", np.nan_to_num(np.asarray(pixels, np.float32)))
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
