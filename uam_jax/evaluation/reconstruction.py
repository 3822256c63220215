"""Reconstruction: how faithfully a picture survives inversion and denoising, which is the paper's claim, as a study.

The methods differ in the prompt (source, null, wrong), in uniform maps (none, all, or one cross-attention layer
only), in the number of steps and in guidance. Figures are relative to the VAE's picture: no inversion can come
closer to the source than that.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from uam_jax.engine.inversion import Inversion
from uam_jax.evaluation import metrics
from uam_jax.evaluation.plots import bars, curves
from uam_jax.evaluation.scenes_bench import VERSION, Items
from uam_jax.evaluation.study import NOT_FINITE, Chunk, ChunkWorker, Study
from uam_jax.io.encoding import encode_image
from uam_jax.jobs.ledger import Row
from uam_jax.jobs.runner import Outcome
from uam_jax.scenes.render import render_in_chunks
from uam_jax.scenes.world import ATTRIBUTES, captions

if TYPE_CHECKING:
    from uam_jax.editor import Editor

STEPS = (10, 20, 50, 100)
GUIDANCE = (3.0, 7.5)
LAYER_STEPS = 20

Prompt = Literal["source", "null", "wrong"]
"""The prompt of inversion and reconstruction; "wrong" names another shape, colour, surface and wall."""


@dataclass(frozen=True)
class Reconstruction:
    """A way to invert and reconstruct.

    Attributes:
      prompt: of both directions.
      steps: of each direction.
      guidance: of the reconstruction; the inversion has none.
      uniform: the cross-attention layers with uniform maps: "none", "all", or the number of one in
        execution order.
    """

    prompt: Prompt
    steps: int
    guidance: float = 1.0
    uniform: Literal["none", "all"] | int = "none"


def reconstructions(layers: int) -> dict[str, Reconstruction]:
    """All methods of the study by name, for a model with so many cross-attention layers."""
    methods: dict[str, Reconstruction] = {}
    prompts: tuple[Prompt, ...] = ("source", "null", "wrong")
    for steps in STEPS:
        for prompt in prompts:
            methods[f"{prompt} prompt, {steps} steps"] = Reconstruction(prompt, steps)
        methods[f"uniform maps, {steps} steps"] = Reconstruction("null", steps, uniform="all")
        for scale in GUIDANCE:
            for prompt in (prompts[0], prompts[2]):
                name = f"{prompt} prompt, guidance {scale:g}, {steps} steps"
                methods[name] = Reconstruction(prompt, steps, scale)
    for layer in range(layers):
        name = f"uniform in layer {layer:02d}, {LAYER_STEPS} steps"
        methods[name] = Reconstruction("source", LAYER_STEPS, uniform=layer)
    return methods


@dataclass(frozen=True)
class ReconstructionStudy(Study[Reconstruction]):
    """A run of the study."""

    def facts(self) -> dict[str, Any]:
        return {"study": f"reconstruction of scenes {VERSION}"}

    def describe(self, method: Reconstruction) -> dict[str, Any]:
        return asdict(method)

    def worker(self, wanted: set[str]) -> "_ReconstructionWorker":
        return _ReconstructionWorker(self, wanted)


@dataclass
class _ReconstructionWorker(ChunkWorker[ReconstructionStudy]):
    """Inverts and reconstructs chunks, and compares the results with the VAE's pictures."""

    def render(self, items: Items) -> np.ndarray:
        return render_in_chunks(items.before, size=self.study.editor.native_size)

    def compute(self, batch: Chunk) -> Callable[[], list[Outcome]]:
        editor, method = self.study.editor, self.study.methods[batch.bucket]
        chunk = self.encoded(batch)
        began = time.perf_counter()
        inversion = invert(editor, method, chunk.z0, prompts_of(method, chunk.items))
        guided = replace(inversion, key=replace(inversion.key, guidance=method.guidance))
        rebuilt, clean = editor.inverter.denoise(guided, method.steps, last=method.steps)
        jax.block_until_ready(rebuilt)
        seconds = (time.perf_counter() - began) / len(chunk.items)

        def finish() -> list[Outcome]:
            made = np.asarray(editor.decode(rebuilt))
            figures = fidelity(
                made,
                np.asarray(rebuilt),
                pictures=chunk.pictures,
                ceiling=chunk.ceiling,
                z0=np.asarray(chunk.z0),
            )
            drift = drift_by_level(editor, inversion, np.asarray(clean))
            outcomes = []
            for slot in self.slots(batch):
                row = self.row(batch, slot) | asdict(method)
                row |= {"uniform": str(method.uniform), "seconds": round(seconds, 4)}
                files = {}
                if np.isfinite(made[slot]).all():
                    row["figures"] = {k: round(float(of[slot]), 6) for k, of in figures.items()}
                    row["drift"] = [round(float(value), 6) for value in drift[:, slot]]
                    files[f"images/{row['id']}.png"] = encode_image("x.png", made[slot])
                else:
                    row |= {"status": "failed", "reason": NOT_FINITE}
                outcomes.append(Outcome(row, files))
            return outcomes

        return finish


