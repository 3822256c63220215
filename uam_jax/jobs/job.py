"""A data-set job of edits, run and finished: plan, worker, runner, then ledger, table and gallery."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uam_jax.engine.cache import InversionCache
from uam_jax.jobs.batches import batches
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.plan import JobPlan
from uam_jax.jobs.report import render_report
from uam_jax.jobs.runner import Monitor, Progress, run
from uam_jax.jobs.worker import EditWorker
from uam_jax.runtime.host_memory import Budget

if TYPE_CHECKING:
    from uam_jax.editor import Editor


@dataclass(frozen=True)
class RunOptions:
    """The options of one run of a job; none of them changes a result.

    Attributes:
      shard: (index, count): part I of N is this process's.
      versions: of the packages, kept in every row.
      cache: of inversions.
      retry_failed: try results again that failed before.
      allow_change: go on with other settings than those that the job was begun with.
      budget: of memory for pictures at their own size.
    """

    shard: tuple[int, int] = (0, 1)
    versions: str = ""
    cache: InversionCache | None = None
    retry_failed: bool = False
    allow_change: bool = False
    budget: Budget = field(default_factory=Budget)


def run_job(
    editor: "Editor",
    plan: JobPlan,
    job: JobFolder,
    options: RunOptions | None = None,
    *,
    monitor: Monitor | None = None,
) -> Progress:
    """Makes the results of this process's part that have no row in the ledgers yet; see `runner.run`.

    Args:
      editor: on the devices that share the work.
      plan: of the whole job.
      job: its folder.
      options: of this run.
      monitor: follows the run and may end it.

    Raises:
      InputError: another process is at work on the same part, or has begun the job with other settings.
    """
    options = options or RunOptions()
    with job.ledger(options.shard) as ledger:
        plan = job.begin(plan, allow_change=options.allow_change)
        wanted = set(plan.expected) - job.done(retry_failed=options.retry_failed)
        mine = [
            (members, count)
            for members in plan.part(options.shard)
            if (count := sum(name in wanted for item in members.items for name in item.results))
        ]
        ahead = batches(
            [members for members, _ in mine],
            devices=len(editor.devices or (0,)),
            side=plan.settings.side,
            multiple=plan.settings.multiple,
            batch_per_device=plan.settings.batch_per_device,
            budget=options.budget,
            focus=plan.settings.focus,
        )
        worker = EditWorker(
            editor, plan, wanted, options.budget, versions=options.versions, cache=options.cache
        )
        total = sum(count for _, count in mine)
        return run(ahead, worker, ledger, total=total, monitor=monitor)


def finish_job(job: JobFolder, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Merges the ledgers of all processes, writes table and gallery, and counts the results; can be repeated.

    Args:
      job: the folder.
      facts: further lines of the gallery's heading.

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
    model = {key: job.settings.get(key) for key in ("model", "weights", "dtype", "focus")}
    shown = {**model, **summary, **(facts or {})}
    for name, data in render_report(rows, title="Edited pictures", facts=shown).items():
        folder.write(name, data)
    return {**summary, "first_missing": missing[:5], "gallery": folder.path("index.html")}
