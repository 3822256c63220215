"""`uam batch`: its options; `batch_run` does the work."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from uam_jax.cli.console import Console
from uam_jax.cli.options import SCENES, Compute, Focused, Model, Settings, Size, WordOptions


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Options of `uam batch`, besides those of settings and of computing."""

    manifest: Annotated[
        str,
        Argument(
            help="JSONL or Parquet file with the columns `image` and `target` (one text or several), and optionally "
            "`source`, `negative`, `words`, `id`, `mask` and `set`; or a folder of pictures. A path, or any URL that "
            "fsspec knows."
        ),
    ]
    out: Annotated[
        str, Option(help="Folder for the results. The same folder continues a job that stopped.")
    ]
    target: Annotated[
        tuple[str, ...],
        Option(help="For a folder of pictures: text that describes the result. Can be repeated."),
    ] = ()
    source: Annotated[
        str | None, Option(help="For a folder of pictures: text that describes the pictures.")
    ] = None
    negative: Annotated[
        str | None,
        Option(
            help="For a folder of pictures: text that describes what the results must not show."
        ),
    ] = None
    model: Model = SCENES
    size: Size = None
    focus: Focused = "auto"
    multiple: Annotated[
        int | None,
        Option(
            min=1,
            help="Round the working sides to multiples of this; a larger number means fewer sizes to compile.",
        ),
    ] = None
    batch_per_device: Annotated[
        int, Option("--batch", min=1, help="Pictures per device at a time.")
    ] = 4
    devices: Annotated[
        int | None,
        Option(
            min=1,
            max=1024,
            help="Number of devices. Default: all. A CPU is divided into as many virtual ones.",
        ),
    ] = None
    parallel: Annotated[
        Literal["shard_map", "pmap"], Option(help="How batches are split over devices.")
    ] = "shard_map"
    format: Annotated[
        str | None,
        Option(metavar="png|jpg|webp|tiff", help="Format of the results. Default: the input's."),
    ] = None
    shard: Annotated[
        str | None,
        Option(
            metavar="I/N", help="Work on part I (from 0) of N; `uam merge` joins the parts later."
        ),
    ] = None
    distributed: Annotated[
        bool, Option("--distributed", help="Take I and N from the cluster (TPU VMs, SLURM).")
    ] = False
    coordinator: Annotated[
        str | None,
        Option(
            metavar="HOST:PORT",
            help="Like --distributed, where the cluster does not name the coordinator.",
        ),
    ] = None
    processes: Annotated[
        int | None, Option(min=1, help="With --coordinator: the number of processes.")
    ] = None
    process: Annotated[
        int | None, Option(min=0, help="With --coordinator: the number of this process, from 0.")
    ] = None
    cache: Annotated[Path | None, Option(help="Folder that keeps inversions for later edits.")] = (
        None
    )
    cache_size: Annotated[
        float,
        Option(
            min=0, help="Largest size of --cache, in GB. A picture of 512x512 takes up to 3.5 MB."
        ),
    ] = 10.0
    host_memory: Annotated[
        float | None,
        Option(
            min=0,
            metavar="GB",
            help="Memory for pictures at their own size. Default: a sixteenth of the free memory.",
        ),
    ] = None
    max_failures: Annotated[
        int | None, Option(min=0, help="Stop when more results than this fail.")
    ] = None
    retry_failed: Annotated[
        bool, Option("--retry-failed", help="Try again the results that failed before.")
    ] = False
    allow_change: Annotated[
        bool, Option("--allow-change", help="Continue a job with settings that have changed.")
    ] = False
    dry_run: Annotated[
        bool, Option("--dry-run", help="Check everything, estimate the cost, and write nothing.")
    ] = False


def batch(
    console: Console,
    options: BatchOptions,
    word_options: WordOptions,
    settings: Settings,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Edits a whole data set; can be killed and started again at any time."""
    from uam_jax.cli.batch_run import run_batch

    return {
        "command": "batch",
        **run_batch(options, word_options.words, settings, compute, console),
    }
