"""How faithfully a picture survives inversion and reconstruction: what the paper claims, as a data-set job.

Compared are what the network is told (source prompt, null prompt, a wrong prompt, uniform maps), the number of
steps, guidance, and uniform maps in one cross-attention layer only. Figures are against the VAE's picture, which
no inversion can do better than.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uam_jax.engine.inversion import Inversion
from uam_jax.evaluation import metrics
from uam_jax.evaluation.plots import bars, curves
from uam_jax.evaluation.runs import Chunk, rows_of, run_chunks
from uam_jax.evaluation.scenes_bench import VERSION, Items
from uam_jax.io.encoding import encode_image
from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import Row
from uam_jax.jobs.runner import Outcome, Progress
from uam_jax.scenes.render import render_in_chunks
from uam_jax.scenes.world import ATTRIBUTES, captions

if TYPE_CHECKING:
    from uam_jax.editor import Editor

STEPS = (10, 20, 50, 100)
GUIDANCE = (3.0, 7.5)
LAYER_STEPS = 20


@dataclass(frozen=True)
class Case:
    """One way to invert and reconstruct.

    Attributes:
      told: the prompt. "wrong" names another shape, colour, surface and wall.
      steps: DDIM steps, up and down.
      guidance: on the way down; up it is 1.
      uniform: the cross-attention layers with uniform maps: "none", "all", or one, in execution order.
    """

    told: Literal["source", "null", "wrong"]
    steps: int
    guidance: float = 1.0
    uniform: Literal["none", "all"] | int = "none"


def study(layers: int) -> dict[str, Case]:
    """All cases by name, for a model of so many cross-attention layers."""
    cases: dict[str, Case] = {}
    for steps in STEPS:
        for told in ("source", "null", "wrong"):
            cases[f"{told} prompt, {steps} steps"] = Case(told, steps)
        cases[f"uniform maps, {steps} steps"] = Case("null", steps, uniform="all")
        for scale in GUIDANCE:
            for told in ("source", "wrong"):
                cases[f"{told} prompt, guidance {scale:g}, {steps} steps"] = Case(
                    told, steps, scale
                )
    for layer in range(layers):
        name = f"uniform in layer {layer:02d}, {LAYER_STEPS} steps"
        cases[name] = Case("source", LAYER_STEPS, uniform=layer)
    return cases


@dataclass(frozen=True)
class ReconstructionStudy:
    """A run of the study, decided; see `evaluate.Evaluation`."""

    editor: "Editor"
    cases: Mapping[str, Case]
    items: Items
    chunk: int
    settings: Mapping[str, Any]

    def run(self, folder: Folder, **how: Any) -> Progress:
        """Does what has no row yet; `how` is `report`, `say`, `stop` of `evaluate.run_chunks`."""
        return run_chunks(
            folder,
            self.items,
            {name: asdict(case) for name, case in self.cases.items()},
            lambda wanted: _Worker(self, wanted),
            chunk=self.chunk,
            job={
                "study": f"reconstruction of scenes {VERSION}",
                "weights": self.editor.weights_hash,
                "model_hash": self.editor.model_hash,
                **self.settings,
            },
            **how,
        )

    def rows(self, folder: Folder) -> list[Row]:
        """The rows of these cases and items, case by case."""
        return rows_of(folder, self.cases, self.items)


class _Shared(NamedTuple):
    """What all cases of a chunk have in common."""

    rows: tuple[int, ...]
    items: Items
    pictures: np.ndarray
    z0: Any
    ceiling: np.ndarray


def _share(editor: "Editor", items: Items, rows: tuple[int, ...]) -> _Shared:
    own = items.take(rows)
    pictures = render_in_chunks(own.before, size=editor.native_size)
    z0 = editor.encode(jnp.asarray(pictures))
    return _Shared(rows, own, pictures, z0, np.asarray(editor.decode(z0)))


@dataclass
class _Worker:
    study: ReconstructionStudy
    wanted: set[str]
    _last: "_Shared | None" = None

    def compute(self, batch: Chunk) -> Callable[[], list[Outcome]]:
        editor, case = self.study.editor, self.study.cases[batch.bucket]
        if self._last is None or self._last.rows != batch.padded:
            self._last = _share(editor, self.study.items, batch.padded)
        items, pictures, z0, ceiling = self._last[1:]
        began = time.perf_counter()
        inversion = invert_case(editor, case, z0, prompts_of(case, items))
        guided = Inversion(
            inversion.latents,
            editor.inverter.key(
                len(items),
                prompts_of(case, items),
                uniformity=inversion.key.uniformity,
                guidance=case.guidance,
                steps=case.steps,
                regions=inversion.regions,
            ),
            inversion.levels,
            inversion.regions,
        )
        rebuilt, clean = editor.inverter.denoise(guided, case.steps, last=case.steps)
        jax.block_until_ready(rebuilt)
        seconds = (time.perf_counter() - began) / len(items)

        def finish() -> list[Outcome]:
            made = np.asarray(editor.decode(rebuilt))
            figures = {
                "psnr": metrics.psnr(made, ceiling),
                "ssim": metrics.ssim(made, ceiling),
                "psnr_to_source": metrics.psnr(made, pictures),
                "latent_error": np.sqrt(np.mean(np.square(rebuilt - z0), axis=(1, 2, 3))),
            }
            drift = drift_by_level(editor, inversion, np.asarray(clean))
            return [
                self._outcome(batch, slot, items, figures, drift, seconds, made)
                for slot, row in enumerate(batch.rows)
                if f"{batch.bucket}/{self.study.items.ids[row]}" in self.wanted
            ]

        return finish

    def give_up(self, batch: Chunk, reason: str) -> list[Outcome]:
        ids = (f"{batch.bucket}/{self.study.items.ids[row]}" for row in batch.rows)
        failed = ({"id": name, "status": "failed", "reason": reason} for name in ids)
        return [Outcome(row) for row in failed if row["id"] in self.wanted]

    def _outcome(
        self,
        batch: Chunk,
        slot: int,
        items: Items,
        figures: Mapping[str, np.ndarray],
        drift: np.ndarray,
        seconds: float,
        made: np.ndarray,
    ) -> Outcome:
        name = f"{batch.bucket}/{items.ids[slot]}"
        case = self.study.cases[batch.bucket]
        finite = bool(np.isfinite(made[slot]).all())
        row: Row = {
            "id": name,
            "status": "ok" if finite else "failed",
            "reason": None if finite else "the network gave numbers that are not finite",
            "method": batch.bucket,
            "item": items.ids[slot],
            **asdict(case),
            "uniform": str(case.uniform),
            "seconds": round(seconds, 4),
        }
        if finite:
            row["figures"] = {key: round(float(of[slot]), 6) for key, of in figures.items()}
            row["drift"] = [round(float(value), 6) for value in drift[:, slot]]
        return Outcome(
            row, {f"images/{name}.png": encode_image("x.png", made[slot])} if finite else {}
        )


def prompts_of(case: Case, items: Items) -> list[str]:
    """What the network is told of each item."""
    if case.told == "null":
        return [""] * len(items)
    if case.told == "source":
        return list(items.sources)
    wrong = {
        name: (np.asarray(getattr(items.before, name)) + 1) % len(ATTRIBUTES[name])
        for name in ("shape", "colour", "surface", "wall")
    }
    return captions(items.before.replace(**wrong))


def invert_case(editor: "Editor", case: Case, z0: Any, prompts: list[str]) -> Inversion:
    """All levels of a case's inversion."""
    regions = None
    if isinstance(case.uniform, int):
        layers = editor.checkpoint.unet.config.transformer_blocks
        regions = np.zeros((layers, 1, 1, 1), np.float32)
        regions[case.uniform] = 1
    uniformity = float(case.uniform == "all")
    return editor.invert(
        z0, prompts, uniformity=uniformity, steps=case.steps, keep="all", regions=regions
    )


