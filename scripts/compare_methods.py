"""All inversions, controls and masks against each other on Scenes-Bench.

    python scripts/compare_methods.py

Every cell edits 60 items of the tune third. The twelve best of them, and the model's own settings and `released`,
edit the whole report third. A run that was stopped goes on where it was (`runs/methods/`). Each inversion is a process
of its own, since a process keeps all programs that it has compiled. Tables and plots are kept in
`benchmarks/scenes/methods/`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uam_jax.cli.eval_report import as_markdown
from uam_jax.evaluation.plots import clouds
from uam_jax.evaluation.scenes_bench import Third
from uam_jax.evaluation.scores import summarise
from uam_jax.io.storage import Folder
from uam_jax.jobs.job_folder import JobFolder

RUNS, KEPT = Path("runs/methods"), Path("benchmarks/scenes/methods")

NULL, PROMPT = ("source.condition=null",), ("source.condition=prompt",)
UNIFORM, ANCHORED = ("inversion.uniformity=1.0",), ("source.latents=anchored",)
REPLAY = ("source.latents=replay",)

KINDS: Mapping[str, tuple[str, ...]] = {
    "ddim": ("inversion.kind=ddim", *REPLAY),
    "direct": ("inversion.kind=ddim", *ANCHORED),
    "fixed point": ("inversion.kind=fixed_point", *REPLAY),
    "residual": ("inversion.kind=residual", *REPLAY),
    "belm": ("inversion.kind=belm", "sampler=belm", *REPLAY),
    "edit-friendly": ("inversion.kind=edit-friendly", "sampler=ddpm", *REPLAY),
}
"""Inversions that take the prompt's maps, those of the null prompt, or uniform ones."""

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
        }.items()
    },
    **{kind: (*keys, *PROMPT) for kind, keys in PROMPTED.items()},
}

# The embedded model's latents are 8x8, so that maps of words are taken at half their side.
CONTROLS: Mapping[str, tuple[str, ...]] = {
    "none": ("control=none",),
    "masactrl": ("control=masactrl",),
    "p2p": ("control=prompt-to-prompt", "control.local_blend=false"),
    "p2p + blend": ("control=prompt-to-prompt", "control.blend_side=0.5"),
    "pnp": ("control=plug-and-play",),
}

MASKS: Mapping[str, tuple[str, ...]] = {
    "no mask": ("mask.rule=none",),
    "released": ("mask.rule=released", "mask.quantile=0.5", "mask.t_mask=200", "mask.radius=1"),
    "auto": ("mask.rule=auto", "mask.t_mask=21", "mask.radius=0"),
}

GUIDANCE = "guidance=2.0"
"""That of the model's own settings, in all cells."""

LEFT_OUT = (
    "Prompt-to-Prompt with the null prompt as the source's, since it has no words to align; null-text, negative-prompt "
    "and proximal inversion, ReNoise and SPDInv with other maps than the prompt's; guidance other than 2"
)


def cells(inversion: str) -> dict[str, list[str]]:
    """The settings of an inversion's cells, by their names."""
    found = {}
    for control, own in CONTROLS.items():
        if inversion.endswith(", null") and control.startswith("p2p"):
            continue
        for mask, rule in MASKS.items():
            found[f"{inversion}, {control}, {mask}"] = [
                GUIDANCE,
                *INVERSIONS[inversion],
                *own,
                *rule,
            ]
    return found


def run(
    name: str, methods: Mapping[str, list[str]], third: Third, *options: str, presets: str = ""
) -> list[Any]:
    """Runs `uam eval scenes` for some cells and presets, and returns the rows of all that are in the folder."""
    file, out = RUNS / f"{name}.toml", RUNS / third
    file.parent.mkdir(parents=True, exist_ok=True)
    tables = [
        f'[methods.{json.dumps(label)}]\nconfig = "default"\nset = {json.dumps(keys)}\n'
        for label, keys in methods.items()
    ]
    file.write_text("\n".join(tables), encoding="utf-8")
    command = [sys.executable, "-m", "uam_jax", "eval", "scenes", "--methods", f"{presets}{file}"]
    command += ["--third", third, "--out", str(out), "--share", *options]
    subprocess.run(command, check=True)
    return [*JobFolder(Folder(str(out))).rows().values()]


def best(methods: Mapping[str, Any], count: int) -> Iterator[str]:
    """The names of the best cells: success within five points of the highest, then by the background's PSNR."""
    of = {name: each["overall"] for name, each in methods.items() if each["overall"]}
    highest = max(each["success"][0] for each in of.values())
    near = [name for name, each in of.items() if each["success"][0] >= highest - 0.05]
    yield from sorted(near, key=lambda name: -of[name]["background_psnr"][0])[:count]


def keep(third: str, rows: list[Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Keeps the table and the plot of a third, and returns the summary."""
    summary = {"facts": facts, "methods": summarise(rows)}
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{third}.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    (KEPT / f"{third}.md").write_text(as_markdown(summary), encoding="utf-8")
    groups: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for name, each in summary["methods"].items():
        control, mask = name.split(", ")[-2:] if name.count(",") > 1 else (name, name)
        means = each["overall"]
        if means.get("success", [None])[0] is not None:
            point = means["background_psnr"][0], means["success"][0], each["evaluations"]
            groups.setdefault(control, {}).setdefault(mask, []).append(point)
    plot = clouds(
        groups,
        title=f"{facts['benchmark']}: a point is an inversion, its area the evaluations",
        x="background PSNR (dB)",
        y="share of edits that succeeded",
    )
    (KEPT / f"{third}.png").write_bytes(plot)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[*INVERSIONS], choices=[*INVERSIONS])
    parser.add_argument("--items", type=int, default=60, help="of the tune third")
    parser.add_argument("--best", type=int, default=12, help="cells that go on to the report third")
    given = parser.parse_args()
    rows: list[Any] = []
    for inversion in given.only:
        name = inversion.replace(", ", "-").replace(" ", "-")
        rows = run(name, cells(inversion), "tune", "--n", str(given.items))
    known = [label for inversion in INVERSIONS for label in cells(inversion)]
    rows = [row for row in rows if row["method"] in known]
    facts = {
        "benchmark": f"Scenes-Bench, tune third, {given.items} items",
        "left out": LEFT_OUT,
    }
    tune = keep("tune", rows, facts)
    if given.only != [*INVERSIONS]:
        return
    chosen = {}
    every = {label: keys for inversion in INVERSIONS for label, keys in cells(inversion).items()}
    for label in best(tune["methods"], given.best):
        chosen[label] = every[label]
    rows = run("report", chosen, "report", presets="default,released,")
    keep("report", rows, {"benchmark": "Scenes-Bench, report third, 234 items"})


if __name__ == "__main__":
    main()
