"""All inversions, controls and masks against each other on Scenes-Bench.

    python scripts/compare_methods.py

Every cell edits 60 items of the tune third with 20 steps. The forty best of them, and the presets, do so with 50 steps.
The twelve best of those, and the presets, edit the whole report third. A run that was stopped goes on where it was
(`runs/methods/`). An inversion's cells are edited by a process of its own, since a process keeps all programs that it
has compiled; `--jobs 2` runs two of them side by side, each on half of the cores. Their rows, the tables and the plots
are kept in `benchmarks/scenes/methods/`; what is kept is not made again.
"""

import argparse
import functools
import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import ge
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from uam_jax import EditConfig, Editor
from uam_jax.cli.eval_report import as_markdown
from uam_jax.evaluation.plots import clouds
from uam_jax.evaluation.scenes_bench import Third
from uam_jax.evaluation.scores import summarise
from uam_jax.io.storage import Folder
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.ledger import Row

RUNS, KEPT = Path("runs/methods"), Path("benchmarks/scenes/methods")

NULL, PROMPT = ("source.condition=null",), ("source.condition=prompt",)
UNIFORM, ANCHORED = ("inversion.uniformity=1.0",), ("source.latents=anchored",)
REPLAY = ("source.latents=replay",)
TEXT_FREE = (*NULL, *UNIFORM)
"""One inversion serves all prompts; uniform maps of the source's prompt are the mean of its words."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "ddim": ("inversion.kind=ddim", *REPLAY),
    "direct": ("inversion.kind=ddim", *ANCHORED),
    "fixed point": ("inversion.kind=fixed_point", *REPLAY),
    "residual": ("inversion.kind=residual", *REPLAY),
    "belm": ("inversion.kind=belm", "sampler=belm", *REPLAY),
    "edit-friendly": ("inversion.kind=edit-friendly", "sampler=ddpm", *REPLAY),
}
"""Inversions that take the prompt's maps, those of the null prompt, or uniform ones of either."""

PROMPTED: Mapping[str, tuple[str, ...]] = {
    "negative-prompt": ("inversion.kind=negative-prompt", *REPLAY),
    "proximal": ("inversion.kind=proximal", *REPLAY),
    "proxnpi": ("inversion.kind=proximal", "inversion.form=proxnpi", *REPLAY),
    "null-text": ("inversion.kind=null-text", *REPLAY),
    "renoise": (
        "inversion.kind=fixed_point",
        "inversion.solver=average",
        "inversion.iterations=9",
        *REPLAY,
    ),
    "spdinv": (
        "inversion.kind=fixed_point",
        "inversion.solver=gradient",
        "inversion.iterations=25",
        *REPLAY,
    ),
}
"""Inversions that stand or fall with the source's prompt, or are published with it alone."""

INVERSIONS: Mapping[str, tuple[str, ...]] = {
    **{
        f"{kind}, {maps}": (*keys, *source)
        for kind, keys in KINDS.items()
        for maps, source in {
            "prompt": PROMPT,
            "null": NULL,
            "uniform": (*PROMPT, *UNIFORM),
            "text-free": TEXT_FREE,
        }.items()
    },
    **{kind: (*keys, *PROMPT) for kind, keys in PROMPTED.items()},
}

# The embedded model's latents are 8x8, so that maps of words are taken at half their side.
CONTROLS: Mapping[str, tuple[str, ...]] = {
    "none": ("control=none",),
    "masactrl": ("control=masactrl", "control.step_start={masactrl_start}"),
    "p2p": ("control=prompt-to-prompt", "control.local_blend=false"),
    "p2p + blend": ("control=prompt-to-prompt", "control.blend_side=0.5"),
    "pnp": ("control=plug-and-play",),
}

MASKS: Mapping[str, tuple[str, ...]] = {
    "no mask": ("mask.rule=none",),
    "released": ("mask.rule=released", "mask.quantile=0.5", "mask.t_mask=200", "mask.radius=1"),
    "auto": ("mask.rule=auto", "mask.t_mask=21", "mask.radius=0"),
}

COMMON = ("guidance=2.0", "spacing=leading", "sampler=ddim")
"""Settings of all cells, unless their own say otherwise; the guidance is that of the model's own settings."""

PRESETS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "fast": (),
    **dict.fromkeys(("released", "ddim", "masactrl", "plug-and-play"), ("agreement=true",)),
    "prompt-to-prompt": ("agreement=true", "control.blend_side=0.5"),
}
"""Those that are compared with the best cells: the model's own form of the first two, and published runs."""

LEFT_OUT = (
    "Prompt-to-Prompt with the null prompt as the source's, since it has no words to align; direct inversion by its "
    "offsets, whose cells are those of an anchored source; null-text, negative-prompt "
    "and proximal inversion, ReNoise and SPDInv with other maps than the prompt's; guidance other than 2"
)


