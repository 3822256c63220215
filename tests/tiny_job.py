"""Data-set jobs on a tiny model: their settings, and how a test runs one."""

from pathlib import Path
from typing import Any

from uam_jax import EditConfig, Editor
from uam_jax.engine.parallel import Devices
from uam_jax.io.storage import Folder
from uam_jax.jobs.job import RunOptions, run_job
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.plan import JobPlan, JobSettings, plan_job
from uam_jax.jobs.runner import Monitor, Progress
from uam_jax.jobs.sizes import measure
from uam_jax.method.section import code

CONFIG = EditConfig().updated(
    {"steps": 3, "guidance": 3.0, "mask": {"t_mask": 400, "radius": 0}, "control": "none"}
)


def plan_tiny(editor: Editor, items: list[Item], config: EditConfig = CONFIG) -> JobPlan:
    settings = JobSettings(
        "tiny", editor.weights_hash, editor.model_hash, "float32", config.to_dict(), 8, 4, 2,
        code=code(config),
    )  # fmt: skip
    return plan_job(items, measure(items), config, settings)


def run_tiny(
    editor: Editor,
    items: list[Item],
    out: object,
    *,
    devices: int = 1,
    config: EditConfig = CONFIG,
    max_failures: int | None = None,
    **options: Any,
) -> Progress:
    """Runs a job into the folder `out`; `options` are those of `RunOptions`."""
    plan = plan_tiny(editor, items, config)
    if devices != 1:
        editor = editor.on(Devices.local(devices))
    folder = JobFolder(Folder(str(out)))
    monitor = Monitor(max_failures=max_failures)
    return run_job(editor, plan, folder, RunOptions(**options), monitor=monitor)


def files_of(folder: Path) -> dict[str, bytes]:
    """The results' files by their names."""
    found = (
        path
        for part in ("images", "masks", "originals", "errors")
        for path in (folder / part).rglob("*.*")
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
