"""The plan of a data-set job: its settings, its groups of pictures, and its cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from uam_jax.engine.prompts import check_edits, source_prompts, without_source
from uam_jax.errors import InputError
from uam_jax.files import base_name
from uam_jax.io.encoding import default_suffix, output_format
from uam_jax.io.focus import Crop, Focus, check_focus
from uam_jax.io.images import quietly
from uam_jax.jobs.batches import Bucket, Group, count_by, group
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.names import file_stems
from uam_jax.jobs.originals import read_item
from uam_jax.jobs.sizes import Size
from uam_jax.method.config import EditConfig

if TYPE_CHECKING:
    from uam_jax.editor import Editor


@dataclass(frozen=True)
class JobSettings:
    """The settings that decide a job's results beside the manifest: kept in `job.json`, compared when the job goes on.

    Attributes:
      model: its name, as the user gave it.
      weights: hash of its weights.
      model_hash: hash of everything that decides what the model computes, the weights included.
      dtype: of the computation.
      config: the edits' settings.
      side: pictures are worked on at about side² pixels.
      multiple: both sides at which pictures are worked on are multiples of it.
      batch_per_device: pictures that a device edits at a time.
      suffix: of the results' files; None means that of each original.
      precision: of matrix products; None means the platform's own.
      focus: whether pictures with masks are edited within a crop, see `focus.Crop.of`.
      code: hashes of the files of a user's own control and inversion, see `section.code`.
    """

    model: str
    weights: str
    model_hash: str
    dtype: str
    config: Mapping[str, Any]
    side: int
    multiple: int
    batch_per_device: int
    suffix: str | None = None
    precision: str | None = None
    focus: Focus = "auto"
    code: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobPlan:
    """All that a job is to do, and in which groups.

    Attributes:
      items: of the whole manifest.
      sizes: of the items' pictures.
      groups: of the whole job, not only of this process's part.
      settings: of the job.
      config: of items without settings of their own.
    """

    items: Sequence[Item]
    sizes: Sequence[Size | InputError]
    groups: Sequence[Group]
    settings: JobSettings
    config: EditConfig

    @cached_property
    def expected(self) -> list[str]:
        """The ids of all results, in the manifest's order."""
        return [name for item in self.items for name in item.results]

    @cached_property
    def file_names(self) -> dict[str, str]:
        """The names of the files of items and results, without suffixes, by their ids."""
        return file_stems([*(item.id for item in self.items), *self.expected])

    @property
    def known_sizes(self) -> dict[str, Size]:
        """The sizes of the pictures that could be read, by their items' ids."""
        pairs = zip(self.items, self.sizes, strict=True)
        return {item.id: size for item, size in pairs if not isinstance(size, InputError)}

    @property
    def files(self) -> list[str]:
        """The longest name among each result's files, as far as it is known beforehand."""
        suffix = self.settings.suffix or ".jpeg"
        return [f"originals/{name}{suffix}" for name in self.file_names.values()]

    def part(self, shard: tuple[int, int]) -> list[Group]:
        """The groups of process I of N: every N-th, so that each process has some of every size."""
        index, count = shard
        return list(self.groups[index::count])

    def config_of(self, bucket: Bucket) -> EditConfig:
        """The settings of a bucket's edits: the job's, with the items' own."""
        return self.config.overridden(bucket.settings, imports=False)

    def check_edits(self, tokenizer: Any) -> None:
        """Raises an `InputError` that names the first items whose prompts or words the control can't work with."""
        faults = []
        for members in self.groups:
            config = self.config_of(members.bucket)
            for item in members.items:
                own = np.zeros(len(item.edits), int)
                try:
                    check_edits(config, tokenizer, item.edits, own, item.source)
                except InputError as error:
                    faults.append(f"item {item.id}: {error}")
        if faults:
            more = [f"and {len(faults) - 5} more"] * (len(faults) > 5)
            raise InputError("; ".join([*faults[:5], *more]))

    def describe(self, editor: "Editor", done: int) -> dict[str, Any]:
        """The job's cost, before it runs: shapes, programs to compile, and evaluations, in all and by bucket."""
        rows, programs = [], set()
        for bucket, count in count_by(self.groups).items():
            if not all(bucket.size):
                continue
            config = self.config_of(bucket)
            programs |= editor.programs(
                config, bucket.size, user_mask=bucket.masked, prompted=bucket.prompted
            )
            each = editor.evaluations(
                config,
                targets=bucket.targets,
                user_mask=bucket.masked,
                source="x" if bucket.prompted else "",
            )
            rows.append(
                {
                    "size": str(bucket),
                    "pixels": bucket.size[0] * bucket.size[1],
                    "pictures": count,
                    "targets": bucket.targets,
                    "settings": ", ".join(bucket.settings) or None,
                    "evaluations_per_picture": each,
                    "evaluations": each * count,
                }
            )
        shapes: dict[str, int] = {}
        for row in rows:
            name = " with ".join(filter(None, (row["size"], row["settings"])))
            shapes[name] = shapes.get(name, 0) + row["pictures"]
        return {
            "pictures": len(self.items),
            "results": len(self.expected),
            "done_before": done,
            "shapes": [f"{name} ({count})" for name, count in shapes.items()],
            # The text encoder has a program for the null prompt, and one for a batch's prompts.
            "programs": len(programs)
            + len({1, self.settings.batch_per_device * len(editor.devices or (0,))}),
            "evaluations": sum(row["evaluations"] for row in rows),
            "buckets": rows,
        }