FIGURES = (
    "success", "background_psnr", "vae_background_psnr", "kept_success", "kept_background_psnr", "edit_psnr",
    "mask_iou", "agreement", "loss", "changed", "contrast", "difference", "moved", "noise", "opacity", "reconstruction",
    "round_trip", "separability", "share", "stability",
)  # fmt: skip
"""Those that are kept of every edit: its scores and the signals of its confidence."""

CHUNK = "5"
"""Items in a batch: 20 samples in a call of the network are 1.5 times faster on a core than 80."""

Cells = Mapping[str, list[str]]
"""Settings by the cell's name: inversion, control and mask."""
Groups = Mapping[str, Cells]
"""Cells that one process edits, by a name."""


@dataclass(frozen=True)
class Stage:
    """A part of the comparison.

    Attributes:
      name: of its files.
      steps: of inversion and edit.
      third: of Scenes-Bench.
      items: the number of its first items; None: all.
      agreement: the network is asked whether results agree with their prompts, for the confidence.
    """

    name: str
    steps: int
    third: Third
    items: int | None
    agreement: bool = True

    def cells(self, inversion: str) -> dict[str, list[str]]:
        """The settings of an inversion's cells, by their names."""
        found = {}
        for control, own in CONTROLS.items():
            if inversion.endswith((", null", ", text-free")) and control.startswith("p2p"):
                continue
            # MasaCtrl's own start is the fourth of 50 steps.
            start = round(0.08 * self.steps)
            own = [key.format(masactrl_start=start) for key in own]
            for mask, rule in MASKS.items():
                found[f"{inversion}, {control}, {mask}"] = [
                    *COMMON,
                    f"steps={self.steps}",
                    f"agreement={str(self.agreement).lower()}",
                    *INVERSIONS[inversion],
                    *own,
                    *rule,
                ]
        return found

    def rows(self, groups: Groups, jobs: int) -> list[Row]:
        """The rows of all cells; so many groups are edited at a time, each on its share of the cores."""
        shares: SimpleQueue[set[int]] = SimpleQueue()
        cores = sorted(os.sched_getaffinity(0))
        for job in range(jobs):
            shares.put({*cores[job::jobs]} or {*cores})

        def take_cores() -> None:
            os.sched_setaffinity(0, shares.get())  # of this thread and what it starts

        with ThreadPoolExecutor(jobs, initializer=take_cores) as pool:
            found = pool.map(self.rows_of, groups, groups.values())
            return [row for rows in found for row in rows]

    def rows_of(self, name: str, cells: Cells) -> list[Row]:
        """The rows of a group: those of cells that are not kept with these settings come from `uam eval scenes`."""
        kept = KEPT / self.name / f"{name}.json.gz"
        of = {"weights": model().weights_hash, "items": self.items}
        asked = {
            label: [*keys, settings(label).fingerprint()] if label in PRESETS else keys
            for label, keys in cells.items()
        }
        found = json.loads(gzip.decompress(kept.read_bytes())) if kept.exists() else {}
        if not of.items() <= found.items():
            found = {"cells": {}, "methods": {}}
        missing = {label for label in cells if found["cells"].get(label) != asked[label]}
        if missing:
            rows = self.run(
                name, {label: keys for label, keys in cells.items() if label in missing}
            )
            of["cells"] = found["cells"] | asked
            of["methods"] = found["methods"] | packed(rows)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(gzip.compress(json.dumps(of).encode(), mtime=0))
            found = of
        return unpacked({label: found["methods"][label] for label in cells})

    def run(self, name: str, cells: Cells) -> list[Row]:
        """Runs `uam eval scenes`, or goes on with it."""
        named = hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:8]
        out = RUNS / self.name / f"{name}-{named}"
        file = out.with_suffix(".toml")
        file.parent.mkdir(parents=True, exist_ok=True)
        tables = [
            f"[methods.{json.dumps(label)}]\n"
            f"config = {json.dumps(label if label in PRESETS else 'default')}\nset = {json.dumps(keys)}\n"
            for label, keys in cells.items()
        ]
        file.write_text("\n".join(tables), encoding="utf-8")
        command = [sys.executable, "-m", "uam_jax", "eval", "scenes", "--methods", str(file)]
        command += ["--third", self.third, "--out", str(out), "--share", "--chunk", CHUNK]
        command += ["--n", str(self.items)] if self.items else []
        subprocess.run(command, check=True)
        return [*JobFolder(Folder(str(out))).rows().values()]


@functools.cache
def model() -> Editor:
    """The model: rows of other weights are not reused."""
    return Editor.load("scenes")


def settings(preset: str) -> EditConfig:
    """Those of a preset: rows of others are not reused."""
    return model().preset(preset)


