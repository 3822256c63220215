"""Scenes-Bench as a data-set job: methods times items through the runner, a ledger line for each.

Chunks of items are the outer loop and methods the inner one, so that what chunks share (pictures, exact
answers, and if wished inversions) is made once.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from uam_jax.engine.inversion import Inversion, InversionKey
from uam_jax.evaluation import metrics
from uam_jax.evaluation.scenes_bench import VERSION, Items, Truth, judge, render_truth
from uam_jax.io.compose import soft_mask
from uam_jax.io.encoding import encode_image, encode_mask
from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import Ledger, Row, read_record, read_rows, refuse_other
from uam_jax.jobs.runner import Outcome, Progress, Stop, Worker, run
from uam_jax.method.config import EditConfig

if TYPE_CHECKING:
    from uam_jax.editor import Editor
    from uam_jax.engine.delivery import EditResult

JOB = "job.json"


@dataclass(frozen=True)
class Evaluation:
    """A run of the benchmark, decided.

    Attributes:
      editor: on its devices.
      methods: settings by the name that results are shown under.
      items: to be edited, in order.
      chunk: items at a time.
      share: make an inversion once for all methods that take the same; then seconds mean nothing, and
        are left out.
      seed: of the items.
      settings: what else decides a result (dtype, precision), for the ledger.
    """

    editor: "Editor"
    methods: Mapping[str, EditConfig]
    items: Items
    chunk: int = 16
    share: bool = False
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def run(self, folder: Folder, **how: Any) -> Progress:
        """Does what has no row in the ledger yet; `how` is `report`, `say`, `stop` of `run_chunks`."""
        job = {
            "benchmark": f"scenes {VERSION}, seed {self.seed}, signals of what is delivered",
            "weights": self.editor.weights_hash,
            "model_hash": self.editor.model_hash,
            "chunk": self.chunk,
            "shared_inversions": self.share,
            **self.settings,
        }
        return run_chunks(
            folder,
            self.items,
            {name: config.to_dict() for name, config in self.methods.items()},
            lambda wanted: _Worker(self, wanted),
            chunk=self.chunk,
            job=job,
            **how,
        )

    def rows(self, folder: Folder) -> list[Row]:
        """The rows of these methods and items, method by method.

        Confidence is that of the model's present calibration: the signals in a row may be older.
        """
        rows = rows_of(folder, self.methods, self.items)
        good = [row for row in rows if row["status"] == "ok"]
        if good:
            names = good[0]["figures"]
            signals = {
                name: np.asarray([row["figures"].get(name) for row in good], np.float64)
                for name in names
            }
            calibration = self.editor.calibration
            told = calibration.confidence(signals), calibration.review(signals)
            for row, confidence, review in zip(good, *told, strict=True):
                row |= {"confidence": round(float(confidence), 6), "review": review}
        return rows


def run_chunks(
    folder: Folder,
    items: Items,
    methods: Mapping[str, Any],
    worker: Callable[[set[str]], Worker["Chunk"]],
    *,
    chunk: int,
    job: Mapping[str, Any],
    report: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda message: None,
    stop: Stop | None = None,
) -> Progress:
    """Every method on every item that has no row in the folder's ledger yet; a row's id is "method/item".

    Methods and items may be added to a folder later, but not changed.

    Args:
      folder: for ledger and files.
      items: in order; chunks are cut from them.
      methods: what each does, as JSON can tell it.
      worker: made for the ids that are wanted.
      chunk: items at a time.
      job: what else decides a result, as JSON can tell it.
      report: see `runner.run`, like the next two.
      say: told what a person should know.
      stop: ends the run early.

    Raises:
      InputError: the folder's rows were made with something else, or another process is at work there.
    """
    now = {**job, **{f"method {name}": each for name, each in methods.items()}}
    folder.check([f"images/{name}/{item}.png" for name in methods for item in items.ids])
    with Ledger(folder) as ledger:
        refuse_other(folder, JOB, now)
        before = read_record(folder, JOB)
        folder.write(JOB, json.dumps(before | now, indent=1).encode())
        done = {row["id"] for row in rows_of(folder, methods, items)}
        wanted = {f"{name}/{item}" for name in methods for item in items.ids} - done
        chunks = [
            Chunk(name, rows, chunk)
            for first in range(0, len(items), chunk)
            for rows in [tuple(range(first, min(first + chunk, len(items))))]
            for name in methods
            if any(f"{name}/{items.ids[row]}" in wanted for row in rows)
        ]
        return run(
            chunks,
            worker(wanted),
            folder,
            ledger,
            total=len(wanted),
            report=report,
            say=say,
            stop=stop,
        )


def rows_of(folder: Folder, methods: Iterable[str], items: Items) -> list[Row]:
    """The ledger's rows of methods and items, method by method."""
    found = read_rows(folder)
    names = (f"{name}/{item}" for name in methods for item in items.ids)
    return [found[name] for name in names if name in found]


