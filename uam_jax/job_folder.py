"""The folder of a data-set job: what it was begun with, the sizes of its pictures, the ids it is to make, its rows."""

import json
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from uam_jax.batch_plan import JobPlan, Settings
from uam_jax.data import Size, measure
from uam_jax.errors import InputError
from uam_jax.ledger import Row, merge, read_rows, refuse_other
from uam_jax.manifest import Item
from uam_jax.storage import Folder

JOB, EXPECTED, SIZES = "job.json", "expected.txt", "sizes.json"


class JobFolder:
    """The files that make a folder a job's.

    Attributes:
      folder: where they and the results lie.
    """

    def __init__(self, folder: Folder):
        """Names the folder, which need not exist."""
        self.folder = folder

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the job was begun with; nothing where there is none."""
        return json.loads(self.folder.read(JOB) or b"{}")

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

    def begin(self, plan: JobPlan) -> None:
        """Writes what a later run and `uam merge` need to know."""
        self.folder.write(JOB, json.dumps(asdict(plan.settings), indent=1).encode())
        self.keep_sizes(plan.items, plan.sizes)
        told = "".join(json.dumps(name) + "\n" for name in plan.expected)
        self.folder.write(EXPECTED, told.encode())

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
        known = json.loads(self.folder.read(SIZES) or b"{}")
        kept = {name: size for name, size in known.items() if size or not again}
        new = [item for item in items if item.id not in kept]
        kept |= dict(zip((item.id for item in new), measure(new, seen), strict=True))

        def size_of(item: Item) -> Size | InputError:
            found = kept[item.id]
            if isinstance(found, InputError):
                return found
            missing = InputError(f"{item.image}: could not be read when the job began")
            return (found[0], found[1]) if found else missing

        return [size_of(item) for item in items]

    def keep_sizes(self, items: Sequence[Item], sizes: Sequence[Size | InputError]) -> None:
        """Writes what `measure` reads."""
        told = {
            item.id: None if isinstance(size, InputError) else size
            for item, size in zip(items, sizes, strict=True)
        }
        self.folder.write(SIZES, json.dumps(told).encode())

    def done(self, *, retry_failed: bool = False) -> set[str]:
        """The ids of results that need no further work."""
        rows = read_rows(self.folder).values()
        return {row["id"] for row in rows if row["status"] == "ok" or not retry_failed}

    def merge(self, *, done: bool = False) -> list[Row]:
        """All processes' rows as one ledger and one table; see `ledger.merge`."""
        return merge(self.folder, self.expected, done=done)

    def refuse_other(self, settings: Settings, remedy: str = "") -> None:
        """Compares settings with those that the job was begun with.

        Args:
          settings: this run's.
          remedy: what else can be done than to choose another folder.

        Raises:
          InputError: something differs; all of it is told.
        """
        refuse_other(self.folder, JOB, asdict(settings), remedy)

    def refuse_changed(self, plan: JobPlan) -> None:
        """Compares what is to be made with what was made under the same ids; pictures by their file's name alone.

        Raises:
          InputError: the first that differs is told.
        """
        rows = read_rows(self.folder)
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
                    "given_mask": item.mask,
                    "config": config,
                    "image": posixpath.basename(item.image),
                }
                row = rows.get(name, {})
                before = row | {"image": posixpath.basename(row.get("image", item.image))}
                for key, value in now.items():
                    if key in row and before[key] != value:
                        raise InputError(
                            f"{self.folder.url} holds {name} with {key} {before[key]!r}, now it is {value!r}: "
                            "choose another --out, or add --allow-change to keep it and go on"
                        )
