r"""Samplers and fixed-point inversion: how close reconstruction comes to the picture, and what edits gain from it.

    python scripts/measure_inversions.py samplers fixed_point

16 items of Scenes-Bench's report third are inverted and reconstructed without guidance, and edited with guidance 2, no
control and the automatic mask, once with the anchored source and once with a replayed one. The record is kept in
`benchmarks/scenes/STUDY`. It is written after every measurement, and an interrupted run resumes from it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from uam_jax import EditConfig, Editor, scenes
from uam_jax.engine.inversion import Inversion
from uam_jax.evaluation.metrics import bootstrap, psnr
from uam_jax.evaluation.plots import curves
from uam_jax.evaluation.reconstruction import wrong_prompts
from uam_jax.evaluation.scenes_bench import Items, Truth, draw_items, judge, render_truth
from uam_jax.method.inversions import DDIMInversion, FixedPointInversion, InversionMethod
from uam_jax.runtime.backend import describe_machine

KEPT = Path(__file__).resolve().parents[1] / "benchmarks" / "scenes"
STEPS = (10, 20, 50)
MAPS = ("uniform maps", "null prompt", "source prompt", "wrong prompt")
SOURCES = {"anchored": "anchored source", "replay": "replayed source"}
COUNT = 16
EDIT = EditConfig.load(
    "default",
    ["guidance=2", "control=none", "mask.rule=auto", "mask.t_mask=21", "mask.radius=0"],
)


class Inverter(NamedTuple):
    """A row of the tables: a sampler, and the corrections of each inverting step (0 is plain inversion)."""

    sampler: str = "ddim"
    corrections: int = 0
    anderson: bool = False

    @property
    def label(self) -> str:
        name = {"ddim": "DDIM", "dpm++2m": "DPM-Solver++ 2M"}[self.sampler]
        corrected = f"{name}, K = {self.corrections}" if self.corrections else name
        return f"{corrected}, Anderson" if self.anderson else corrected

    @property
    def method(self) -> InversionMethod:
        """The inversion."""
        if not self.corrections:
            return DDIMInversion()
        return FixedPointInversion(iterations=self.corrections, anderson=self.anderson)

    def config(self, steps: int, latents: str) -> EditConfig:
        """The settings of an edit with this inversion and sampler."""
        kind = {
            "kind": "fixed_point",
            "iterations": self.corrections,
            "anderson": self.anderson,
        }
        return EDIT.updated(
            {
                "steps": steps,
                "sampler": self.sampler,
                "inversion": kind if self.corrections else {"kind": "ddim"},
                "source": {"latents": latents},
            }
        )


TITLES = {
    "samplers": "Reconstruction by sampler",
    "fixed_point": "Reconstruction by fixed-point inversion with K corrections per step",
}

STUDIES = {
    "samplers": (Inverter("ddim"), Inverter("dpm++2m")),
    "fixed_point": (
        *(Inverter("ddim", corrections) for corrections in (0, 1, 3)),
        Inverter("ddim", 3, anderson=True),
    ),
}


class Pictures(NamedTuple):
    """The pictures of the items, their latents, the VAE's pictures of these, and the prompts by maps."""

    items: Items
    truth: Truth
    z0: Any
    ceiling: np.ndarray
    prompts: dict[str, str | list[str]]


def render(editor: Editor) -> Pictures:
    """Renders and encodes the items."""
    items = draw_items().select(["report"], COUNT)
    truth = render_truth(items, editor.native_size)
    z0 = editor.encode(truth.sources)
    prompts = ("", "", scenes.captions(items.before), wrong_prompts(items))
    return Pictures(
        items, truth, z0, np.asarray(editor.decode(z0)), dict(zip(MAPS, prompts, strict=True))
    )


def invert(
    editor: Editor, pictures: Pictures, inverter: Inverter, maps: str, steps: int
) -> Inversion:
    """All levels of an inversion."""
    return editor.invert(
        pictures.z0,
        pictures.prompts[maps],
        uniformity=float(maps == MAPS[0]),
        steps=steps,
        keep="all",
        sampler=inverter.sampler,
        method=inverter.method,
    )


