"""A data-set job of edits: plan, check against an earlier run, worker, ledger and gallery."""

import hashlib
import json
import posixpath
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from uam_jax.cache import InversionCache
from uam_jax.compose import keep_unedited
from uam_jax.config import EditConfig
from uam_jax.data import (
    Batch,
    Bucket,
    Group,
    Size,
    batches,
    count_by,
    group,
    measure,
    read_item,
)
from uam_jax.errors import InputError
from uam_jax.images import (
    default_suffix,
    encode_error,
    encode_image,
    encode_mask,
    encode_preview,
    output_format,
    quietly,
    refuse_nonfinite,
    resize,
)
from uam_jax.ledger import Ledger, Row, merge, read_rows
from uam_jax.manifest import Item
from uam_jax.report import render_report
from uam_jax.requests import source_prompts
from uam_jax.runner import Outcome, Progress, Stop, run
from uam_jax.storage import Folder

if TYPE_CHECKING:
    from uam_jax.pipeline import Editor, EditResult, Prepared

JOB, EXPECTED, SIZES = "job.json", "expected.txt", "sizes.json"


@dataclass(frozen=True)
class Settings:
    """What decides a job's results, besides the manifest: kept in `job.json`, and compared when it goes on.

    Attributes:
      model: as it was asked for.
      weights: their hash.
      dtype: of the computation.
      precision: of matrix products; None: the platform's own.
      config: the edits' settings.
      side: pictures are worked on at about side² pixels.
      multiple: of which their sides are multiples.
      micro: pictures per device at a time.
      suffix: of the results; None: as the originals'.
    """

    model: str
    weights: str
    dtype: str
    config: Mapping[str, Any]
    side: int
    multiple: int
    micro: int
    suffix: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Plan:
    """A job, decided.

    Attributes:
      items: of the whole manifest.
      sizes: of the items' pictures.
      groups: of the whole job, whatever part of it this process takes.
      settings: of all.
      config: of items without settings of their own.
    """

    items: Sequence[Item]
    sizes: Sequence[Size | InputError]
    groups: Sequence[Group]
    settings: Settings
    config: EditConfig

    @cached_property
    def expected(self) -> list[str]:
        """The ids of all results, in the manifest's order."""
        return [name for item in self.items for name in item.results]

    def part(self, shard: tuple[int, int]) -> list[Group]:
        """The groups of process I of N: every N-th, so that each has some of every size."""
        index, count = shard
        return list(self.groups[index::count])

    def config_of(self, bucket: Bucket) -> EditConfig:
        return self.config.overridden(bucket.settings)

    def describe(self, editor: "Editor", done: int) -> dict[str, Any]:
        """What the job takes, told before it runs."""
        rows, programs = [], set()
        for bucket, count in count_by(self.groups).items():
            if not all(bucket.size):
                continue
            config = self.config_of(bucket)
            programs |= editor.programs(config, bucket.size, user_mask=bucket.masked)
            each = editor.evaluations(config, targets=bucket.targets, user_mask=bucket.masked)
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
            # And the text's: of the null prompt, and of a batch.
            "programs": len(programs) + len({1, self.settings.micro * len(editor.devices or (0,))}),
            "evaluations": sum(row["evaluations"] for row in rows),
            "buckets": rows,
        }


def plan_job(
    items: Sequence[Item],
    sizes: Sequence[Size | InputError],
    config: EditConfig,
    settings: Settings,
) -> Plan:
    """Sorts items into groups, and checks the settings of each.

    Raises:
      InputError: an item's settings are at fault.
    """
    groups = group(
        items, sizes, side=settings.side, multiple=settings.multiple, micro=settings.micro
    )
    plan = Plan(items, sizes, groups, settings, config)
    for members in groups:
        first = members.items[0]
        try:
            own = plan.config_of(members.bucket)
        except InputError as error:
            raise InputError(f"item {first.id}: {error}") from None
        if own.region.inversion and not members.bucket.masked:
            raise InputError(
                f"item {first.id} has no mask, and region.inversion is uniform outside of it: give it, "
                "or --set region.inversion=0"
            )
        if own.source_context == "prompt":
            for item in members.items:
                if item.source is None:
                    raise InputError(
                        f'item {item.id} has no source prompt, and source_context is "prompt": give it, '
                        "or --set source_context=null"
                    )
        else:
            told = next((item.source for item in members.items if item.source is not None), None)
            source_prompts(told, own)  # warns that it is ignored
    return plan


