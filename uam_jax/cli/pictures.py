"""Work on pictures one after the other, which `uam edit` and `uam reconstruct` share."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uam_jax.cli.console import Console
from uam_jax.runtime import backend

if TYPE_CHECKING:
    from uam_jax.editor import Editor
    from uam_jax.io.outputs import Files
    from uam_jax.jobs.single import PictureFiles, Rows


def process_pictures(
    console: Console,
    editor: "Editor",
    plans: "list[PictureFiles]",
    work: "Callable[[PictureFiles], tuple[Files, Rows]]",
    page: "Callable[[Rows], Files]" = lambda rows: {},
) -> dict[str, Any]:
    """Works on every picture and writes each picture's files as soon as it is done.

    If a picture fails, the files of the pictures before it stay, and a warning lists the pictures that are left.

    Args:
      console: shows the progress.
      editor: the model that the work is done with.
      plans: the pictures, in their order.
      work: makes the files of one picture and its rows of figures.
      page: makes further files from the rows of all pictures.

    Returns:
      The part of a summary that these subcommands have in common.
    """
    from uam_jax.io.outputs import write_files
    from uam_jax.jobs.single import tell_left

    rows: Rows = []
    done, start = 0, time.perf_counter()
    try:
        with backend.CompileClock() as clock:
            for plan in plans:
                console.stage(f"{plan.source} ({done + 1} of {len(plans)})")
                files, figures = work(plan)
                write_files(files)
                rows += figures
                done += 1
        total = time.perf_counter() - start
        write_files(page(rows))
    except BaseException:
        if done:
            console.warn(tell_left(plans, done))
        raise
    return {
        "pictures": rows,
        "model": editor.name,
        "weights": editor.weights_hash,
        "dtype": editor.dtype,
        "seconds": {"compile": clock.seconds, "run": total - clock.seconds},
        **backend.describe_machine(),
    }