def reconstruct(editor: Editor, pictures: Pictures, inversion: Inversion) -> dict[str, Any]:
    """PSNR to the VAE's pictures, and the residual of a fixed-point inversion."""
    each = psnr(np.asarray(editor.reconstruct(inversion)), pictures.ceiling)
    found = {
        "evaluations": inversion.key.evaluations(inversion.key.steps) + inversion.key.steps,
        "psnr": rounded(bootstrap(each)),
        "median": rounded(np.median(each)),
        "worst": rounded(each.min()),
    }
    if "residual" in inversion.data:
        residual = np.asarray(inversion.data["residual"])
        found["residual"] = float(f"{np.median(residual):.2e}")
    return found


def edit(
    editor: Editor, pictures: Pictures, config: EditConfig, inversions: Sequence[Inversion]
) -> dict[str, Any]:
    """Success of the edits and PSNR of background and edit, all before unedited pixels are kept."""
    truth = pictures.truth
    result = editor.edit_latents(
        pictures.z0,
        list(pictures.items.targets),
        inversions=inversions,
        config=config,
        images=truth.sources,
    )
    made = np.asarray(result.images)
    return {
        "evaluations": editor.evaluations(config),
        "success": rounded(bootstrap(judge(made, truth).astype(np.float64))),
        "background_psnr": rounded(bootstrap(psnr(made, truth.sources, ~truth.region))),
        "edit_psnr": rounded(bootstrap(psnr(made, truth.answers, truth.region))),
    }


def rounded(value: Any) -> Any:
    """A number, or the numbers of an interval, with four decimals."""
    return np.round(np.asarray(value, np.float64), 4).tolist()


def measurements(
    editor: Editor, pictures: Pictures, inverters: Sequence[Inverter]
) -> Iterator[tuple[str, dict[str, Any], Callable[[], dict[str, Any]]]]:
    """The name of the table, the cell in it, and the function that measures, for all measurements."""
    made: dict[tuple[Inverter, str, int], Inversion] = {}

    def inversion(inverter: Inverter, maps: str, steps: int) -> Inversion:
        key = inverter, maps, steps
        if key not in made:
            made[key] = invert(editor, pictures, inverter, maps, steps)
        return made[key]

    for steps in STEPS:
        for inverter in inverters:
            cell = {"steps": steps, **inverter._asdict()}
            for maps in MAPS:
                yield (
                    "reconstructions",
                    {**cell, "maps": maps},
                    lambda inverter=inverter, maps=maps, steps=steps: reconstruct(
                        editor, pictures, inversion(inverter, maps, steps)
                    ),
                )
            for latents in SOURCES:
                config = inverter.config(steps, latents)
                yield (
                    "edits",
                    {**cell, "source": latents},
                    lambda inverter=inverter, steps=steps, config=config: edit(
                        editor,
                        pictures,
                        config,
                        [inversion(inverter, maps, steps) for maps in MAPS[:2]],
                    ),
                )
        made.clear()
        # All programs together need more memory mappings than Linux grants a process.
        jax.clear_caches()