def measure_job(
    items: Sequence[Item],
    folder: Folder,
    *,
    again: bool = False,
    seen: Callable[[], None] = lambda: None,
) -> list[Size | InputError]:
    """Every picture's size; those that an earlier run or another process has found are taken from there.

    So groups never change, also where a picture could not be read once and can be now.

    Args:
      items: of the manifest.
      folder: the job's.
      again: look again at those that could not be read.
      seen: called after each that is looked at.
    """
    known = json.loads(folder.read(SIZES) or b"{}")
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


def keep_sizes(items: Sequence[Item], sizes: Sequence[Size | InputError], folder: Folder) -> None:
    """Writes what `measure_job` reads."""
    told = {
        item.id: None if isinstance(size, InputError) else size
        for item, size in zip(items, sizes, strict=True)
    }
    folder.write(SIZES, json.dumps(told).encode())


def refuse_changed(plan: Plan, folder: Folder) -> None:
    """Compares what is to be made with what was made under the same ids; pictures by their file's name alone.

    Raises:
      InputError: the first that differs is told.
    """
    rows = read_rows(folder)
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
                        f"{folder.url} holds {name} with {key} {before[key]!r}, now it is {value!r}: choose "
                        "another --out, or add --allow-change to keep it and go on"
                    )


def check_items(
    items: Sequence[Item], sizes: Sequence[Size | InputError], suffix: str | None
) -> list[str]:
    """Reads every picture and mask as the job would, and says what is wrong with which."""
    faults = []
    for item, size in zip(items, sizes, strict=True):
        try:
            if isinstance(size, InputError):
                raise size
            picture, _ = read_item(item)
            with quietly():
                output_format(f"x{suffix or default_suffix(item.image, picture)}", picture)
        except InputError as error:
            faults.append(f"{item.id}: {error}")
    return faults


def run_job(
    editor: "Editor",
    plan: Plan,
    folder: Folder,
    *,
    shard: tuple[int, int] = (0, 1),
    devices: int = 1,
    versions: str = "",
    cache: InversionCache | None = None,
    retry_failed: bool = False,
    max_failures: int | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda message: None,
    stop: Stop | None = None,
) -> Progress:
    """Does what has no row in the ledger yet; see `runner.run`."""
    folder.write(JOB, json.dumps(asdict(plan.settings), indent=1).encode())
    keep_sizes(plan.items, plan.sizes, folder)
    folder.write(EXPECTED, "".join(json.dumps(name) + "\n" for name in plan.expected).encode())
    wanted = set(plan.expected) - done_before(folder, retry_failed=retry_failed)
    groups = [
        members
        for members in plan.part(shard)
        if any(name in wanted for item in members.items for name in item.results)
    ]
    mine = sum(
        name in wanted for members in groups for item in members.items for name in item.results
    )
    worker = EditWorker(editor, plan, wanted, versions=versions, cache=cache)
    return run(
        batches(
            groups,
            devices=devices,
            side=plan.settings.side,
            multiple=plan.settings.multiple,
            micro=plan.settings.micro,
        ),
        worker,
        folder,
        Ledger(folder, shard),
        total=mine,
        report=report,
        say=say,
        max_failures=max_failures,
        stop=stop,
    )


def done_before(folder: Folder, *, retry_failed: bool = False) -> set[str]:
    """The ids of results that need no further work."""
    rows = read_rows(folder).values()
    return {row["id"] for row in rows if row["status"] == "ok" or not retry_failed}


