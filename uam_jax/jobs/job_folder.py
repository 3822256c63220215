"""The folder of a data-set job: what it was begun with, the sizes of its pictures, the ids it is to make, its rows."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from uam_jax.errors import InputError, quoted
from uam_jax.files import base_name, public
from uam_jax.io.storage import Folder
from uam_jax.jobs.batches import Size, measure
from uam_jax.jobs.ledger import Row, merge, read_record, read_rows, refuse_other
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.plan import JobPlan, Settings, plan_job

JOB, EXPECTED, SIZES = "job.json", "expected.txt", "sizes.json"
_ALL_SIZES = "sizes*.json"


class JobFolder:
    """The files that make a folder a job's.

    Attributes:
      folder: where they and the results lie.
    """

    def __init__(self, folder: Folder):
        """Names the folder, which need not exist."""
        self.folder = folder
        self._sizes_before: set[str] = set()
        self._looked_at: set[str] = set()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the job was begun with; nothing where there is none.

        Raises:
          InputError: the file is damaged.
        """
        return read_record(self.folder, JOB)

    @property
    def expected(self) -> list[str]:
        """The ids of all results.

        Raises:
          InputError: the folder holds no job.
        """
        content = self.folder.read(EXPECTED)
        if content is None:
            raise InputError(
                f"{self.folder.url} holds no job: give a folder that `uam batch` wrote to"
            )
        return [json.loads(line) for line in content.decode().splitlines()]

    def check(self, plan: JobPlan | None = None) -> None:
        """Makes sure that the job's files can be written, those of a plan's results too.

        Raises:
          InputError: they can't.
        """
        parts = [f"{part}/x" for part in ("images", "masks", "originals", "errors", "gallery")]
        self.folder.check([*parts, JOB, *(plan.files if plan else ())])

    def begin(self, plan: JobPlan, *, allow_change: bool = False) -> JobPlan:
        """Writes what later runs and other processes need to know, or agrees to what they wrote before.

        Args:
          plan: of this process.
          allow_change: go on with other settings.

        Returns:
          The plan with the sizes that all processes have agreed on.

        Raises:
          InputError: another process has begun the job with other settings.
        """
        content = json.dumps(asdict(plan.settings), indent=1).encode()
        if not self.folder.create(JOB, content):
            if not allow_change:
                self.refuse_other(plan.settings)
            self.folder.write(JOB, content)
        sizes = self.agree(plan.items, plan.sizes)
        if sizes != plan.sizes:
            plan = plan_job(plan.items, sizes, plan.config, plan.settings)
        told = "".join(json.dumps(name) + "\n" for name in plan.expected)
        self.folder.write(EXPECTED, told.encode())
        return plan

    def measure(
        self,
        items: Sequence[Item],
        *,
        again: bool = False,
        seen: Callable[[], None] = lambda: None,
    ) -> list[Size | InputError]:
        """Every picture's size; those that an earlier run or another process has found are taken from there.

        So groups never change, also where a picture could not be read once and can be now.

        Args:
          items: of the manifest.
          again: look again at those that could not be read.
          seen: called after each that is looked at.
        """
        self._sizes_before = set(self.folder.names(_ALL_SIZES))
        known = self._sizes(self._sizes_before)
        kept = {name: size for name, size in known.items() if size or not again}
        new = [item for item in items if item.id not in kept]
        self._looked_at |= {item.id for item in new}
        kept |= dict(zip((item.id for item in new), measure(new, seen), strict=True))
        return [_size_of(item, kept[item.id]) for item in items]

    def agree(
        self, items: Sequence[Item], sizes: Sequence[Size | InputError]
    ) -> list[Size | InputError]:
        """Keeps the sizes that this process has found; where another one has written since, its own count.

        They lie in numbered files, each of which is written once and by one process.
        """
        found = {item.id: _as_kept(size) for item, size in zip(items, sizes, strict=True)}
        while True:
            names = set(self.folder.names(_ALL_SIZES))
            known, since = self._sizes(names), self._sizes(names - self._sizes_before)
            new = {
                name: size
                for name, size in found.items()
                if name not in known or (name in self._looked_at and name not in since)
            }
            next_file = f"sizes.{len(names)}.json" if names else SIZES
            if not new or self.folder.create(next_file, json.dumps(new).encode()):
                break
        agreed = known | new
        return [
            size if _as_kept(size) == agreed[item.id] else _size_of(item, agreed[item.id])
            for item, size in zip(items, sizes, strict=True)
        ]

    def _sizes(self, names: Iterable[str]) -> dict[str, list[int] | None]:
        """Sizes by their items' ids; None where there was none to be found."""
        known: dict[str, list[int] | None] = {}
        for name in names:
            for item, size in read_record(self.folder, name).items():
                known[item] = known.get(item) or size
        return known

    def done(self, *, retry_failed: bool = False) -> set[str]:
        """The ids of results that need no further work."""
        rows = read_rows(self.folder).values()
        return {row["id"] for row in rows if row["status"] == "ok" or not retry_failed}

    def merge(self) -> list[Row]:
        """All processes' rows as one ledger and one table; see `ledger.merge`."""
        return merge(self.folder, self.expected)

    def refuse_other(self, settings: Settings, remedy: str = "") -> None:
        """Compares settings with those that the job was begun with; of the model its hash, not its name.

        Args:
          settings: this run's.
          remedy: what else can be done than to choose another folder.

        Raises:
          InputError: something differs; all of it is told.
        """
        now = asdict(settings)
        del now["model"]  # `./m` and `m` are one model
        refuse_other(self.folder, JOB, now, remedy)

    def refuse_changed(self, plan: JobPlan) -> None:
        """Compares what is to be made with what was made under the same ids; pictures and masks by their files' names.

        Raises:
          InputError: the first that differs is told; or results were made under other ids, as an older version gave
            them, and would be made again.
        """
        rows = read_rows(self.folder)
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
        made = [
            (item, plan.config_of(members.bucket).fingerprint())
            for members in plan.groups
            for item in members.items
        ]
        for item, config in made:
            for name, target in zip(item.results, item.targets, strict=True):
                now = {
                    "target": target,
                    "source": item.source,
                    "given_mask": _file(item.mask),
                    "config": config,
                    "image": _file(item.image),
                }
                row = rows.get(name, {})
                files = {key: _file(row.get(key)) for key in ("image", "given_mask")}
                before = row | files
                for key, value in now.items():
                    if key in row and before[key] != value:
                        raise InputError(
                            f"{self.folder.url} holds {name} with {key} {quoted(before[key])}, now it is "
                            f"{quoted(value)}: choose another --out, or add --allow-change to keep it and go on"
                        )


def _as_kept(size: Size | InputError) -> list[int] | None:
    return None if isinstance(size, InputError) else list(size)


def _size_of(item: Item, kept: Any) -> Size | InputError:
    if isinstance(kept, InputError):
        return kept
    if not kept:
        return InputError(f"{item.image}: could not be read when the job began")
    return kept[0], kept[1]


def _file(name: str | None) -> str | None:
    """The name that stays when a data set moves, or its URLs are signed anew."""
    return base_name(public(name)) if name else None