def as_markdown(command: str, record: dict[str, Any], inverters: Sequence[Inverter]) -> str:
    """The two tables."""
    facts = "; ".join(f"{name} {value}" for name, value in record["facts"].items())
    lines = [
        f"`{command}`", "", facts, "",
        "PSNR of the reconstruction to the VAE's picture in dB: mean [95 % interval], worst picture. Both directions "
        "have the same prompt and maps, without guidance.", "",
        "| inversion | evaluations with 10, 20, 50 steps | maps | " + " | ".join(f"{n} steps" for n in STEPS) + " |",
        "|" + " --- |" * (3 + len(STEPS)),
    ]  # fmt: skip
    for inverter in inverters:
        own = [row for row in record["reconstructions"] if is_of(row, inverter)]
        for maps in MAPS:
            cells = {row["steps"]: row for row in own if row["maps"] == maps}
            counts = ", ".join(str(cells[n]["evaluations"]) if n in cells else "–" for n in STEPS)
            shown = [
                "{:.1f} [{:.1f}, {:.1f}]".format(*cells[n]["psnr"]) + f", {cells[n]['worst']:.1f}"
                if n in cells
                else "–"
                for n in STEPS
            ]
            lines.append(f"| {inverter.label} | {counts} | {maps} | {' | '.join(shown)} |")
    lines += [
        "",
        "Edits with guidance 2, no control and the automatic mask, before pixels are kept: mean [95 % interval].",
        "",
        "| inversion | source | steps | evaluations | success % | background dB | edit to answer dB |",
        "|" + " --- |" * 7,
    ]  # fmt: skip
    for inverter in inverters:
        for row in (row for row in record["edits"] if is_of(row, inverter)):
            success = "{:.0f} [{:.0f}, {:.0f}]".format(*(100 * x for x in row["success"]))
            others = ["{:.2f} [{:.2f}, {:.2f}]".format(*row[k]) for k in FIGURES]
            lines.append(
                f"| {inverter.label} | {SOURCES[row['source']]} | {row['steps']} | {row['evaluations']} | "
                f"{success} | {' | '.join(others)} |"
            )
    return "\n".join(lines) + "\n"


FIGURES = ("background_psnr", "edit_psnr")


def is_of(row: dict[str, Any], inverter: Inverter) -> bool:
    return (row["sampler"], row["corrections"], row["anderson"]) == inverter


def draw(record: dict[str, Any], inverters: Sequence[Inverter], title: str) -> bytes:
    """Reconstruction PSNR against the evaluations of both directions."""
    lines: dict[str, dict[float, Any]] = {}
    for inverter in inverters:
        for row in record["reconstructions"]:
            if is_of(row, inverter) and row["maps"] in (MAPS[0], MAPS[3]):
                line = lines.setdefault(f"{inverter.label}, {row['maps']}", {})
                line[row["evaluations"]] = row["psnr"]
    label = "evaluations per picture, inversion and reconstruction (10, 20 and 50 steps)"
    return curves(lines, title=title, x=label, y="PSNR to the VAE's picture (dB)", log=True)


def measure(editor: Editor, name: str, pictures: Pictures, facts: dict[str, str]) -> None:
    """Completes the record of a study, and writes its tables and its plot."""
    inverters, folder = STUDIES[name], KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    kept = {study: read(KEPT / study / "summary.json", facts) for study in STUDIES}
    record = kept[name]
    for table, cell, of_cell in measurements(editor, pictures, inverters):
        # The studies have plain DDIM in common.
        known = [
            row for each in kept.values() for row in each[table] if cell.items() <= row.items()
        ]
        if known and known[0] in record[table]:
            continue
        began = time.monotonic()
        row = known[0] if known else cell | of_cell()
        record["seconds"] = round(record["seconds"] + time.monotonic() - began, 1)
        record[table].append(row)
        print(json.dumps(row), flush=True)
        (folder / "summary.json").write_text(json.dumps(record, indent=1))
    plot = draw(record, inverters, TITLES[name])
    (folder / "reconstruction.png").write_bytes(plot)
    text = as_markdown(f"python scripts/measure_inversions.py {name}", record, inverters)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    print(text)


def read(summary: Path, facts: dict[str, str]) -> dict[str, Any]:
    """The kept record of a study if it is of the same model and machine; else an empty one."""
    record = json.loads(summary.read_text()) if summary.exists() else {}
    if record.get("facts") == facts:
        return record
    return {"facts": facts, "seconds": 0.0, "reconstructions": [], "edits": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], help="all if none is named")
    studies = parser.parse_args().studies or list(STUDIES)
    editor, machine = Editor.load("scenes"), describe_machine()
    facts = {
        "items": f"{COUNT} of Scenes-Bench's report third",
        "weights": editor.weights_hash,
        "device": machine["device"],
        "versions": ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
    }
    pictures = render(editor)
    for name in studies:
        measure(editor, name, pictures, facts)


if __name__ == "__main__":
    main()