def drift_by_level(editor: "Editor", inversion: Inversion, clean: np.ndarray) -> np.ndarray:
    """Root mean square distance of the two ways at every level, noisiest first: (steps + 1, b).

    Args:
      editor: says the schedule.
      inversion: with all levels.
      clean: (steps, b, h, w, c), the clean estimates on the way down, from which its latents follow.
    """
    up = np.asarray(inversion.latents, np.float64)[::-1]
    schedule = editor.checkpoint.schedule.spaced(inversion.key.spacing)
    steps = schedule.denoising(inversion.key.steps)
    levels = zip(
        np.asarray(steps.alpha_bar, np.float64),
        np.asarray(steps.alpha_bar_next, np.float64),
        clean.astype(np.float64),
        up[1:],
        strict=True,
    )
    latent, found = up[0], [np.zeros(up.shape[1])]
    for level, following, estimate, stored in levels:
        noise = (latent - np.sqrt(level) * estimate) / np.sqrt(1 - level)
        latent = np.sqrt(following) * estimate + np.sqrt(1 - following) * noise
        found.append(np.sqrt(np.mean((latent - stored) ** 2, axis=(1, 2, 3))))
    return np.stack(found)


def study_summary(rows: list[Row], cases: Mapping[str, Case]) -> dict[str, Any]:
    """Of every case: means with 95 % intervals, gain over the source prompt item by item, and mean drift."""
    by_case: dict[str, dict[str, Row]] = {name: {} for name in cases}
    for row in rows:
        by_case[row["method"]][row["item"]] = row
    found = {}
    for name, own in by_case.items():
        if not own:
            continue
        figures = {
            key: list(metrics.bootstrap(np.asarray([row["figures"][key] for row in own.values()])))
            for key in next(iter(own.values()))["figures"]
        }
        told = by_case[f"source prompt, {cases[name].steps} steps"]
        gains = [
            row["figures"]["psnr"] - told[item]["figures"]["psnr"]
            for item, row in own.items()
            if item in told
        ]
        figures["gain"] = list(metrics.bootstrap(np.asarray(gains)))
        drift = np.mean([row["drift"] for row in own.values()], axis=0)
        found[name] = {**figures, "items": len(own), "drift": [round(float(x), 6) for x in drift]}
    return {"cases": found}