@dataclass(frozen=True)
class Chunk:
    """Items for one method: what a worker computes at a time.

    Attributes:
      bucket: the method.
      rows: of the items; may be fewer than `micro`, so that the rest is padding.
      micro: how many are computed.
    """

    bucket: str
    rows: tuple[int, ...]
    micro: int

    @property
    def padded(self) -> tuple[int, ...]:
        """`micro` rows: the last one is repeated."""
        return (*self.rows, *[self.rows[-1]] * (self.micro - len(self.rows)))

    def halves(self) -> tuple["Chunk", "Chunk"]:
        low = self.micro // 2
        return (
            Chunk(self.bucket, self.rows[:low], low),
            Chunk(self.bucket, self.rows[low:], self.micro - low),
        )

    def singles(self) -> list["Chunk"]:
        """A chunk of the same size for every item, which is repeated."""
        return [replace(self, rows=(row,)) for row in self.rows]


@dataclass
class _Shared:
    """What the methods of one chunk have in common."""

    rows: tuple[int, ...]
    items: Items
    truth: Truth
    z0: Any
    ceiling: np.ndarray
    inversions: dict[InversionKey, Inversion] = field(default_factory=dict)


@dataclass
class _Worker:
    evaluation: Evaluation
    wanted: set[str]
    _last: _Shared | None = None
    _started: set[str] = field(default_factory=set)

    def compute(self, batch: Chunk) -> Callable[[], list[Outcome]]:
        if not batch.rows:
            return list
        editor, config = self.evaluation.editor, self.evaluation.methods[batch.bucket]
        shared = self._shared(batch)
        items = shared.items
        source = list(items.sources) if config.source_context == "prompt" else None
        inversions = self._inversions(shared, config, source) if self.evaluation.share else None
        pictures = jnp.asarray(shared.truth.sources)
        began = time.perf_counter()
        z0 = shared.z0 if self.evaluation.share else editor.encode(pictures)
        result = editor.edit_latents(
            z0,
            list(items.targets),
            source,
            masks=self._masks(shared, config),
            inversions=inversions,
            config=config,
            images=pictures,
        )
        jax.block_until_ready(result.images)
        seconds: float | None = (time.perf_counter() - began) / len(items)
        # A method's first chunk has its compilation; shared inversions are some other method's time.
        if self.evaluation.share or batch.bucket not in self._started:
            seconds = None
        self._started.add(batch.bucket)

        def finish() -> list[Outcome]:
            return self._outcomes(batch, shared, config, result, seconds)

        return finish

    def give_up(self, batch: Chunk, reason: str) -> list[Outcome]:
        return [
            Outcome(self._row(batch.bucket, row) | {"status": "failed", "reason": reason})
            for row in batch.rows
            if f"{batch.bucket}/{self.evaluation.items.ids[row]}" in self.wanted
        ]

    def _row(self, method: str, row: int) -> Row:
        """What a row of the ledger says of its item, whatever became of it."""
        items = self.evaluation.items
        return {
            "id": f"{method}/{items.ids[row]}",
            "status": "ok",
            "reason": None,
            "method": method,
            "item": items.ids[row],
            "kind": items.kinds[row],
            "third": items.thirds[row],
            "source": items.sources[row],
            "target": items.targets[row],
        }

    def _shared(self, batch: Chunk) -> _Shared:
        rows = batch.padded
        if self._last is None or self._last.rows != rows:
            editor = self.evaluation.editor
            items = self.evaluation.items.take(rows)
            truth = render_truth(items, editor.native_size)
            z0 = editor.encode(jnp.asarray(truth.sources))
            self._last = _Shared(rows, items, truth, z0, np.asarray(editor.decode(z0)))
        return self._last

    def _masks(self, shared: _Shared, config: EditConfig) -> Any:
        """The exact mask stands for the user's where a method asks for one."""
        wants = (
            config.mask.user == "replace" or config.mask.user_from_start or config.region.inversion
        )
        return jnp.asarray(shared.truth.region, jnp.float32) if wants else None

    def _inversions(
        self, shared: _Shared, config: EditConfig, source: list[str] | None
    ) -> list[Inversion]:
        editor = self.evaluation.editor
        masks = self._masks(shared, config)
        needed = editor.inversions_needed(source, shape=shared.z0.shape, config=config, masks=masks)
        made = []
        for key in needed:
            if key.regions:  # made by the method itself
                continue
            kept = shared.inversions.get(key)
            if kept is None:
                every = tuple(range(key.steps + 1))
                kept = shared.inversions[key] = editor.inverter.invert(shared.z0, key, every)
            made.append(kept)
        return made

    def _outcomes(
        self,
        batch: Chunk,
        shared: _Shared,
        config: EditConfig,
        result: "EditResult",
        seconds: float | None,
    ) -> list[Outcome]:
        editor, items, truth = self.evaluation.editor, shared.items, shared.truth
        made = np.asarray(result.images, np.float32)
        free = np.asarray(result.masks, np.float32)
        rebuilt = result.source_latents
        rebuilt = result.auxiliary_latents if rebuilt is None else rebuilt
        rebuilt = shared.z0 if rebuilt is None else rebuilt
        figures = score_edits(made, free, truth, threshold=config.mask.threshold)
        figures |= score_reconstructions(np.asarray(editor.decode(rebuilt)), truth, shared.ceiling)
        masks = self._masks(shared, config)
        deliveries = [
            result.deliver(
                slot,
                source,
                config=config,
                calibration=editor.calibration,
                within=None if masks is None else np.asarray(masks[slot]),
            )
            for slot, source in enumerate(truth.sources)
        ]
        if config.preserve == "pixels":
            kept = np.stack([each.pixels for each in deliveries])
            figures["kept_success"] = judge(kept, truth).astype(np.float64)
            figures["kept_background_psnr"] = metrics.psnr(kept, truth.sources, ~truth.region)
            figures["kept_edit_psnr"] = metrics.psnr(kept, truth.answers, truth.region)
        figures |= {
            name: np.asarray([each.signals[name] for each in deliveries]) for name in result.signals
        }
        evaluations = editor.evaluations(config, user_mask=masks is not None)
        outcomes = []
        for slot, row in enumerate(batch.rows):
            name = f"{batch.bucket}/{self.evaluation.items.ids[row]}"
            if name not in self.wanted:
                continue
            outcome = self._row(batch.bucket, row) | {
                "preview": f"truth/{items.ids[slot]}-original.png",
                "answer": f"truth/{items.ids[slot]}-answer.png",
                "config": config.fingerprint(),
                "evaluations": evaluations,
            }
            files = {
                outcome["preview"]: encode_image("x.png", truth.sources[slot]),
                outcome["answer"]: encode_image("x.png", truth.answers[slot]),
            }
            if np.isfinite(made[slot]).all():
                outcome |= {
                    "output": f"images/{name}.png",
                    "mask": f"masks/{name}.png",
                    "confidence": round(deliveries[slot].confidence, 6),
                    "review": deliveries[slot].review,
                    "seconds": None if seconds is None else round(seconds, 4),
                    "figures": {key: _number(values[slot]) for key, values in figures.items()},
                }
                files[outcome["output"]] = encode_image("x.png", made[slot])
                files[outcome["mask"]] = encode_mask(free[slot])
            else:
                told = "the network gave numbers that are not finite"
                outcome |= {"status": "failed", "reason": told}
            outcomes.append(Outcome(outcome, files))
        return outcomes


