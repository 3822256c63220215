"""A data-set job of edits, run and finished: plan, worker, runner, then ledger, table and gallery."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from uam_jax.engine.cache import InversionCache
from uam_jax.jobs.batches import batches
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.ledger import Ledger
from uam_jax.jobs.plan import JobPlan
from uam_jax.jobs.report import render_report
from uam_jax.jobs.runner import Progress, Stop, run
from uam_jax.jobs.worker import EditWorker
from uam_jax.runtime.host_memory import Budget

if TYPE_CHECKING:
    from uam_jax.editor import Editor


def run_job(
    editor: "Editor",
    plan: JobPlan,
    job: JobFolder,
    *,
    shard: tuple[int, int] = (0, 1),
    devices: int = 1,
    versions: str = "",
    cache: InversionCache | None = None,
    retry_failed: bool = False,
    max_failures: int | None = None,
    allow_change: bool = False,
    budget: Budget | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda message: None,
    stop: Stop | None = None,
) -> Progress:
    """Does what has no row in the ledger yet; see `runner.run`.

    Raises:
      InputError: another process is at work on the same part, or has begun the job with other settings.
    """
    budget = budget or Budget()
    with Ledger(job.folder, shard) as ledger:
        plan = job.begin(plan, allow_change=allow_change)
        wanted = set(plan.expected) - job.done(retry_failed=retry_failed)
        groups = [
            members
            for members in plan.part(shard)
            if any(name in wanted for item in members.items for name in item.results)
        ]
        mine = sum(
            name in wanted for members in groups for item in members.items for name in item.results
        )
        return run(
            batches(
                groups,
                devices=devices,
                side=plan.settings.side,
                multiple=plan.settings.multiple,
                micro=plan.settings.micro,
                budget=budget,
            ),
            EditWorker(editor, plan, wanted, budget, versions=versions, cache=cache),
            job.folder,
            ledger,
            total=mine,
            report=report,
            say=say,
            max_failures=max_failures,
            stop=stop,
        )


def finish_job(job: JobFolder, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Merges all processes' ledgers, writes table and gallery, and tells what is missing; can be repeated.

    Args:
      job: the folder.
      facts: to be told on the page.

    Raises:
      InputError: the folder holds no job, or can't be written.
    """
    expected, folder = job.expected, job.folder
    folder.sweep()
    rows = job.merge()
    found = {row["id"] for row in rows}
    missing = [name for name in expected if name not in found]
    failed = sum(row["status"] != "ok" for row in rows)
    review = sum(row["status"] == "ok" and bool(row.get("review")) for row in rows)
    summary = {
        "results": len(expected),
        "ok": len(rows) - failed,
        "review": review,
        "failed": failed,
        "missing": len(missing),
    }
    begun = job.settings
    told = {
        "model": begun.get("model"),
        "weights": begun.get("weights"),
        **summary,
        **(facts or {}),
    }
    for name, data in render_report(rows, title="Edited pictures", facts=told).items():
        folder.write(name, data)
    return {**summary, "first_missing": missing[:5], "gallery": folder.path("index.html")}