def study_files(summary: Mapping[str, Any], cases: Mapping[str, Case]) -> dict[str, bytes]:
    """Summary, tables and plots."""
    found = summary["cases"]
    title = summary["facts"]["benchmark"]
    whole = {name: case for name, case in cases.items() if not isinstance(case.uniform, int)}
    lines: dict[str, dict[float, Any]] = {}
    for name, case in whole.items():
        if name in found:
            kind = name.rpartition(", ")[0]
            lines.setdefault(kind, {})[case.steps] = found[name]["psnr"]
    layers = {
        str(case.uniform): found[name]["gain"]
        for name, case in cases.items()
        if isinstance(case.uniform, int) and name in found
    }
    files = {
        "summary.json": json.dumps(summary, indent=1).encode(),
        "summary.md": _markdown(summary, lines).encode(),
        "reconstruction.png": curves(
            lines,
            title=f"Reconstruction against the VAE's picture ({title})",
            x="DDIM steps",
            y="PSNR (dB)",
            log=True,
        ),
    }
    if layers:
        files["layers.png"] = bars(
            {layer: {"gain over the source prompt": gain} for layer, gain in layers.items()},
            title=f"Uniform maps in one cross-attention layer only, {LAYER_STEPS} steps ({title})",
            y="gain over the source prompt (dB)",
        )
    drift = {
        kind: {
            100 * level / case.steps: [value] * 3
            for level, value in enumerate(reversed(found[name]["drift"]))
        }
        for name, case in whole.items()
        for kind in [name.rpartition(", ")[0]]
        if name in found and case.steps == 50
    }
    if drift:
        files["drift.png"] = curves(
            drift,
            title=f"Distance of the way down from the way up, 50 steps ({title})",
            x="noise level (% of the steps; 0 is clean)",
            y="root mean square of the latent's error",
        )
    return files


def _markdown(summary: Mapping[str, Any], lines: Mapping[str, Mapping[float, Any]]) -> str:
    facts = "; ".join(f"{name} {value}" for name, value in summary["facts"].items())
    heads = [f"{steps} steps" for steps in STEPS]
    text = [facts, "", "PSNR to the VAE's picture in dB, mean [95 % interval]:", ""]
    text += [f"| maps | {' | '.join(heads)} |", "|" + " --- |" * (len(heads) + 1)]
    for kind, values in lines.items():
        cells = [
            "{:.2f} [{:.2f}, {:.2f}]".format(*values[s]) if s in values else "–" for s in STEPS
        ]
        text.append(f"| {kind} | {' | '.join(cells)} |")
    text += ["", "Gain over the source prompt in dB, item by item, mean [95 % interval]:", ""]
    text += ["| case | gain |", "| --- | --- |"]
    for name, of in summary["cases"].items():
        text.append("| {} | {:+.2f} [{:+.2f}, {:+.2f}] |".format(name, *of["gain"]))
    return "\n".join(text) + "\n"