def score_edits(
    made: np.ndarray, free: np.ndarray, truth: Truth, *, threshold: float = 0.3
) -> dict[str, np.ndarray]:
    """How good edits are, each figure (b,); nan where it has no meaning.

    Args:
      made: (b, h, w, 3) in [-1, 1], the model's own pictures: no original pixels pasted in.
      free: (b, h, w) in [0, 1], the share of steps and channels in which a pixel was free.
      truth: of the items.
      threshold: of `compose.soft_mask`, which makes `free` a region.
    """
    background = ~truth.region
    in_black = metrics.masked(made, background), metrics.masked(truth.sources, background)
    size = made.shape[1], made.shape[2]
    found = np.stack(
        [soft_mask(each, size, threshold=threshold, feather=0.0) > 0.5 for each in free]
    )
    overlap = metrics.overlap(found, truth.region)
    return {
        "success": judge(made, truth).astype(np.float64),
        "background_psnr": metrics.psnr(made, truth.sources, background),
        "background_ssim": metrics.ssim(made, truth.sources, background),
        "background_mse": metrics.mse(made, truth.sources, background),
        "pie_psnr": metrics.psnr(*in_black),
        "pie_ssim": metrics.ssim(*in_black),
        "pie_mse": metrics.mse(*in_black),
        "edit_psnr": metrics.psnr(made, truth.answers, truth.region),
        "answer_psnr": metrics.psnr(made, truth.answers),
        "mask_iou": np.where(truth.region.any(axis=(1, 2)), overlap, np.nan),
    }