def fidelity(
    made: np.ndarray,
    rebuilt: np.ndarray,
    *,
    pictures: np.ndarray,
    ceiling: np.ndarray,
    z0: np.ndarray,
) -> dict[str, np.ndarray]:
    """Figures of reconstructions, one of each for every picture.

    Args:
      made: (b, h, w, 3) in [-1, 1], decoded from `rebuilt`.
      rebuilt: the latents after inversion and reconstruction.
      pictures: the originals.
      ceiling: the pictures that the VAE makes of `z0`.
      z0: the originals' latents.
    """
    return {
        "psnr": metrics.psnr(made, ceiling),
        "ssim": metrics.ssim(made, ceiling),
        "psnr_to_source": metrics.psnr(made, pictures),
        "latent_error": np.sqrt(np.mean(np.square(rebuilt - z0), axis=(1, 2, 3))),
    }


def prompts_of(method: Reconstruction, items: Items) -> list[str]:
    """The prompt of each item."""
    if method.prompt == "null":
        return [""] * len(items)
    return list(items.sources) if method.prompt == "source" else wrong_prompts(items)


def wrong_prompts(items: Items) -> list[str]:
    """Captions that name another shape, colour, surface and wall than the pictures show."""
    wrong = {
        name: (np.asarray(getattr(items.before, name)) + 1) % len(ATTRIBUTES[name])
        for name in ("shape", "colour", "surface", "wall")
    }
    return captions(items.before.replace(**wrong))


def invert(editor: "Editor", method: Reconstruction, z0: Any, prompts: list[str]) -> Inversion:
    """All levels of a method's inversion."""
    regions = None
    if isinstance(method.uniform, int):
        layers = editor.checkpoint.unet.config.transformer_blocks
        regions = np.zeros((layers, 1, 1, 1), np.float32)
        regions[method.uniform] = 1
    uniformity = float(method.uniform == "all")
    return editor.invert(
        z0, prompts, uniformity=uniformity, steps=method.steps, keep="all", regions=regions
    )


def drift_by_level(editor: "Editor", inversion: Inversion, clean: np.ndarray) -> np.ndarray:
    """Root mean square distance between inversion and reconstruction at every level, noisiest first: (steps + 1, b).

    Args:
      editor: whose schedule is used.
      inversion: with all levels.
      clean: (steps, b, h, w, c), the clean estimates of the reconstruction, from which its latents follow.
    """
    up = np.asarray(inversion.latents, np.float64)[::-1]
    schedule = editor.checkpoint.schedule.spaced(inversion.key.spacing)
    steps = schedule.denoising(inversion.key.steps)
    levels = zip(
        *(np.asarray(part, np.float64) for part in steps[2:]),
        clean.astype(np.float64),
        up[1:],
        strict=True,
    )
    latent, found = up[0], [np.zeros(up.shape[1])]
    for signal, sigma, signal_next, sigma_next, estimate, stored in levels:
        latent = signal_next * estimate + sigma_next * (latent - signal * estimate) / sigma
        found.append(np.sqrt(np.mean((latent - stored) ** 2, axis=(1, 2, 3))))
    return np.stack(found)


def study_summary(rows: list[Row], methods: Mapping[str, Reconstruction]) -> dict[str, Any]:
    """Means with 95 % intervals, mean gain over the source prompt item by item, and mean drift of every method."""
    by_method: dict[str, dict[str, Row]] = {name: {} for name in methods}
    for row in rows:
        by_method[row["method"]][row["item"]] = row
    found = {}
    for name, own in by_method.items():
        if not own:
            continue
        figures = {
            key: list(metrics.bootstrap(np.asarray([row["figures"][key] for row in own.values()])))
            for key in next(iter(own.values()))["figures"]
        }
        reference = by_method[f"source prompt, {methods[name].steps} steps"]
        gains = [
            row["figures"]["psnr"] - reference[item]["figures"]["psnr"]
            for item, row in own.items()
            if item in reference
        ]
        figures["gain"] = list(metrics.bootstrap(np.asarray(gains)))
        drift = np.mean([row["drift"] for row in own.values()], axis=0)
        found[name] = {**figures, "items": len(own), "drift": [round(float(x), 6) for x in drift]}
    return {"cases": found}


def study_files(
    summary: Mapping[str, Any], methods: Mapping[str, Reconstruction]
) -> dict[str, bytes]:
    """The summary, its tables and its plots as files."""
    found = summary["cases"]
    title = summary["facts"]["benchmark"]
    whole = {name: each for name, each in methods.items() if not isinstance(each.uniform, int)}
    lines: dict[str, dict[float, Any]] = {}
    for name, method in whole.items():
        if name in found:
            kind = name.rpartition(", ")[0]
            lines.setdefault(kind, {})[method.steps] = found[name]["psnr"]
    layers = {
        str(method.uniform): found[name]["gain"]
        for name, method in methods.items()
        if isinstance(method.uniform, int) and name in found
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
            100 * level / method.steps: [value] * 3
            for level, value in enumerate(reversed(found[name]["drift"]))
        }
        for name, method in whole.items()
        for kind in [name.rpartition(", ")[0]]
        if name in found and method.steps == 50
    }
    if drift:
        files["drift.png"] = curves(
            drift,
            title=f"Distance between inversion and reconstruction, 50 steps ({title})",
            x="noise level (% of the steps; 0 is the clean latent)",
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
    text += ["| method | gain |", "| --- | --- |"]
    for name, of in summary["cases"].items():
        text.append("| {} | {:+.2f} [{:+.2f}, {:+.2f}] |".format(name, *of["gain"]))
    return "\n".join(text) + "\n"
