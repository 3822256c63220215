"""`uam demo`."""

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from uam_jax.cli.console import Console
from uam_jax.cli.options import SCENES, Compute
from uam_jax.errors import InputError


def demo(
    console: Console,
    out: Annotated[Path, Option(help="Folder for the pictures.")] = Path("uam-demo"),
    seed: Annotated[int, Option(min=0, help="Number that chooses the scenes.")] = 0,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Reconstructs and edits four unseen scenes with the embedded model."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: give a folder")
    from uam_jax.io.outputs import check_places

    check_places(out / name for name in ("grid.png", "index.html", "gallery/page.js"))
    editor = compute.load_editor(SCENES, console)
    from uam_jax.evaluation.demo import run_demo

    return {"command": "demo", **run_demo(editor, out, seed, console.stage)}
