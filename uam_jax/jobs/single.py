"""Files in, edited files out: first every input is checked, then an `Editor` runs on each picture.

JAX is imported only by what runs, so that bad input is told at once.
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
    encode_error,
    encode_image,
    encode_mask,
    encode_preview,
    file_levels,
    needs_shown_copy,
    output_format,
    refuse_nonfinite,
)
from uam_jax.io.images import Picture, quietly, read_image, resize, working_size
from uam_jax.io.mask_files import read_mask
from uam_jax.io.outputs import Files, check_places, key_of
from uam_jax.jobs.report import render_report

if TYPE_CHECKING:
    from uam_jax.editor import Editor
    from uam_jax.method.config import EditConfig

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """One input and the names of what is made from it, one per target.

    Attributes:
      source: the picture's file.
      outputs: the results' files.
      masks: the masks' files, beside the results.
      mask: the user's mask, if there is one.
      preview: the file of a small copy of the original, if a page is to show it.
      error: the file of the reconstruction's error map, likewise.
      shown: files of copies of the results that browsers can show, one per target; empty where they can
        show the results themselves, or there is no page.
    """

    source: Path
    outputs: list[Path]
    masks: list[Path]
    mask: Path | None = None
    preview: Path | None = None
    error: Path | None = None
    shown: Sequence[Path] = ()

    @property
    def files(self) -> list[Path]:
        """All that is written."""
        pages = filter(None, (self.preview, self.error))
        return [*self.outputs, *self.masks, *self.shown, *pages]


def plan_jobs(
    images: Sequence[Path],
    out: str,
    *,
    targets: int = 1,
    mask: Path | None = None,
    save_mask: bool = False,
    report: bool = False,
    overwrite: bool = False,
) -> list[Job]:
    """Reads every input once and names every output; loads no model and writes nothing.

    Args:
      images: the pictures.
      out: a file for one picture, else a folder: one that exists, ends with "/", or has no suffix.
      targets: results per picture; several are numbered.
      mask: a mask for all pictures.
      save_mask: whether masks will be written.
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
    jobs = []
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
        job = Job(image, outputs, masks if save_mask or report else [], mask)
        if report:  # with the suffix, so that names differ wherever the results' do
            page = Path(out, "gallery")
            job = replace(
                job,
                preview=page / f"{name.name}.jpg",
                error=page / f"{name.name}-error.png",
                shown=[page / f"{path.name}-shown.jpg" for path in outputs]
                if needs_shown_copy(name, picture)
                else [],
            )
        jobs.append(job)
    inputs = [*images, mask] if mask else list(images)
    _check_outputs(jobs, inputs, overwrite)
    if report:
        check_places(Path(out, page) for page in render_report([], title="", facts={}))
    return jobs


def edit_job(
    editor: "Editor",
    job: Job,
    *,
    targets: Sequence[str],
    source: str | None,
    config: "EditConfig",
    size: int | None = None,
) -> tuple[Files, Rows]:
    """Edits one picture towards every target: the files to write, and a row of figures for each."""
    import jax.numpy as jnp

    picture, working = _read(editor, job, size)
    height, width = working.shape[:2]
    allowed = masks = None
    if job.mask:
        allowed = read_mask(job.mask, picture.size)
        masks = jnp.asarray(resize(allowed, (height, width), linear=True)[None])
    # From the latents, since the original's pixels are put back below, at their own resolution.
    latents = editor.encode(jnp.asarray(working[None]))
    result = editor.edit_latents(
        latents, [list(targets)], source, masks=masks, config=config, images=working[None]
    )
    files: Files = {}
    if job.preview and job.error:
        files[job.preview] = encode_preview(picture.pixels, picture)
        files[job.error] = encode_error(np.asarray(result.error_map[0], np.float32))
    rows: Rows = []
    for index, (target, output) in enumerate(zip(targets, job.outputs, strict=True)):
        refuse_nonfinite(job.source, np.asarray(result.images[index]))
        delivery = result.deliver(
            index,
            picture.pixels,
            config=config,
            calibration=editor.calibration,
            within=allowed,
            levels=file_levels(output, picture),
            grey=picture.grey,
        )
        with quietly():  # what the format can't hold was told once, when the job was planned
            files[output] = encode_image(output, delivery.pixels, picture)
        if job.masks:
            files[job.masks[index]] = encode_mask(delivery.mask)
        if job.shown:
            files[job.shown[index]] = encode_preview(delivery.pixels, picture)
        rows.append(
            {
                "input": job.source,
                "target": target,
                "output": output,
                "size": f"{picture.size[1]}x{picture.size[0]}",
                "worked_at": f"{width}x{height}",
                "mask_share": delivery.mask_share,
                "confidence": round(delivery.confidence, 4),
                "review": delivery.review,
            }
        )
    return files, rows


