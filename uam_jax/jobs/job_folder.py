"""The folder of a job: its settings, the ids of its results, the sizes of its pictures and its ledgers."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from uam_jax.errors import InputError, quoted
from uam_jax.files import base_name, public
from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import Ledger, Row, merge, read_rows
from uam_jax.jobs.plan import JobPlan, JobSettings, plan_job
from uam_jax.jobs.record import Record, changes, read_record, to_json
from uam_jax.jobs.sizes import KnownSizes
from uam_jax.runtime.backend import versions

SETTINGS, EXPECTED = "job.json", "expected.txt"

FORMAT = 2
"""Number of the folder's layout and of the names of its settings; a job of another format is refused."""


class JobFolder:
    """The files that a job keeps of itself; no other module reads or writes them.

    Attributes:
      folder: holds them, and the job's results.
      sizes: of the job's pictures.
    """

    def __init__(self, folder: Folder):
        """Names the folder, which need not exist."""
        self.folder = folder
        self.sizes = KnownSizes(folder)

    @property
    def settings(self) -> Record:
        """The settings that the job was begun with; empty where there is no job.

        Raises:
          InputError: the file is damaged, or a version with another format wrote it.
        """
        found = read_record(self.folder, SETTINGS)
        written = found.pop("format", 1)
        version = found.pop("version", "0.1")
        if found and written != FORMAT:
            raise InputError(
                f"{self.folder.url} holds a job that uam_jax {version} began (its job.json has format {written}, this "
                f"version reads format {FORMAT}): finish it with that version, or begin a new job in another folder"
            )
        return found

    @property
    def expected(self) -> list[str]:
        """The ids of all results.

        Raises:
          InputError: the folder holds no job, or one that another version began.
        """
        content = self.folder.read(EXPECTED)
        if content is None:
            raise InputError(
                f"{self.folder.url} holds no job: give a folder that `uam batch` wrote to"
            )
        _ = self.settings
        return [json.loads(line) for line in content.decode().splitlines()]

    def check(self, plan: JobPlan | None = None) -> None:
        """Makes sure that this version reads the folder, and can write the job's files and those of a plan's results.

        Raises:
          InputError: it can't.
        """
        _ = self.settings
        parts = [f"{part}/x" for part in ("images", "masks", "originals", "errors", "gallery")]
        self.folder.check([*parts, SETTINGS, *(plan.files if plan else ())])

    def begin(self, plan: JobPlan, *, allow_change: bool = False) -> JobPlan:
        """Writes the files that later runs and other processes need, or adopts those that they wrote before.

        Args:
          plan: of this process.
          allow_change: go on with other settings.

        Returns:
          The plan with the sizes that all processes have agreed on.

        Raises:
          InputError: another process has begun the job with other settings.
        """
        settings = asdict(plan.settings)
        if not self.folder.create(SETTINGS, _as_written(settings)):
            _ = self.settings  # a job of another version is refused even where changes are allowed
            if not allow_change:
                self.refuse_other(plan.settings)
            self.folder.write(SETTINGS, _as_written(settings))
        sizes = self.sizes.agree(plan.items, plan.sizes)
        if sizes != plan.sizes:
            plan = plan_job(plan.items, sizes, plan.config, plan.settings)
        lines = "".join(json.dumps(name) + "\n" for name in plan.expected)
        self.folder.write(EXPECTED, lines.encode())
        return plan

    def add_settings(self, settings: Mapping[str, Any]) -> None:
        """Adds settings to those that the job was begun with, which stay.

        Raises:
          InputError: one of them was another before.
        """
        before = self.settings
        self._refuse_changes(before, settings)
        self.folder.write(SETTINGS, _as_written(before | dict(settings)))

    def ledger(self, shard: tuple[int, int] = (0, 1)) -> Ledger:
        """The ledger of the process that works on part I of N."""
        return Ledger(self.folder, shard)

    def rows(self) -> dict[str, Row]:
        """The rows of all processes by their ids."""
        return read_rows(self.folder)

    def done(self, *, retry_failed: bool = False) -> set[str]:
        """The ids of results that need no further work."""
        rows = self.rows().values()
        return {row["id"] for row in rows if row["status"] == "ok" or not retry_failed}

    def merge(self) -> list[Row]:
        """Writes the rows of all processes as one ledger and one table, and returns them; see `ledger.merge`."""
        return merge(self.folder, self.expected)

    def refuse_other(self, settings: JobSettings, remedy: str = "") -> None:
        """Compares settings with those that the job was begun with; of the model its hash, not its name.

        Args:
          settings: of this run.
          remedy: a further remedy than another folder.

        Raises:
          InputError: naming all that differ.
        """
        now = asdict(settings)
        del now["model"]  # `./m` and `m` are one model
        self._refuse_changes(self.settings, now, remedy)

    def _refuse_changes(self, before: Record, now: Mapping[str, Any], remedy: str = "") -> None:
        if changed := changes(before, now):
            raise InputError(
                f"{self.folder.url} holds a job with other settings ({changed}): choose another --out{remedy}"
            )

    def refuse_changed(self, plan: JobPlan) -> None:
        """Compares a plan's results with those made under the same ids; pictures and masks by their files' names.

        Raises:
          InputError: naming the first that differs; or there are results under other ids, as an older version gave
            them, which would be made again.
        """
        rows = self.rows()
        self._refuse_renamed(plan, rows)
        for name, now in _inputs(plan):
            row = rows.get(name, {})
            for key, value in now.items():
                if key not in row:
                    continue
                before = _file(row[key]) if key in _FILES else row[key]
                if before != value:
                    raise InputError(
                        f"{self.folder.url} holds {name} with {key} {quoted(before)}, now it is {quoted(value)}: "
                        "choose another --out, or add --allow-change to keep it and go on"
                    )

    def _refuse_renamed(self, plan: JobPlan, rows: Mapping[str, Row]) -> None:
        again = {
            (public(item.image), target): name
            for item in plan.items
            for name, target in zip(item.results, item.targets, strict=True)
            if name not in rows
        }
        expected = set(plan.expected)
        renamed = [
            (name, again[place])
            for name, row in rows.items()
            if name not in expected and row["status"] == "ok"
            if (place := (row.get("image"), row.get("target"))) in again
        ]
        if renamed:
            before, after = renamed[0]
            raise InputError(
                f"{self.folder.url} holds {len(renamed)} results of this job's pictures under other ids ({before} is "
                f"{after} now), as older versions gave them, and they would be made again: go on with the version or "
                "the ids that it was begun with, choose another --out, or add --allow-change to make them again"
            )


_FILES = ("given_mask", "image")


def _inputs(plan: JobPlan) -> Iterator[tuple[str, Row]]:
    """Each result's id, and the columns of its row that say from what it is made."""
    for members in plan.groups:
        config = plan.config_of(members.bucket).fingerprint()
        for item in members.items:
            for name, target in zip(item.results, item.targets, strict=True):
                yield (
                    name,
                    {
                        "target": target,
                        "source": item.source,
                        "negative": item.negative,
                        "words": item.words.to_json(),
                        "given_mask": _file(item.mask),
                        "config": config,
                        "image": _file(item.image),
                    },
                )


def _as_written(settings: Mapping[str, Any]) -> bytes:
    return to_json({"format": FORMAT, "version": versions("uam_jax")["uam_jax"], **settings})


def _file(name: str | None) -> str | None:
    """The last part of a path or URL, which stays when a data set moves or its URLs are signed anew."""
    return base_name(public(name)) if name else None