def score_reconstructions(
    rebuilt: np.ndarray, truth: Truth, ceiling: np.ndarray
) -> dict[str, np.ndarray]:
    """How well the method's unedited branch returns to the source, and the VAE alone: the ceiling."""
    return {
        "reconstruction_psnr": metrics.psnr(rebuilt, truth.sources),
        "reconstruction_ssim": metrics.ssim(rebuilt, truth.sources),
        "vae_psnr": metrics.psnr(ceiling, truth.sources),
        "vae_background_psnr": metrics.psnr(ceiling, truth.sources, ~truth.region),
    }


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Means with bootstrapped 95 % intervals, per method, overall and by kind of edit."""
    methods: dict[str, Any] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return {
        name: {
            "items": len(own),
            "failed": sum(row["status"] != "ok" for row in own),
            "evaluations": next((row["evaluations"] for row in own if "evaluations" in row), None),
            "overall": _means(own),
            "kinds": {
                kind: _means([row for row in own if row["kind"] == kind])
                for kind in dict.fromkeys(row["kind"] for row in own)
            },
        }
        for name, own in methods.items()
    }


def _means(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Of every figure: mean, and the interval's ends."""
    good = [row for row in rows if row["status"] == "ok"]
    figures = [row["figures"] | _gap(row["figures"]) for row in good]
    names = dict.fromkeys(name for each in figures for name in each)
    result = {}
    for name in names:
        values = np.asarray(
            [np.nan if each.get(name) is None else each[name] for each in figures], np.float64
        )
        result[name] = [_number(value) for value in metrics.bootstrap(values)]
    # The items of a chunk have one time between them.
    seconds = dict.fromkeys(row["seconds"] for row in good if row["seconds"] is not None)
    result["seconds"] = [_number(value) for value in metrics.bootstrap(np.asarray([*seconds]))]
    return result


def _gap(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Distance of the background to the VAE ceiling in dB."""
    ceiling, made = figures["vae_background_psnr"], figures["background_psnr"]
    return {"background_gap": None if made is None else ceiling - made}


def _number(value: Any) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