def plan_job(
    items: Sequence[Item],
    sizes: Sequence[Size | InputError],
    config: EditConfig,
    settings: JobSettings,
) -> JobPlan:
    """Sorts items into groups, and checks the settings of each.

    Raises:
      InputError: an item's settings are at fault.
    """
    groups = group(
        items,
        sizes,
        side=settings.side,
        multiple=settings.multiple,
        batch_per_device=settings.batch_per_device,
    )
    plan = JobPlan(items, sizes, groups, settings, config)
    for members in groups:
        first = members.items[0]
        try:
            own = plan.config_of(members.bucket)
            own.check(user_mask=members.bucket.masked)
            own.fingerprint()  # of settings that have none, it says so before the work
        except InputError as error:
            raise InputError(f"item {first.id}: {error}") from None
        check_focus(settings.focus, masked=members.bucket.masked, whose=f"item {first.id}")
        if own.inversion.outside_uniformity and not members.bucket.masked:
            raise InputError(
                f"item {first.id} has no mask, and inversion.outside_uniformity acts outside of it: give it, "
                "or --set inversion.outside_uniformity=0"
            )
        if own.source.condition == "prompt":
            for item in members.items:
                if item.source is None:
                    raise InputError(without_source(own, f"item {item.id}"))
        else:
            source = next((item.source for item in members.items if item.source is not None), None)
            source_prompts(source, own)  # warns that it is ignored
    return plan


def check_items(
    items: Sequence[Item],
    sizes: Sequence[Size | InputError],
    suffix: str | None,
    focus: Focus,
) -> tuple[list[str], int]:
    """Reads every picture and mask as the job would.

    Args:
      items: of the job.
      sizes: at which they are worked on.
      suffix: of the results' files; None means that of each original.
      focus: of the job.

    Returns:
      The faults, each with its item's id, and the number of pictures that are edited within a crop.
    """
    faults, crops = [], 0
    for item, size in zip(items, sizes, strict=True):
        try:
            if isinstance(size, InputError):
                raise size
            picture, mask = read_item(item)
            with quietly():
                output_format(
                    f"x{suffix or default_suffix(base_name(item.image), picture)}", picture
                )
            crop = Crop.of(mask, picture.size, working=size, focus=focus)
            crops += crop != Crop.whole(picture.size)
        except InputError as error:
            faults.append(f"{item.id}: {error}")
    return faults, crops
