"""`uam eval scenes` and `uam eval reconstruction`: their options; `eval_run` does the work."""

from dataclasses import dataclass
from typing import Annotated, Any

from typer import Option

from uam_jax.cli.console import Console
from uam_jax.cli.options import SCENES, Compute, Model


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options that both studies have, besides those of computing."""

    out: Annotated[
        str, Option(help="Folder for the results. The same folder continues a run that stopped.")
    ]
    model: Model = SCENES
    third: Annotated[
        str, Option(metavar="tune|report|reserve,...", help="Parts of the 700 items to use.")
    ] = "report"
    seed: Annotated[
        int, Option(min=0, help="0 draws the benchmark's items; other numbers draw other items.")
    ] = 0
    chunk: Annotated[int, Option(min=1, help="Items at a time.")] = 16


def scenes(
    console: Console,
    options: EvalOptions,
    methods: Annotated[
        str,
        Option(
            metavar="NAME|FILE,...",
            help="Presets and TOML files; a file can have a table `methods.NAME` for each of several.",
        ),
    ] = "default,released",
    n: Annotated[int | None, Option(min=1, help="Number of items. Default: all of them.")] = None,
    share: Annotated[
        bool,
        Option(
            "--share",
            help="Use one inversion for all methods that need the same one; then no seconds are measured.",
        ),
    ] = False,
    calibrate: Annotated[
        bool,
        Option(
            "--calibrate",
            help="Fit the confidence to these edits, all methods together, and write it into the model's `uam.toml`. "
            "Use `--third tune`: the other thirds then show how good it is.",
        ),
    ] = False,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Runs Scenes-Bench: edits of rendered scenes against exact answers and masks."""
    from uam_jax.cli.eval_run import run_scenes

    return run_scenes(
        options, compute, console, methods=methods, count=n, share=share, calibrate=calibrate
    )


def reconstruction(
    console: Console,
    options: EvalOptions,
    n: Annotated[int, Option(min=1, help="Number of items.")] = 32,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Compares inversions with source, null and wrong prompts and with uniform maps."""
    from uam_jax.cli.eval_run import run_reconstruction

    return run_reconstruction(options, compute, console, count=n)
