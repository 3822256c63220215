r"""Which caption inverts best: the flattest (uniform maps), the emptiest (the null prompt), or a precise one?

    python scripts/compare_captions.py
    python scripts/compare_captions.py --model scenes-128 --items 8 --steps 10 20

Every inversion takes pictures of Scenes-Bench's report third to noise and back, under uniform maps, the null prompt,
and a right, a vague and a wrong caption, without guidance and with that of the model's own edits. Pictures are kept
apart. The record is kept in `benchmarks/MODEL/captions`. It is written after every measurement, and an interrupted run
resumes from it.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from uam_jax import EditConfig, Editor, scenes
from uam_jax.evaluation.metrics import psnr
from uam_jax.evaluation.plots import strips
from uam_jax.evaluation.reconstruction import wrong_prompts
from uam_jax.evaluation.scenes_bench import draw_items, render_truth
from uam_jax.runtime.backend import describe_machine
from uam_jax.types import Latent

STEPS, GUIDANCES = (10, 20, 50), (1.0, 2.0)
UNIFORM, NULL = "uniform maps", "null prompt"
CAPTIONS = (UNIFORM, NULL, "right caption", "vague caption", "wrong caption")
VAGUE = "a photo of a table"

ALONE = {
    "ddim": {"inversion": {"kind": "ddim"}},
    "fixed point": {"inversion": {"kind": "fixed_point"}},
    "fixed point, K = 3, Anderson": {
        "inversion": {"kind": "fixed_point", "iterations": 3, "anderson": True}
    },
    "renoise": {"inversion": {"kind": "fixed_point", "solver": "average", "iterations": 9}},
    "dpm++2m": {"sampler": "dpm++2m"},
    "residual": {"inversion": {"kind": "residual"}},
    "spdinv": {"inversion": {"kind": "fixed_point", "solver": "gradient", "iterations": 25}},
    "belm": {"inversion": {"kind": "belm"}, "sampler": "belm"},
    "edit-friendly": {"inversion": {"kind": "edit-friendly"}, "sampler": "ddpm"},
}
"""Inversions whose branch goes down alone, with the maps that it went up with."""

IN_EDIT = {
    "negative-prompt": {"inversion": {"kind": "negative-prompt"}},
    "proximal": {"inversion": {"kind": "proximal"}},
    "null-text": {"inversion": {"kind": "null-text"}},
}
"""Inversions that lead the source of an edit under guidance; they have captions alone."""

MOST_STEPS = {"spdinv": 20}
"""For the time that more would take."""

LEFT_OUT = (
    "direct, which returns by its offsets whatever the caption; 50 steps of SPDInv, for the time that 25 gradients in "
    "each of them take; guidance under the null prompt or uniform maps, which has nothing to act on"
)


class Case(NamedTuple):
    """A measurement of all pictures."""

    inversion: str
    caption: str
    steps: int
    guidance: float

    @property
    def config(self) -> EditConfig:
        """An edit whose source is inverted and replayed so."""
        own = (ALONE | IN_EDIT)[self.inversion]
        replayed = {"condition": "prompt", "latents": "replay"}
        # A mask in the last step makes the source go all the way; nothing is blended into it.
        compared = {"mask": {"rule": "released", "t_mask": 2}, "auxiliary": {"latents": "original"}}
        plain = {"steps": self.steps, "guidance": self.guidance, "control": "none"}
        settings = {**plain, **compared, "source": replayed, **own}
        return EditConfig().updated(settings)


def cases(numbers: Sequence[int]) -> Iterator[Case]:
    """All measurements: those of an inversion and a number of steps share programs."""
    for steps in numbers:
        for inversion in ALONE:
            if steps <= MOST_STEPS.get(inversion, steps):
                for caption in CAPTIONS:
                    for guidance in GUIDANCES if caption in CAPTIONS[2:] else (1.0,):
                        yield Case(inversion, caption, steps, guidance)
        for inversion in IN_EDIT:
            for caption in CAPTIONS[2:]:
                yield Case(inversion, caption, steps, GUIDANCES[-1])


def rebuild(
    editor: Editor, alike: Sequence[Case], z0: Latent, prompts: list[str]
) -> Iterator[Latent]:
    """The latents that come back, for cases that differ in guidance alone: it acts on the way down."""
    case, config = alike[0], alike[0].config
    if case.inversion in IN_EDIT:
        result = editor.edit_latents(z0, list(prompts), prompts, config=config)
        assert result.source_latents is not None
        yield result.source_latents
        return
    inversion = editor.invert(
        z0,
        prompts,
        uniformity=float(case.caption == UNIFORM),
        steps=case.steps,
        keep="all",
        sampler=config.sampler,
        method=config.inversion.method,
    )
    for each in alike:
        yield editor.reconstruct_latents(
            inversion, guidance=each.guidance if any(prompts) else None
        )


def measure(editor: Editor, count: int, numbers: Sequence[int], file: Path) -> dict[str, Any]:
    """Completes the record of so many pictures, with these numbers of steps."""
    items = draw_items().select(["report"], count)
    z0 = editor.encode(render_truth(items, editor.native_size).sources)
    ceiling = np.asarray(editor.decode(z0))
    right, null = scenes.captions(items.before), [""] * count
    prompts = dict(
        zip(CAPTIONS, (null, null, right, [VAGUE] * count, wrong_prompts(items)), strict=True)
    )
    machine = describe_machine()
    facts = {
        "items": f"{count} of Scenes-Bench's report third",
        "weights": editor.weights_hash,
        "device": machine["device"],
        "versions": ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
        "left out": LEFT_OUT,
    }
    record = json.loads(file.read_text()) if file.exists() else {}
    if record.get("facts") != facts:
        agreement = {
            caption: np.round(editor.agreement(z0, prompts[caption]), 4).tolist()
            for caption in CAPTIONS[2:]
        }
        record = {"facts": facts, "agreement": agreement, "rows": []}
    known = {Case(*(row[name] for name in Case._fields)) for row in record["rows"]}
    missing = (case for case in cases(numbers) if case not in known)
    programs = None
    for (inversion, caption, steps), group in groupby(missing, key=lambda case: case[:3]):
        if programs not in (None, (inversion, steps)):
            # All programs together need more memory mappings than Linux grants a process.
            jax.clear_caches()
        programs = inversion, steps
        alike = list(group)
        for case, back in zip(alike, rebuild(editor, alike, z0, prompts[caption]), strict=True):
            each = psnr(np.asarray(editor.decode(back)), ceiling)
            record["rows"].append({**case._asdict(), "psnr": np.round(each, 3).tolist()})
            print(*case, np.round(np.median(each), 2), flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(record))
    return record


def as_markdown(record: dict[str, Any], options: str = "") -> str:
    """A table for each guidance: median, worst picture, and the number of pictures for which a caption is the best."""
    lines = [f"`python scripts/compare_captions.py{options}`", ""]
    lines += ["; ".join(f"{name} {value}" for name, value in record["facts"].items()), ""]
    describes = ", ".join(
        f"{sum(value > 0 for value in values)} of {len(values)} times for a {caption}"
        for caption, values in record["agreement"].items()
    )
    lines += [
        f"Asked whether the caption describes its picture, the network agrees {describes}.",
        "",
        "PSNR of the picture that comes back to the VAE's, in dB: median (worst picture; pictures for which this "
        "caption is the best, a tie counting for all).",
    ]
    found = {Case(*(row[name] for name in Case._fields)): row["psnr"] for row in record["rows"]}
    for guidance in GUIDANCES:
        shown = [
            caption for caption in CAPTIONS
            if any(case.caption == caption and case.guidance == guidance for case in found)
        ]  # fmt: skip
        lines += ["", f"Guidance {guidance:g}:", "", f"| inversion | steps | {' | '.join(shown)} |"]
        lines.append("|" + " --- |" * (2 + len(shown)))
        for inversion in ALONE | IN_EDIT:
            for steps in STEPS:
                own = {
                    caption: np.asarray(found[case])
                    for caption in shown
                    if (case := Case(inversion, caption, steps, guidance)) in found
                }
                if own:
                    best = np.max(list(own.values()), axis=0)
                    cells = [
                        cell(own[caption], best) if caption in own else "–" for caption in shown
                    ]
                    lines.append(f"| {inversion} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(values: np.ndarray, best: np.ndarray) -> str:
    return f"{np.median(values):.1f} ({values.min():.1f}; {int((values >= best).sum())})"


def draw(record: dict[str, Any]) -> bytes:
    """Every picture as a point: a panel for each guidance and number of steps."""
    panels: dict[str, dict[str, dict[str, Sequence[float]]]] = {}
    numbers = sorted({row["steps"] for row in record["rows"]})
    for guidance in GUIDANCES:
        for steps in numbers:
            panel = panels.setdefault(f"{steps} steps, guidance {guidance:g}", {})
            for row in record["rows"]:
                if (row["steps"], row["guidance"]) == (steps, guidance):
                    panel.setdefault(row["inversion"], {})[row["caption"]] = row["psnr"]
    return strips(
        panels,
        columns=len(numbers),
        title="Which caption inverts best? Every picture is a point, the bar is the median",
        y="PSNR to the VAE's picture (dB)",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="scenes", choices=("scenes", "scenes-128"))
    parser.add_argument("--items", type=int, default=32, help="pictures of the report third")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, choices=STEPS)
    args = parser.parse_args()
    kept = Path("benchmarks") / args.model / "captions"
    record = measure(Editor.load(args.model), args.items, args.steps, kept / "summary.json")
    (kept / "captions.png").write_bytes(draw(record))
    steps = sorted({row["steps"] for row in record["rows"]})
    options = f" --model {args.model} --items {args.items} --steps {' '.join(map(str, steps))}"
    text = as_markdown(record, options)
    (kept / "summary.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
