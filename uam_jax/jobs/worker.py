"""The worker of a job of edits: batches of pictures to rows and files."""

import functools
import hashlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from uam_jax.engine.cache import InversionCache
from uam_jax.errors import InputError
from uam_jax.files import base_name
from uam_jax.io.encoding import (
    default_suffix,
    encode_error,
    encode_image,
    encode_mask,
    encode_preview,
    file_levels,
    needs_shown_copy,
    refuse_nonfinite,
)
from uam_jax.io.images import Picture, quietly
from uam_jax.jobs.batches import Batch
from uam_jax.jobs.ledger import Row
from uam_jax.jobs.names import result_file
from uam_jax.jobs.plan import JobPlan
from uam_jax.jobs.runner import Outcome
from uam_jax.method.config import EditConfig
from uam_jax.runtime.host_memory import Budget

if TYPE_CHECKING:
    from uam_jax.editor import Editor, Prepared
    from uam_jax.engine.delivery import EditResult


@dataclass(frozen=True)
class _Computed:
    """A batch's results, one per target, each of all slots."""

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
      budget: of memory for pictures at their own size.
      versions: told in every row.
      cache: of inversions.
    """

    editor: "Editor"
    plan: JobPlan
    wanted: set[str]
    budget: Budget
    versions: str = ""
    cache: InversionCache | None = None

    def compute(self, batch: Batch) -> Callable[[], list[Outcome]]:
        """Inverts once, edits towards every target, and waits for the devices."""
        if not batch.valid:
            failed = self.give_up(batch, "")
            return lambda: failed
        import jax
        import jax.numpy as jnp

        began = time.perf_counter()
        config = self.plan.config_of(batch.bucket)
        # Padding repeats a picture with all that is said of it: no further program, no further warning.
        valid = set(batch.valid)
        used = [slot if slot in valid else min(valid) for slot in range(len(batch.items))]
        items = [item for slot in used if (item := batch.items[slot]) is not None]
        pixels = batch.pixels[used]
        sources = None
        if config.source.condition == "prompt":
            sources = [item.source or "" for item in items]
        z0 = self.editor.encode(jnp.asarray(pixels))
        masks = None if batch.weights is None else jnp.asarray(batch.weights[used])
        inversions, digests = None, []
        if self.cache:
            settings = self.plan.settings
            made_with = (
                batch.bucket.size,
                settings.dtype,
                settings.precision,
                self.editor.platform.name,
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
        jax.block_until_ready([(each.images, each.masks, each.error_map) for each in results])
        seconds = time.perf_counter() - began

        def finish() -> list[Outcome]:
            if self.cache and not inversions:
                try:
                    self.cache.store(digests, prepared.inversions)
                except OSError as error:
                    warnings.warn(f"an inversion could not be kept: {error}", stacklevel=1)
            errors = np.asarray(results[0].error_map, np.float32)
            made = _Computed(results, errors, prepared, seconds)
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
        seconds = round(made.seconds / max(len(places), 1), 3)
        outcomes = []
        for slot, targets in groupby(places, key=itemgetter(0)):
            original = batch.originals[slot]
            with self.budget.hold(original.bytes_to_compose if original else 0):
                read = functools.cache(original.read) if original else None  # once for all targets
                for _, number in targets:
                    row = self._row(batch, slot, number, status="ok", seconds=seconds)
                    try:
                        if read is None:
                            raise InputError(batch.reasons[slot] or "it could not be read")
                        files = self._files(batch, slot, config, made, number, row, *read())
                    # Whatever it is (an encoder of Pillow's, say), the other pictures have no part in it.
                    except Exception as error:
                        told = str(error) if isinstance(error, InputError) else repr(error)
                        nothing = dict.fromkeys(
                            ("output", "shown", "preview", "mask", "error", "confidence", "review")
                        )
                        row |= {"status": "failed", "reason": told, **nothing}
                        files = {}
                    outcomes.append(Outcome(row, files))
                del read  # and the decoded picture, before the budget is given back
        return outcomes

    def _files(
        self,
        batch: Batch,
        slot: int,
        config: EditConfig,
        made: _Computed,
        number: int,
        row: Row,
        picture: Picture,
        mask: np.ndarray | None,
    ) -> dict[str, bytes]:
        """One result's files; their names and figures go into its row."""
        item = batch.items[slot]
        assert item is not None
        result = made.results[number]
        refuse_nonfinite(item.image, np.asarray(result.images)[slot])
        suffix = self.plan.settings.suffix or default_suffix(base_name(item.image), picture)
        own = self.plan.file_names[row["id"]], self.plan.file_names[item.id]
        keeps = self.plan.settings.suffix is None
        row["output"] = f"images/{result_file(own[0], suffix, own=keeps)}"
        delivery = result.deliver(
            slot,
            picture.pixels,
            config=config,
            calibration=self.editor.calibration,
            within=mask,
            levels=file_levels(row["output"], picture),
            grey=picture.grey,
        )
        row["mask"] = f"masks/{own[0]}.png"
        row["preview"] = f"originals/{own[1]}.jpg"
        row["error"] = f"errors/{own[1]}.png"
        row["confidence"] = round(delivery.confidence, 4)
        row["review"] = delivery.review
        row["mask_share"] = round(delivery.mask_share, 5)
        height, width = picture.size
        row["size"] = f"{width}x{height}"
        with quietly():
            files = {
                row["output"]: encode_image(row["output"], delivery.pixels, picture),
                row["mask"]: encode_mask(delivery.mask),
                row["preview"]: encode_preview(picture.pixels, picture),
                row["error"]: encode_error(made.errors[slot]),
            }
            if needs_shown_copy(row["output"], picture):
                row["shown"] = f"shown/{own[0]}.jpg"
                files[row["shown"]] = encode_preview(delivery.pixels, picture)
        return files

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
            "shown": None,
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