def packed(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows as columns by method."""
    methods: dict[str, Any] = {}
    for row in rows:
        own = methods.setdefault(row["method"], {"evaluations": None, "items": [], "figures": {}})
        own["evaluations"] = row.get("evaluations", own["evaluations"])
        own["items"].append([row["item"], row["kind"], row["status"]])
        for name in FIGURES:
            value = row.get("figures", {}).get(name)
            own["figures"].setdefault(name, []).append(None if value is None else round(value, 4))
    return methods


def unpacked(methods: Mapping[str, Any]) -> list[Row]:
    """The rows that `packed` was given, with what was kept of them."""
    rows = []
    for method, own in methods.items():
        # A figure that no edit of a method has is left out: methods that keep no pixels have no `kept_` figures.
        has = {name: values for name, values in own["figures"].items() if {*values} != {None}}
        for number, (item, kind, status) in enumerate(own["items"]):
            row = {"id": f"{method}/{item}", "method": method, "item": item, "kind": kind}
            figures = {name: values[number] for name, values in has.items()}
            row |= {"status": status, "evaluations": own["evaluations"], "seconds": None}
            rows.append(row | {"figures": figures})
    return rows


def best(methods: Mapping[str, Any], count: int) -> Sequence[str]:
    """The names of the best cells, whose success is within five points of the highest.

    First those that no other is better than: in success, the background's PSNR and evaluations at once. Then those that
    are so without the first, and so on; each time by the background.
    """
    of = {name: each for name, each in methods.items() if each["overall"]}
    highest = max(each["overall"]["success"][0] for each in of.values())
    left, found = {}, []
    for name, each in of.items():
        success, background = (each["overall"][key][0] for key in ("success", "background_psnr"))
        if success >= highest - 0.05:
            left[name] = (success, background, -each["evaluations"])
    while left and len(found) < count:
        front = [
            name
            for name, own in left.items()
            if not any(other != own and all(map(ge, other, own)) for other in left.values())
        ]
        found += sorted(front, key=lambda name: -left[name][1])
        left = {name: own for name, own in left.items() if name not in front}
    return found[:count]


def keep(stage: Stage, rows: list[Row]) -> dict[str, Any]:
    """Keeps the table and the plot of a stage, and returns the summary."""
    items = f"{stage.items or 'all'} items, {stage.steps} steps"
    facts = {"benchmark": f"Scenes-Bench, {stage.third} third, {items}", "left out": LEFT_OUT}
    methods = summarise(rows)
    if (
        stage.items
    ):  # Hundreds of cells: the kinds of so few edits would make a wide table of single items.
        methods = {name: each | {"kinds": {}} for name, each in methods.items()}
    summary = {"facts": facts, "methods": methods}
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{stage.name}.json").write_text(json.dumps(summary), encoding="utf-8")
    (KEPT / f"{stage.name}.md").write_text(as_markdown(summary), encoding="utf-8")
    groups: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    places: dict[tuple[float, float], list[str]] = {}
    for name, each in summary["methods"].items():
        control, mask = ("preset", "preset") if name in PRESETS else name.split(", ")[-2:]
        means = each["overall"]
        if means.get("success", [None])[0] is not None:
            point = means["background_psnr"][0], means["success"][0], each["evaluations"]
            groups.setdefault(control, {}).setdefault(mask, []).append(point)
            if name in PRESETS:
                places.setdefault((round(point[0], 1), round(point[1], 2)), []).append(name)
    plot = clouds(
        groups,
        title=f"{facts['benchmark']}: a point is an inversion, its area the evaluations",
        x="background PSNR (dB)",
        y="share of edits that succeeded",
        names={", ".join(each): place for place, each in places.items()},
    )
    (KEPT / f"{stage.name}.png").write_bytes(plot)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[*INVERSIONS], choices=[*INVERSIONS])
    parser.add_argument("--items", type=int, default=60, help="of the tune third")
    parser.add_argument("--good", type=int, default=40, help="cells that are edited with 50 steps")
    parser.add_argument("--best", type=int, default=12, help="cells that go on to the report third")
    parser.add_argument("--jobs", type=int, default=1, help="processes that edit side by side")
    given = parser.parse_args()
    screen = Stage("screen", 20, "tune", given.items, agreement=False)
    tune, report = Stage("tune", 50, "tune", given.items), Stage("report", 50, "report", None)
    groups = {file_name(name): screen.cells(name) for name in given.only}
    screened = screen.rows(groups, given.jobs)
    if given.only != [*INVERSIONS]:
        return
    good = best(keep(screen, screened)["methods"], given.good)
    presets = {name: [*keys] for name, keys in PRESETS.items()}
    groups: dict[str, Cells] = {"presets": presets}
    for name in INVERSIONS:
        if cells := {label: keys for label, keys in tune.cells(name).items() if label in good}:
            groups[file_name(name)] = cells
    tuned = keep(tune, tune.rows(groups, given.jobs))["methods"]
    tuned = {label: each for label, each in tuned.items() if label not in PRESETS}
    every = {label: keys for name in INVERSIONS for label, keys in report.cells(name).items()}
    chosen = presets | {label: every[label] for label in best(tuned, given.best)}
    groups = {file_name(label): {label: keys} for label, keys in chosen.items()}
    keep(report, report.rows(groups, given.jobs))


def file_name(label: str) -> str:
    return label.replace(", ", "-").replace(" ", "-")


if __name__ == "__main__":
    main()
