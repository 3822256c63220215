"""`uam convert`."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument

from uam_jax.cli.console import Console
from uam_jax.cli.options import Variant
from uam_jax.cli.subcommand import LocalName
from uam_jax.runtime import backend


def convert(
    console: Console,
    source: Annotated[
        LocalName,
        Argument(metavar="SRC", help="A folder in the diffusers layout, or a hub id."),
    ],
    destination: Annotated[
        Path, Argument(metavar="DST", help="A new folder for the converted model.")
    ],
    variant: Variant = None,
) -> dict[str, Any]:
    """Writes a model as an Orbax checkpoint, which --model loads directly."""
    console.stage(f"converting {source}")
    backend.check_platforms()
    from uam_jax.checkpoints import load

    return {"command": "convert", "model": load.convert(source, destination, variant=variant)}
