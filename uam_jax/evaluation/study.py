"""Studies: methods times items as a data-set job, with one row of the ledger for each pair.

Chunks of items are the outer loop and methods the inner one, so that the pictures of a chunk, their latents and
their exact answers are computed once for all methods.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import jax.numpy as jnp
import numpy as np

from uam_jax.evaluation.scenes_bench import Items
from uam_jax.io.storage import Folder
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.ledger import Row
from uam_jax.jobs.runner import Monitor, Outcome, Progress, run
from uam_jax.types import Latent

if TYPE_CHECKING:
    from uam_jax.editor import Editor

NOT_FINITE = "the network returned values that are not finite"

Method = TypeVar("Method")


@dataclass(frozen=True)
class Study(ABC, Generic[Method]):
    """Methods that are applied to items of Scenes-Bench.

    Attributes:
      editor: on its devices.
      methods: by the name under which results are shown.
      items: in order; chunks are cut from them.
      chunk: items per chunk.
      settings: further values that decide a result (dtype, precision), for the ledger.
    """

    editor: "Editor"
    methods: Mapping[str, Method]
    items: Items
    chunk: int = 16
    settings: Mapping[str, Any] = field(default_factory=dict)

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """JSON values that decide every result, besides the model and `settings`."""

    @abstractmethod
    def describe(self, method: Method) -> dict[str, Any]:
        """JSON values that decide the results of one method."""

    @abstractmethod
    def worker(self, wanted: set[str]) -> "ChunkWorker":
        """A worker for the rows whose ids are wanted."""

    def run(self, folder: Folder, monitor: Monitor | None = None) -> Progress:
        """Applies every method to every item that has no row in the folder's ledger yet.

        Methods and items may be added to a folder later, but not changed.

        Args:
          folder: for ledger and files.
          monitor: follows the run and may end it.

        Raises:
          InputError: the folder's rows were made with other settings, or another process works in the folder.
        """
        now = {
            **self.facts(),
            "weights": self.editor.weights_hash,
            "model_hash": self.editor.model_hash,
            **self.settings,
            **{f"method {name}": self.describe(each) for name, each in self.methods.items()},
        }
        folder.check([f"images/{name}.png" for name in self._ids()])
        job = JobFolder(folder)
        with job.ledger() as ledger:
            job.add_settings(now)
            wanted = set(self._ids()) - {row["id"] for row in self.rows(folder)}
            return run(
                self._chunks(wanted),
                self.worker(wanted),
                ledger,
                total=len(wanted),
                monitor=monitor,
            )

    def rows(self, folder: Folder) -> list[Row]:
        """The ledger's rows of these methods and items, method by method."""
        found = JobFolder(folder).rows()
        return [found[name] for name in self._ids() if name in found]

    def _ids(self) -> list[str]:
        return [f"{name}/{item}" for name in self.methods for item in self.items.ids]

    def _chunks(self, wanted: set[str]) -> list["Chunk"]:
        starts, count = range(0, len(self.items), self.chunk), len(self.items)
        return [
            Chunk(name, rows, self.chunk)
            for first in starts
            for rows in [tuple(range(first, min(first + self.chunk, count)))]
            for name in self.methods
            if any(f"{name}/{self.items.ids[row]}" in wanted for row in rows)
        ]


@dataclass(frozen=True)
class Chunk:
    """Items that one method is applied to in one call.

    Attributes:
      bucket: the method's name.
      rows: of the items; if there are fewer than `batch_per_device`, the rest is padding.
      batch_per_device: items that are computed.
    """

    bucket: str
    rows: tuple[int, ...]
    batch_per_device: int

    @property
    def padded(self) -> tuple[int, ...]:
        """`batch_per_device` rows: the last one is repeated."""
        return (*self.rows, *[self.rows[-1]] * (self.batch_per_device - len(self.rows)))

    def halves(self) -> tuple["Chunk", "Chunk"]:
        """Two chunks of half the size."""
        low = self.batch_per_device // 2
        return (
            Chunk(self.bucket, self.rows[:low], low),
            Chunk(self.bucket, self.rows[low:], self.batch_per_device - low),
        )

    def singles(self) -> list["Chunk"]:
        """A chunk of the same size for each item, which is repeated."""
        return [replace(self, rows=(row,)) for row in self.rows]


@dataclass
class Encoded:
    """The items of a chunk with their pictures.

    Attributes:
      rows: of the study's items, padding included.
      items: of these rows.
      pictures: (b, h, w, 3), rendered.
      z0: their scaled latents.
      ceiling: the pictures that the VAE makes of `z0`: the best that any method can return to.
    """

    rows: tuple[int, ...]
    items: Items
    pictures: np.ndarray
    z0: Latent
    ceiling: np.ndarray


AnyStudy = TypeVar("AnyStudy", bound=Study)


@dataclass
class ChunkWorker(ABC, Generic[AnyStudy]):
    """Applies a study's methods to chunks.

    Attributes:
      study: the study.
      wanted: ids of the rows that have to be made.
    """

    study: AnyStudy
    wanted: set[str]
    _encoded: Encoded | None = None

    @abstractmethod
    def compute(self, batch: Chunk) -> Callable[[], list[Outcome]]:
        """See `runner.Worker`."""

    @abstractmethod
    def render(self, items: Items) -> np.ndarray:
        """The pictures of a chunk's items; called once per chunk."""

    def give_up(self, batch: Chunk, reason: str) -> list[Outcome]:
        """Failed rows for the wanted items of a chunk that could not be computed."""
        return [
            Outcome(self.row(batch, slot) | {"status": "failed", "reason": reason})
            for slot in self.slots(batch)
        ]

    def slots(self, batch: Chunk) -> list[int]:
        """The places in a chunk whose rows are wanted."""
        names = [f"{batch.bucket}/{self.study.items.ids[row]}" for row in batch.rows]
        return [slot for slot, name in enumerate(names) if name in self.wanted]

    def row(self, batch: Chunk, slot: int) -> Row:
        """The part of a ledger's row that names method and item."""
        items, row = self.study.items, batch.rows[slot]
        return {
            "id": f"{batch.bucket}/{items.ids[row]}",
            "status": "ok",
            "reason": None,
            "method": batch.bucket,
            "item": items.ids[row],
            "kind": items.kinds[row],
            "third": items.thirds[row],
            "source": items.sources[row],
            "target": items.targets[row],
        }

    def encoded(self, batch: Chunk) -> Encoded:
        """The chunk's pictures and latents, computed for the first method and kept for the others."""
        rows, editor = batch.padded, self.study.editor
        if self._encoded is None or self._encoded.rows != rows:
            items = self.study.items.take(rows)
            pictures = self.render(items)
            z0 = editor.encode(jnp.asarray(pictures))
            self._encoded = Encoded(rows, items, pictures, z0, np.asarray(editor.decode(z0)))
        return self._encoded
