"""The worker of a job of edits: batches of pictures become rows and files."""

import functools
import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from uam_jax.engine.cache import InversionCache
from uam_jax.engine.delivery import EditResult, fetch
from uam_jax.errors import InputError
from uam_jax.files import base_name
from uam_jax.io.encoding import default_suffix, needs_shown_copy
from uam_jax.jobs.batches import Batch
from uam_jax.jobs.ledger import Row
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.names import result_file
from uam_jax.jobs.plan import JobPlan
from uam_jax.jobs.result_files import SourcePicture, original_files, result_files
from uam_jax.jobs.runner import Outcome
from uam_jax.runtime.host_memory import Budget

if TYPE_CHECKING:
    from uam_jax.editor import Editor
    from uam_jax.engine.inversion import Inversion
    from uam_jax.engine.prepared import Prepared


@dataclass(frozen=True)
class _Source:
    """A slot's picture at its own size.

    Attributes:
      slot: of the batch.
      item: of the manifest.
      picture: decoded, with its mask and crop.
      columns: those of a row that all its results share.
      files: likewise, by their names.
    """

    slot: int
    item: Item
    picture: SourcePicture
    columns: dict[str, str]
    files: dict[str, bytes]


@dataclass(frozen=True)
class EditWorker:
    """Edits batches; see `runner.Worker`.

    Attributes:
      editor: on its devices.
      plan: of the job.
      wanted: ids of the results that are to be made.
      budget: of memory for pictures at their own size.
      versions: of the packages, kept in every row.
      cache: of inversions.
    """

    editor: "Editor"
    plan: JobPlan
    wanted: set[str]
    budget: Budget
    versions: str = ""
    cache: InversionCache | None = None

    def compute(self, batch: Batch) -> Callable[[], list[Outcome]]:
        """Inverts once, edits towards every target, and waits for the devices.

        The host's part fetches all results at once.
        """
        if not batch.valid:
            failed = self.give_up(batch, "")
            return lambda: failed
        import jax

        began = time.perf_counter()
        config = self.plan.config_of(batch.bucket)
        # Padding repeats a picture with its item, so that it causes no further program and no further warning.
        valid = set(batch.valid)
        used = [slot if slot in valid else min(valid) for slot in range(len(batch.items))]
        items = [item for slot in used if (item := batch.items[slot]) is not None]
        pixels = batch.pixels[used]
        sources = None
        if config.source.condition != "null":
            sources = [item.source or "" for item in items]
        images = self.editor.upload(pixels)
        z0 = self.editor.encode(images, checked=True)
        masks = None if batch.user_masks is None else batch.user_masks[used]
        source = self.editor.settle_source(z0, sources, config)
        inversions, digests = None, []
        if self.cache:
            digests = self._digests(batch, pixels)
            needed = self.editor.inversions_needed(
                source, config=config, shape=z0.shape, masks=masks
            )
            inversions = self.cache.load(digests, needed, np.asarray(z0))
        shared = {"masks": masks, "inversions": inversions, "config": config, "images": images}

        def work(editor: "Editor", *, targets: int) -> "tuple[Prepared, list[EditResult]]":
            prepared = editor.prepare(z0, source, **shared)
            edits = ([item.edits[number] for item in items] for number in range(targets))
            return prepared, [editor.edit_prepared(prepared, each) for each in edits]

        if not inversions:  # which would not be those of the zeros that a rehearsal computes
            self.editor.compile(batch.bucket, functools.partial(work, targets=1))
        prepared, results = work(self.editor, targets=batch.bucket.targets)
        jax.block_until_ready([(each.images, each.masks, each.signals) for each in results])
        seconds = time.perf_counter() - began
        made = None if inversions else prepared.inversions

        def finish() -> list[Outcome]:
            if self.cache and made:
                self._keep(self.cache, digests, made)
            return self._outcomes(batch, fetch(results), seconds)

        return finish

    def _digests(self, batch: Batch, pixels: np.ndarray) -> list[str]:
        """Names each slot's picture, with the numbers that its inversion is computed in."""
        settings, platform = self.plan.settings, self.editor.platform.name
        made_with = (batch.bucket.size, settings.dtype, settings.precision, platform)
        return [
            hashlib.sha256(f"{made_with}".encode() + picture.tobytes()).hexdigest()
            for picture in pixels
        ]

    @staticmethod
    def _keep(
        cache: InversionCache, digests: Sequence[str], inversions: "Sequence[Inversion]"
    ) -> None:
        try:
            cache.store(digests, inversions)
        except OSError as error:
            warnings.warn(f"an inversion could not be kept: {error}", stacklevel=1)

    def give_up(self, batch: Batch, reason: str) -> list[Outcome]:
        """Failed rows, with each picture's own reason where it has one."""
        return [
            Outcome(self._row(batch, slot, number, reason=batch.reasons[slot] or reason))
            for slot, number in self._places(batch)
        ]

    def _places(self, batch: Batch) -> list[tuple[int, int]]:
        """The (slot, target) pairs whose results are wanted."""
        return [
            (slot, number)
            for slot, item in enumerate(batch.items)
            if item is not None
            for number, name in enumerate(item.results)
            if name in self.wanted
        ]

    def _outcomes(
        self, batch: Batch, results: Sequence[EditResult], seconds: float
    ) -> list[Outcome]:
        """Every wanted result, composed at its picture's own size; a picture is decoded once for all its targets."""
        places = self._places(batch)
        each = {"seconds": round(seconds / max(len(places), 1), 3)}
        outcomes = []
        for slot, targets in groupby(places, key=itemgetter(0)):
            original = batch.originals[slot]
            with self.budget.hold(original.bytes_to_compose if original else 0):
                decode = functools.cache(
                    functools.partial(self._source, batch, slot, results[0].error_map[slot])
                )
                for _, number in targets:
                    try:
                        columns, files = self._files(decode(), number, results[number])
                        row = self._row(batch, slot, number, status="ok", **columns, **each)
                    # An error of any kind (of a Pillow encoder, say) is this picture's alone.
                    except Exception as error:
                        reason = str(error) if isinstance(error, InputError) else repr(error)
                        row, files = self._row(batch, slot, number, reason=reason, **each), {}
                    outcomes.append(Outcome(row, files))
                del decode  # and the decoded picture, before the budget is given back
        return outcomes

    def _source(self, batch: Batch, slot: int, error_map: np.ndarray) -> _Source:
        """Decodes a slot's picture, and encodes the files that its results share.

        Raises:
          InputError: the picture can't be read, or the network gave numbers that are not finite.
        """
        item, original = batch.items[slot], batch.originals[slot]
        if item is None or original is None:
            raise InputError(batch.reasons[slot] or "it could not be read")
        picture = SourcePicture(item.image, *original.read(), original.crop)
        name = self.plan.file_names[item.id]
        columns = {"preview": f"originals/{name}.jpg", "error": f"errors/{name}.png"}
        files = original_files(picture, error_map, **columns)
        return _Source(slot, item, picture, columns, files)

    def _files(
        self, source: _Source, number: int, result: EditResult
    ) -> tuple[Row, dict[str, bytes]]:
        """One result's columns and files."""
        item, suffix = source.item, self.plan.settings.suffix
        picture = source.picture.picture
        own = suffix or default_suffix(base_name(item.image), picture)
        name = self.plan.file_names[item.results[number]]
        columns = {
            "output": f"images/{result_file(name, own, own=suffix is None)}",
            "mask": f"masks/{name}.png",
        }
        if needs_shown_copy(columns["output"], picture):
            columns["shown"] = f"shown/{name}.jpg"
        files, measured = result_files(result, source.slot, source.picture, **columns)
        return {**source.columns, **columns, **measured}, {**files, **source.files}

    def _row(self, batch: Batch, slot: int, number: int, **columns: Any) -> Row:
        """A result's row, of a failure unless `columns` say otherwise."""
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
            "negative": item.negative,
            "words": item.words.to_json(),
            "given_mask": item.mask,
            "output": None,
            "shown": None,
            "preview": None,
            "mask": None,
            "error": None,
            "confidence": None,
            "review": None,
            "mask_share": None,
            "seconds": None,
            "size": None,
            "crop": None,
            "figures": None,
            "worked_at": f"{width}x{height}",
            "batch": batch.batch_per_device,
            "halved": batch.batch_per_device < self.plan.settings.batch_per_device,
            "config": self.plan.config_of(batch.bucket).fingerprint(),
            "weights": self.plan.settings.weights,
            "versions": self.versions,
            **columns,
        }