def finish_job(
    folder: Folder, facts: Mapping[str, Any] | None = None, *, done: bool = False
) -> dict[str, Any]:
    """Merges all processes' ledgers, writes table and gallery, and tells what is missing; can be repeated.

    Args:
      folder: the job's.
      facts: to be told on the page.
      done: no process is at work any more.

    Raises:
      InputError: the folder holds no job.
    """
    content = folder.read(EXPECTED)
    if content is None:
        raise InputError(f"{folder.url} holds no job: give a folder that `uam batch` wrote to")
    folder.sweep(min_age=3600)
    expected = [json.loads(line) for line in content.decode().splitlines()]
    rows = merge(folder, expected, done=done)
    found = {row["id"] for row in rows}
    missing = [name for name in expected if name not in found]
    failed = sum(row["status"] != "ok" for row in rows)
    review = sum(row["status"] == "ok" and bool(row.get("review")) for row in rows)
    job = json.loads(folder.read(JOB) or b"{}")
    summary = {
        "results": len(expected),
        "ok": len(rows) - failed,
        "review": review,
        "failed": failed,
        "missing": len(missing),
    }
    told = {"model": job.get("model"), "weights": job.get("weights"), **summary, **(facts or {})}
    for name, data in render_report(rows, title="Edited pictures", facts=told).items():
        folder.write(name, data)
    return {**summary, "first_missing": missing[:5], "gallery": folder.path("index.html")}


@dataclass(frozen=True)
class _Computed:
    """A batch's arrays: (targets, slots, ...)."""

    images: list[np.ndarray]
    free: list[np.ndarray]
    results: list["EditResult"]
    errors: np.ndarray
    prepared: "Prepared"
    seconds: float


