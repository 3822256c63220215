"""`uam check`."""

import json
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from uam_jax.cli.console import Console
from uam_jax.cli.options import SCENES, Compute, Settings, Size, check_one_model
from uam_jax.cli.subcommand import LocalName
from uam_jax.errors import InputError


def check(
    console: Console,
    out: Annotated[Path, Option(help="Folder for the page and the record.")] = Path("uam-check"),
    model: Annotated[
        LocalName | None, Option(help="As in `uam edit --model`. Default: `scenes`.")
    ] = None,
    shape: Annotated[
        str | None,
        Option(metavar="sd15|sd21", help="Random weights of this shape, without a download."),
    ] = None,
    steps: Annotated[
        tuple[int, ...],
        Option(min=1, max=1000, help="Steps of the reconstructions. Can be repeated."),
    ] = (20, 50),
    photos: Annotated[int, Option(min=1, max=4, help="Number of photographs.")] = 4,
    size: Size = None,
    *,
    settings: Settings,
    compute: Compute,
) -> dict[str, Any]:
    """Reconstructs and edits four photographs with your model on your machine: a page and a JSON to send back."""
    check_one_model(model, compute.variant, shape)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: give a folder")
    from uam_jax.io.outputs import check_places, write_files

    places = page, record = out / "check.html", out / "check.json"
    check_places(places)
    settings.check()
    from uam_jax.evaluation.check import CheckSettings, mean_reconstructions, run_check

    random = shape and compute.random_editor(shape, console)
    editor = random or compute.load_editor(model or SCENES, console)

    wanted = CheckSettings(settings.of(editor), tuple(dict.fromkeys(steps)), photos, size)
    found, content = run_check(editor, wanted, console.stage)
    write_files({page: content, record: json.dumps(found, indent=1).encode()})
    return {
        "command": "check",
        "model": found["model"]["model"],
        "reconstruction": mean_reconstructions(found),
        "images_per_second": found["speed"]["images_per_second"],
        "memory": found["speed"]["memory"],
        "notes": found["notes"],
        "page": page,
        "json": record,
    }
