"""Scenes-Bench as a study: every edit is made by every method, scored, and kept with its pictures."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uam_jax.engine.delivery import EditResult, fetch
from uam_jax.engine.inversion import Inversion, InversionKey
from uam_jax.engine.prompts import SettledSource
from uam_jax.evaluation.scenes_bench import VERSION, Items, Truth, render_truth
from uam_jax.evaluation.scores import number, score_edits, score_kept, score_reconstructions
from uam_jax.evaluation.study import NOT_FINITE, Chunk, ChunkWorker, Encoded, Study
from uam_jax.io.encoding import encode_image, encode_mask
from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import Row
from uam_jax.jobs.runner import Outcome
from uam_jax.method.config import EditConfig
from uam_jax.method.edits import Edit
from uam_jax.method.section import identity


@dataclass(frozen=True)
class ScenesStudy(Study[EditConfig]):
    """A run of the benchmark; its methods are settings of the edit.

    Attributes:
      share: compute an inversion once for all methods that use the same. A method's seconds then mean
        nothing and are left out.
      seed: of the items.
    """

    share: bool = False
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        return {
            "benchmark": f"scenes {VERSION}, seed {self.seed}, signals of what is delivered",
            "chunk": self.chunk,
            "shared_inversions": self.share,
        }

    def describe(self, method: EditConfig) -> dict[str, Any]:
        return identity(method)

    def worker(self, wanted: set[str]) -> "_EditWorker":
        return _EditWorker(self, wanted)

    def rows(self, folder: Folder) -> list[Row]:
        """The rows of these methods and items, method by method.

        Confidence is recomputed from the signals by the model's present calibration.
        """
        rows = super().rows(folder)
        good = [row for row in rows if row["status"] == "ok"]
        if good:
            names = good[0]["figures"]
            signals = {
                name: np.asarray([row["figures"].get(name) for row in good], np.float64)
                for name in names
            }
            calibration = self.editor.calibration
            judged = calibration.confidence(signals), calibration.review(signals)
            for row, confidence, review in zip(good, *judged, strict=True):
                row |= {"confidence": round(float(confidence), 6), "review": review}
        return rows


@dataclass
class _EditWorker(ChunkWorker[ScenesStudy]):
    """Edits chunks and scores the results.

    The exact answers and the shared inversions are those of the chunk that was rendered last.
    """

    _truth: Truth = field(init=False)
    _inversions: dict[InversionKey, Inversion] = field(default_factory=dict)
    _started: set[str] = field(default_factory=set)

    def render(self, items: Items) -> np.ndarray:
        self._truth = render_truth(items, self.study.editor.native_size)
        self._inversions.clear()
        return self._truth.sources

    def compute(self, batch: Chunk) -> Callable[[], list[Outcome]]:
        if not batch.rows:
            return list
        editor, config, share = (
            self.study.editor,
            self.study.methods[batch.bucket],
            self.study.share,
        )
        chunk = self.encoded(batch)
        truth, items = self._truth, chunk.items
        prompts = None if config.source.condition == "null" else list(items.sources)
        masks = _masks(truth, config)
        targets: list[Edit | str] = list(items.targets)
        if "blend" in config.control.kinds_of_words:
            pairs = zip(items.targets, items.words, strict=True)
            targets = [Edit(target, words=words) for target, words in pairs]
        pictures = jnp.asarray(chunk.pictures)
        began = time.perf_counter()
        z0 = chunk.z0 if share else editor.encode(pictures)
        source = editor.settle_source(z0, prompts, config)
        inversions = self._shared_inversions(chunk, config, source) if share else None
        prepared = editor.prepare(
            z0, source, masks=masks, inversions=inversions, config=config, images=pictures
        )
        result = editor.edit_prepared(prepared, targets)
        jax.block_until_ready(result.images)
        seconds: float | None = (time.perf_counter() - began) / len(items)
        # The first chunk of a method includes its compilation.
        if share or batch.bucket not in self._started:
            seconds = None
        self._started.add(batch.bucket)

        def finish() -> list[Outcome]:
            return self._outcomes(batch, chunk, truth, result, seconds)

        return finish

    def _shared_inversions(
        self, chunk: Encoded, config: EditConfig, source: SettledSource
    ) -> list[Inversion]:
        editor, made = self.study.editor, []
        needed = editor.inversions_needed(
            source, shape=chunk.z0.shape, config=config, masks=_masks(self._truth, config)
        )
        for key in needed:
            if key.regions:  # The edit computes these itself.
                continue
            kept = self._inversions.get(key)
            if kept is None:
                every = tuple(range(key.top + 1))
                kept = self._inversions[key] = editor.inverter.invert(chunk.z0, key, every)
            made.append(kept)
        return made

    def _outcomes(
        self,
        batch: Chunk,
        chunk: Encoded,
        truth: Truth,
        result: EditResult,
        seconds: float | None,
    ) -> list[Outcome]:
        editor, config = self.study.editor, self.study.methods[batch.bucket]
        [result] = fetch([result])
        made = np.asarray(result.images, np.float32)
        free = np.asarray(result.masks, np.float32)
        branches = (result.source_latents, result.auxiliary_latents, chunk.z0)
        rebuilt = next(latents for latents in branches if latents is not None)
        masks = _masks(truth, config)
        deliveries = [
            result.deliver(
                slot,
                source,
                within=None if masks is None else np.asarray(masks[slot]),
            )
            for slot, source in enumerate(truth.sources)
        ]
        figures = score_edits(made, free, truth, threshold=config.mask.threshold)
        figures |= score_reconstructions(np.asarray(editor.decode(rebuilt)), truth, chunk.ceiling)
        if config.preserve == "pixels":
            figures |= score_kept(np.stack([each.pixels for each in deliveries]), truth)
        figures |= {
            name: np.asarray([each.signals[name] for each in deliveries]) for name in result.signals
        }
        evaluations = editor.evaluations(config, user_mask=masks is not None)
        outcomes = []
        for slot in self.slots(batch):
            row = self.row(batch, slot)
            name, item = row["id"], row["item"]
            row |= {
                "preview": f"truth/{item}-original.png",
                "answer": f"truth/{item}-answer.png",
                "config": config.fingerprint(),
                "evaluations": evaluations,
            }
            files = {
                row["preview"]: encode_image("x.png", truth.sources[slot]),
                row["answer"]: encode_image("x.png", truth.answers[slot]),
            }
            if np.isfinite(made[slot]).all():
                row |= {
                    "output": f"images/{name}.png",
                    "mask": f"masks/{name}.png",
                    "confidence": round(deliveries[slot].confidence, 6),
                    "review": deliveries[slot].review,
                    "seconds": None if seconds is None else round(seconds, 4),
                    "figures": {key: number(values[slot]) for key, values in figures.items()},
                }
                files[row["output"]] = encode_image("x.png", made[slot])
                files[row["mask"]] = encode_mask(free[slot])
            else:
                row |= {"status": "failed", "reason": NOT_FINITE}
            outcomes.append(Outcome(row, files))
        return outcomes


def _masks(truth: Truth, config: EditConfig) -> Any:
    """The exact masks, in place of a user's, for methods that need one; else None."""
    regional = config.inversion.outside_uniformity
    needed = config.mask.user == "replace" or config.mask.user_from_start or regional
    return jnp.asarray(truth.region, jnp.float32) if needed else None