@dataclass(frozen=True)
class EditWorker:
    """Edits batches; see `runner.Worker`.

    Attributes:
      editor: on its devices.
      plan: of the job.
      wanted: ids of results that are to be made.
      versions: told in every row.
      cache: of inversions.
    """

    editor: "Editor"
    plan: Plan
    wanted: set[str]
    versions: str = ""
    cache: InversionCache | None = None

    def compute(self, batch: Batch) -> Callable[[], list[Outcome]]:
        """Inverts once, edits towards every target, and waits for the devices."""
        try:
            if batch.valid:
                return self._compute(batch)
            failed = self.give_up(batch, "")
        except InputError as error:  # of these pictures' prompts and settings: others may do
            failed = self.give_up(batch, str(error))
        return lambda: failed

    def _compute(self, batch: Batch) -> Callable[[], list[Outcome]]:
        import jax
        import jax.numpy as jnp

        began = time.perf_counter()
        config = self.plan.config_of(batch.bucket)
        # Padding repeats a picture with all that is said of it: no further program, no further warning.
        valid = set(batch.valid)
        used = [slot if slot in valid else min(valid) for slot in range(len(batch.items))]
        items = [item for slot in used if (item := batch.items[slot]) is not None]
        pixels = batch.pixels[np.asarray(used)]
        sources = None
        if config.source_context == "prompt":
            sources = [item.source or "" for item in items]
        z0 = self.editor.encode(jnp.asarray(pixels))
        masks = None if batch.weights is None else jnp.asarray(batch.weights)
        inversions, digests = None, []
        if self.cache:
            settings = self.plan.settings
            made_with = (
                batch.bucket.size,
                settings.dtype,
                settings.precision,
                jax.default_backend(),
            )
            digests = [
                hashlib.sha256(f"{made_with}".encode() + picture.tobytes()).hexdigest()
                for picture in pixels
            ]
            needed = self.editor.inversions_needed(
                sources, config=config, shape=z0.shape, masks=masks
            )
            inversions = self.cache.load(digests, needed, np.asarray(z0))
        prepared = self.editor.prepare(
            z0, sources, masks=masks, inversions=inversions, config=config, images=pixels
        )
        results = [
            self.editor.edit_prepared(prepared, [item.targets[number] for item in items])
            for number in range(batch.bucket.targets)
        ]
        jax.block_until_ready([result.images for result in results])
        seconds = time.perf_counter() - began

        def finish() -> list[Outcome]:
            if self.cache and not inversions:
                try:
                    self.cache.store(digests, prepared.inversions)
                except OSError as error:
                    warnings.warn(f"an inversion could not be kept: {error}", stacklevel=1)
            images = [np.asarray(result.images, np.float32) for result in results]
            free = [np.asarray(result.masks, np.float32) for result in results]
            errors = np.asarray(results[0].error_map, np.float32)
            made = _Computed(images, free, results, errors, prepared, seconds)
            return self._outcomes(batch, config, made)

        return finish

    def give_up(self, batch: Batch, reason: str) -> list[Outcome]:
        """Failed rows, with each picture's own reason where it has one."""
        return [
            Outcome(
                self._row(
                    batch, slot, number, status="failed", reason=batch.reasons[slot] or reason
                )
            )
            for slot, number in self._places(batch)
        ]

    def _places(self, batch: Batch) -> list[tuple[int, int]]:
        """The (slot, target) pairs that are wanted."""
        return [
            (slot, number)
            for slot, item in enumerate(batch.items)
            if item is not None
            for number, name in enumerate(item.results)
            if name in self.wanted
        ]

    def _outcomes(self, batch: Batch, config: EditConfig, made: _Computed) -> list[Outcome]:
        places = self._places(batch)
        seconds = made.seconds / max(len(places), 1)
        outcomes = []
        for slot, number in places:
            row = self._row(batch, slot, number, status="ok", seconds=round(seconds, 3))
            try:
                if fault := batch.reasons[slot]:
                    raise InputError(fault)
                files = self._files(batch, slot, config, made, number, row)
            # Whatever it is (an encoder of Pillow's, say), the other pictures have no part in it.
            except Exception as error:
                told = str(error) if isinstance(error, InputError) else repr(error)
                nothing = dict.fromkeys(
                    ("output", "preview", "mask", "error", "confidence", "review")
                )
                row |= {"status": "failed", "reason": told, **nothing}
                files = {}
            outcomes.append(Outcome(row, files))
        return outcomes

    def _files(
        self,
        batch: Batch,
        slot: int,
        config: EditConfig,
        made: _Computed,
        number: int,
        row: Row,
    ) -> dict[str, bytes]:
        """One result's files; their names and figures go into its row."""
        edited, free, result = (
            made.images[number][slot],
            made.free[number][slot],
            made.results[number],
        )
        item, picture = batch.items[slot], batch.pictures[slot]
        assert item is not None and picture is not None
        refuse_nonfinite(item.image, edited)
        suffix = self.plan.settings.suffix or default_suffix(item.image, picture)
        if config.preserve == "pixels":
            pixels, mask = keep_unedited(
                picture.pixels,
                edited,
                free,
                within=batch.masks[slot],
                threshold=config.mask.threshold,
            )
        else:
            pixels, mask = resize(edited, picture.size), resize(free, picture.size, linear=True)
        row["output"] = f"images/{row['id']}{suffix}"
        row["mask"] = f"masks/{row['id']}.png"
        row["preview"] = f"originals/{item.id}.jpg"
        row["error"] = f"errors/{item.id}.png"
        row["confidence"] = round(float(result.confidence[slot]), 4)
        row["review"] = result.review[slot]
        row["mask_share"] = round(float(mask.mean()), 5)
        height, width = picture.size
        row["size"] = f"{width}x{height}"
        with quietly():
            return {
                row["output"]: encode_image(row["output"], pixels, picture),
                row["mask"]: encode_mask(mask),
                row["preview"]: encode_preview(picture.pixels, picture),
                row["error"]: encode_error(made.errors[slot]),
            }

    def _row(self, batch: Batch, slot: int, number: int, **known: Any) -> Row:
        item = batch.items[slot]
        assert item is not None
        height, width = batch.bucket.size
        return {
            "id": item.results[number],
            "item": item.id,
            "status": "failed",
            "reason": None,
            "image": item.image,
            "target": item.targets[number],
            "source": item.source,
            "given_mask": item.mask,
            "output": None,
            "preview": None,
            "mask": None,
            "error": None,
            "confidence": None,
            "review": None,
            "mask_share": None,
            "seconds": None,
            "size": None,
            "worked_at": f"{width}x{height}",
            "batch": batch.micro,
            "halved": batch.micro < self.plan.settings.micro,
            "config": self.plan.config_of(batch.bucket).fingerprint(),
            "weights": self.plan.settings.weights,
            "versions": self.versions,
            **known,
        }
