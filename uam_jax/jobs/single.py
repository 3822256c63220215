"""Single pictures: every input is checked and every output named, then an `Editor` works on picture after picture.

Only the functions that compute import JAX, so that bad input is refused at once.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uam_jax.errors import InputError
from uam_jax.io.encoding import (
    default_suffix,
    encode_image,
    needs_shown_copy,
    output_format,
    refuse_nonfinite,
)
from uam_jax.io.focus import Focus
from uam_jax.io.images import Picture, read_image, resize, working_size
from uam_jax.io.mask_files import read_mask
from uam_jax.io.outputs import Files, check_places, key_of
from uam_jax.jobs.report import render_report
from uam_jax.jobs.result_files import SourcePicture, original_files, result_files

if TYPE_CHECKING:
    from uam_jax.editor import Editor
    from uam_jax.method.config import EditConfig
    from uam_jax.method.edits import Edit

Rows = list[dict[str, Any]]

_SHOWN = ("size", "crop", "mask_share", "confidence", "review", "figures")
"""Columns of a row that a page shows."""


@dataclass(frozen=True)
class PictureFiles:
    """One picture's file, and the files of its results.

    Attributes:
      source: the picture.
      outputs: the results, one per target.
      masks: the results' masks, beside them; empty where none are wanted.
      user_mask: if there is one.
      preview: a small copy of the original, if a page is to show it.
      error: the reconstruction's error map, likewise.
      shown: copies of the results that browsers can show, one per target; empty where browsers can show the
        results themselves, or there is no page.
    """

    source: Path
    outputs: list[Path]
    masks: list[Path]
    user_mask: Path | None = None
    preview: Path | None = None
    error: Path | None = None
    shown: Sequence[Path] = ()

    @property
    def files(self) -> list[Path]:
        """All files that are written."""
        pages = filter(None, (self.preview, self.error))
        return [*self.outputs, *self.masks, *self.shown, *pages]


def plan_files(
    images: Sequence[Path],
    out: str,
    *,
    targets: int = 1,
    mask: Path | None = None,
    save_mask: bool = False,
    report: bool = False,
    overwrite: bool = False,
) -> list[PictureFiles]:
    """Reads every input once and names every output, without a model; writes nothing.

    Args:
      images: the pictures.
      out: a file for one picture, else a folder: one that exists, ends with "/", or has no suffix.
      targets: results per picture; several are numbered.
      mask: the user's, for all pictures.
      save_mask: whether the results' masks will be written.
      report: whether a page will show the results; it needs the masks, and a folder.
      overwrite: whether an input may be replaced.

    Raises:
      InputError: an input can't be read, or an output not be written, or two would be the same.
    """
    folder = os.path.isdir(out) or out.endswith(("/", os.sep)) or not Path(out).suffix
    if not folder and len(images) > 1:
        raise InputError(f"--out {out} names one file for {len(images)} pictures: give a folder")
    if report and not folder:
        raise InputError(f"--report writes a page beside the results: give --out {out} as a folder")
    tags = [f"-{number + 1}" for number in range(targets)] if targets > 1 else [""]
    plans = []
    # Pictures are read again when it is their turn: all at once might not fit into memory.
    for image in images:
        picture = read_image(image)
        if mask:
            read_mask(mask, picture.size)
        name = Path(out)
        if folder:
            name /= image.with_suffix(default_suffix(image, picture)).name
        output_format(name, picture)
        outputs = [name.with_stem(name.stem + tag) for tag in tags]
        masks = [path.with_name(f"{path.stem}-mask.png") for path in outputs]
        plan = PictureFiles(image, outputs, masks if save_mask or report else [], mask)
        if report:  # with the suffix, so that names differ wherever the results' do
            page = Path(out, "gallery")
            plan = replace(
                plan,
                preview=page / f"{name.name}.jpg",
                error=page / f"{name.name}-error.png",
                shown=[page / f"{path.name}-shown.jpg" for path in outputs]
                if needs_shown_copy(name, picture)
                else [],
            )
        plans.append(plan)
    inputs = [*images, mask] if mask else list(images)
    _check_outputs(plans, inputs, overwrite)
    if report:
        check_places(Path(out, page) for page in render_report([], title="", facts={}))
    return plans


def edit_file(
    editor: "Editor",
    plan: PictureFiles,
    *,
    edits: "Sequence[Edit]",
    source: str | None,
    config: "EditConfig",
    size: int | None = None,
    focus: Focus = "auto",
) -> tuple[Files, Rows]:
    """Edits one picture towards every target: the files to write, and a row for each."""
    from uam_jax.jobs.picture import edit_picture

    picture, (height, width) = _read(editor, plan, size)
    within = read_mask(plan.user_mask, picture.size) if plan.user_mask else None
    made = edit_picture(
        editor, picture.pixels, edits, source, mask=within, config=config, size=size, focus=focus
    )
    original = SourcePicture(plan.source, picture, within, made.crop)
    files: Files = {}
    if plan.preview and plan.error:
        error_map = made.result.error_map[0]
        files |= original_files(original, error_map, preview=plan.preview, error=plan.error)
    rows: Rows = []
    for index, (edit, output) in enumerate(zip(edits, plan.outputs, strict=True)):
        own, measured = result_files(
            made.result,
            index,
            original,
            output=output,
            mask=plan.masks[index] if plan.masks else None,
            shown=plan.shown[index] if plan.shown else None,
        )
        files |= own
        row = {"input": plan.source, "target": edit.target, "output": output, **measured}
        rows.append({**row, "worked_at": f"{width}x{height}"})
    return files, rows


def report_page(
    out: Path, plans: Sequence[PictureFiles], rows: Rows, facts: dict[str, Any]
) -> Files:
    """The files of a page that shows the results of `edit_file`, to be opened from the disk."""

    def address(path: Path | None) -> str | None:
        return path and path.relative_to(out).as_posix()

    made = [(plan, number) for plan in plans for number in range(len(plan.outputs))]
    shown = [
        {
            "id": plan.outputs[number].stem,
            "status": "ok",
            "image": str(plan.source),
            "target": row["target"],
            "output": address(plan.outputs[number]),
            "shown": address(plan.shown[number]) if plan.shown else None,
            "mask": address(plan.masks[number]),
            "preview": address(plan.preview),
            "error": address(plan.error),
            **{name: row[name] for name in _SHOWN},
        }
        for (plan, number), row in zip(made, rows, strict=True)
    ]
    pages = render_report(shown, title="Edited pictures", facts=facts)
    return {out / name: content for name, content in pages.items()}


def reconstruct_file(
    editor: "Editor",
    plan: PictureFiles,
    *,
    prompt: str,
    uniformity: float,
    guidance: float,
    steps: int,
    spacing: str = "",
    size: int | None = None,
) -> tuple[Files, Rows]:
    """Inverts and denoises one picture: the file to write, and a row with its distance to the original."""
    import jax

    picture, size_at = _read(editor, plan, size)
    working = resize(picture.pixels, size_at)
    latent = editor.encode(working[None])
    inversion = editor.invert(
        latent,
        prompts=prompt,
        uniformity=uniformity,
        guidance=guidance,
        steps=steps,
        spacing=spacing,
    )
    made = jax.device_get((editor.reconstruct(inversion), editor.decode(latent)))
    rebuilt, ceiling = (np.asarray(each[0], np.float32) for each in made)
    refuse_nonfinite(plan.source, rebuilt)
    [output] = plan.outputs
    row = {
        "input": plan.source,
        "output": output,
        "worked_at": f"{working.shape[1]}x{working.shape[0]}",
        "psnr": _psnr(working, rebuilt),
        "psnr_of_vae": _psnr(working, ceiling),
    }
    return {output: encode_image(output, resize(rebuilt, picture.size), picture)}, [row]


def _read(
    editor: "Editor", plan: PictureFiles, size: int | None
) -> tuple[Picture, tuple[int, int]]:
    """The picture, and the size at which the model works on it."""
    picture = read_image(plan.source)
    side = editor.native_size if size is None else size
    return picture, working_size(picture.size, side, editor.size_multiple, plan.source)


def _check_outputs(plans: Sequence[PictureFiles], inputs: Sequence[Path], overwrite: bool) -> None:
    makers: dict[str, Path] = {}
    for number, plan in enumerate(plans):
        check_places(plan.files)
        later = [
            file
            for other in plans[number + 1 :]
            for file in (other.source, other.user_mask)
            if file
        ]
        for path in plan.files:
            if (other := makers.setdefault(key_of(path), plan.source)) is not plan.source:
                raise InputError(
                    f"{other} and {plan.source} would both be written to {path}: "
                    "rename one, or run them into different folders"
                )
            if not path.exists():
                continue
            if not overwrite and any(map(path.samefile, inputs)):
                raise InputError(f"{path} is an input: choose another --out, or add --overwrite")
            if any(map(path.samefile, later)):
                raise InputError(
                    f"{path} would be replaced by an edit of {plan.source} before it is read: choose another --out"
                )


def tell_left(plans: Sequence[PictureFiles], done: int) -> str:
    """A sentence on a run that ends early, with the number of pictures done and the names of the others."""
    if done == len(plans):
        return f"all {done} pictures are done and written; the page alone is missing"
    names = [str(plan.source) for plan in plans[done:]]
    more = f" and {len(names) - 8} more after them" if len(names) > 8 else ""
    return (
        f"{done} of {len(plans)} pictures are done and written, up to {plans[done - 1].source}; "
        f"left are {', '.join(names[:8])}{more}"
    )


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.mean(np.square(a.astype(np.float64) - b))) / 4  # the values' range is 2
    return -10 * np.log10(error) if error else float("inf")
