"""`uam info`."""

from typing import Annotated, Any

from typer import Argument

from uam_jax.cli.console import Console
from uam_jax.cli.options import SCENES, Compute
from uam_jax.cli.subcommand import LocalName
from uam_jax.runtime import backend


def info(
    console: Console,
    model: Annotated[LocalName, Argument(help="As in `uam edit --model`.")] = SCENES,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Describes the devices, the versions and a model with its cost."""
    from uam_jax.engine.describe import describe_model

    editor = compute.load_editor(model, console)
    console.stage("counting the operations of an evaluation")
    return {"command": "info", **backend.describe_machine(), **describe_model(editor)}