def report_page(out: Path, jobs: Sequence[Job], rows: Rows, facts: dict[str, Any]) -> Files:
    """The files of a page that shows what `edit_job` made of all jobs, to be opened from the disk."""

    def address(path: Path | None) -> str | None:
        return path and path.relative_to(out).as_posix()

    made = [(job, number) for job in jobs for number in range(len(job.outputs))]
    shown = [
        {
            "id": job.outputs[number].stem,
            "status": "ok",
            "image": str(job.source),
            "target": row["target"],
            "output": address(job.outputs[number]),
            "shown": address(job.shown[number]) if job.shown else None,
            "mask": address(job.masks[number]),
            "preview": address(job.preview),
            "error": address(job.error),
            **{name: row[name] for name in ("size", "mask_share", "confidence", "review")},
        }
        for (job, number), row in zip(made, rows, strict=True)
    ]
    pages = render_report(shown, title="Edited pictures", facts=facts)
    return {out / name: content for name, content in pages.items()}


def reconstruct_job(
    editor: "Editor",
    job: Job,
    *,
    prompt: str,
    uniformity: float,
    guidance: float,
    steps: int,
    spacing: str = "",
    size: int | None = None,
) -> tuple[Files, Rows]:
    """Inverts and denoises one picture: the file to write, and how near it comes to the original."""
    import jax.numpy as jnp

    picture, working = _read(editor, job, size)
    latent = editor.encode(jnp.asarray(working[None]))
    inversion = editor.invert(
        latent,
        prompts=prompt,
        uniformity=uniformity,
        guidance=guidance,
        steps=steps,
        spacing=spacing,
    )
    rebuilt = np.asarray(editor.reconstruct(inversion)[0], np.float32)
    refuse_nonfinite(job.source, rebuilt)
    ceiling = np.asarray(editor.decode(latent)[0], np.float32)
    [output] = job.outputs
    row = {
        "input": job.source,
        "output": output,
        "worked_at": f"{working.shape[1]}x{working.shape[0]}",
        "psnr": _psnr(working, rebuilt),
        "psnr_of_vae": _psnr(working, ceiling),
    }
    return {output: encode_image(output, resize(rebuilt, picture.size), picture)}, [row]


def _read(editor: "Editor", job: Job, size: int | None) -> tuple[Picture, np.ndarray]:
    """The picture, and its pixels at the model's size."""
    picture = read_image(job.source)
    side = editor.native_size if size is None else size
    size_at = working_size(picture.size, side, editor.size_multiple, job.source)
    working = resize(picture.pixels, size_at)
    return picture, working


def _check_outputs(jobs: Sequence[Job], inputs: Sequence[Path], overwrite: bool) -> None:
    makers: dict[str, Path] = {}
    for number, job in enumerate(jobs):
        check_places(job.files)
        later = [
            file for other in jobs[number + 1 :] for file in (other.source, other.mask) if file
        ]
        for path in job.files:
            if (other := makers.setdefault(key_of(path), job.source)) is not job.source:
                raise InputError(
                    f"{other} and {job.source} would both be written to {path}: "
                    "rename one, or run them into different folders"
                )
            if not path.exists():
                continue
            if not overwrite and any(map(path.samefile, inputs)):
                raise InputError(f"{path} is an input: choose another --out, or add --overwrite")
            if any(map(path.samefile, later)):
                raise InputError(
                    f"{path} would be replaced by an edit of {job.source} before it is read: choose another --out"
                )


def tell_left(jobs: Sequence[Job], done: int) -> str:
    """A sentence on a run that ends early: how many pictures are done, and which are not."""
    if done == len(jobs):
        return f"all {done} pictures are done and written; the page alone is missing"
    names = [str(job.source) for job in jobs[done:]]
    more = f" and {len(names) - 8} more after them" if len(names) > 8 else ""
    return (
        f"{done} of {len(jobs)} pictures are done and written, up to {jobs[done - 1].source}; "
        f"left are {', '.join(names[:8])}{more}"
    )


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.mean(np.square(a.astype(np.float64) - b))) / 4  # the values' range is 2
    return -10 * np.log10(error) if error else float("inf")
