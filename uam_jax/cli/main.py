"""The program `uam` and its subcommands. Only a subcommand that runs imports JAX, so that `uam --help` is fast."""

from typing import Annotated

import typer

from uam_jax.cli.attention import attention
from uam_jax.cli.batch import batch
from uam_jax.cli.bench import bench, compare
from uam_jax.cli.check import check
from uam_jax.cli.convert import convert
from uam_jax.cli.demo import demo
from uam_jax.cli.edit import edit
from uam_jax.cli.eval import reconstruction, scenes
from uam_jax.cli.info import info
from uam_jax.cli.merge import merge
from uam_jax.cli.plan import plan
from uam_jax.cli.reconstruct import reconstruct
from uam_jax.cli.subcommand import add_subcommand
from uam_jax.runtime import backend

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for function in (demo, edit, reconstruct, attention, batch, merge, plan, convert, info, check):
    add_subcommand(function, to=app)

evaluations = typer.Typer(
    no_args_is_help=True, help="Measures methods where the exact answer is known."
)
app.add_typer(evaluations, name="eval")
for function in (scenes, reconstruction):
    add_subcommand(function, to=evaluations)

benches = typer.Typer()
app.add_typer(benches, name="bench")
add_subcommand(bench, to=benches, alone=True)
add_subcommand(compare, to=benches)


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"uam {backend.version()}")
        raise typer.Exit
    return wanted


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Edits pictures by text and leaves everything else in them as it was."""


def main() -> None:
    """Runs the program."""
    app(prog_name="uam")
