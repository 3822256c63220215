"""`uam merge`."""

from typing import Annotated, Any

from typer import Argument

from uam_jax.cli.console import Console


def merge(
    console: Console,
    folder: Annotated[str, Argument(metavar="DIR", help="The --out of `uam batch`.")],
) -> dict[str, Any]:
    """Merges the parts of all processes into one ledger, table and gallery, and counts missing results."""
    from uam_jax.io.storage import Folder
    from uam_jax.jobs.job import finish_job
    from uam_jax.jobs.job_folder import JobFolder

    console.stage(f"merging {folder}")
    job = JobFolder(Folder(folder))
    if job.expected:
        job.check()
    return {"command": "merge", **finish_job(job)}
