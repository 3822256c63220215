"""Records what the package computes, and compares recordings: code may move, results may not.

    python tests/behaviour.py record FILE.npz     runs every case with the package that is installed
    python tests/behaviour.py compare OLD NEW     exits with 1 if a difference is above its bound
    python tests/behaviour.py commit FILE.npz     keeps float32 values in tests/behaviour, for test_behaviour.py

On one machine, and while the programs stay the same, two recordings are equal to the bit. Other compilers and
processors round differently: the bound is a share of an array's largest value. Only the public names of the package
are used, and the helper that writes the tests' tiny checkpoint.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tiny import MASKED

from uam_jax import EditConfig, Editor
from uam_jax.method.controls import MasaCtrl

COMMITTED = Path(__file__).parent / "behaviour"
KEPT = 256
"""Of an array with more values, so many are committed; step masks, which pack well, are committed whole."""
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2}
SIGNALS = 10
"""How much wider the bound of signals and of confidence is: they are made of small differences between latents."""
LEVELS = 1
"""By how much a pixel of a job's files may differ: by the rounding of one that lies between two integers."""
UNSTABLE = ("seconds", "versions", "config")
"""Columns of a job's rows that differ between runs, or between versions with other names for the settings."""

LATER = ("crop", "figures", "negative", "words")
"""Columns that came after the committed recording."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One edit of two pictures.

    Attributes:
      preset: its settings, "own" for the model's, "masked" for `MASKED`.
      changes: to them, besides those of the model.
      sourced: the source prompts are given.
      masked: a user's masks are given.
      targets: prompts for each picture.
    """

    preset: str = "masked"
    changes: Mapping[str, object] | None = None
    sourced: bool = False
    masked: bool = False
    targets: int = 1


CASES = {
    "released": Case("released"),
    "default": Case("default"),
    "masked": Case(),
    "own": Case("own", sourced=True),
    "ddim": Case("ddim", sourced=True),
    "masactrl": Case("masactrl"),
    "anchored": Case(
        changes={"source": {"latents": "anchored"}, "control": "none", "mask": {"radius": 0}}
    ),
    "anchored, controlled": Case(changes={"source": {"latents": "anchored"}}),
    "prompt": Case(changes={"source": {"condition": "prompt"}, "inversion": {"guidance": 2.0}}, sourced=True),
    "mixed": Case(
        changes={"inversion": {"uniformity": 0.5}, "auxiliary": {"latents": "original"}, "mask": {"radius": 0}}
    ),
    "algorithm1": Case(changes={"mask": {"rule": "algorithm1", "source_line": False}}),
    "two targets": Case(changes={"mask": {"rule": "auto"}}, targets=2),
    "region of the target": Case(changes={"target": {"outside_uniformity": 0.8}, "mask": {"rule": "auto"}}),
    "region of the inversion": Case(
        changes={
            "guidance": 3.0,
            "source": {"condition": "prompt"},
            "inversion": {"outside_uniformity": 1.0},
            "mask": {"user": "replace", "user_from_start": True},
        },
        sourced=True,
        masked=True,
    ),
    "user mask": Case(masked=True),
}  # fmt: skip
FEW_STEPS = {
    "tiny": {
        "steps": 3,
        "guidance": 2.0,
        "mask": {"t_mask": 400},
        "control": {"step_start": 1, "block_start": 1},
    },
    "scenes": {"steps": 4, "mask": {"t_mask": 600}, "control": {"step_start": 1}},
}
"""Changes by which few steps still blend several times and control some."""
TARGETS = {
    "tiny": [["a blue ball", "a red cube"], ["a green cone on a table", "a blue cube"]],
    "scenes": [
        ["a small blue cube in the centre of a wooden table in front of a white wall, lit from the left",
         "a small red ball in the centre of a wooden table in front of a white wall, lit from the left"],
        ["a large green ball on the left of a linen table in front of a brick wall, lit from the front",
         "a large yellow ball on the left of a marble table in front of a brick wall, lit from the front"],
    ],
}  # fmt: skip
SOURCES = {
    "tiny": ["a red cube", "a green cone"],
    "scenes": [
        "a small red cube in the centre of a wooden table in front of a white wall, lit from the left",
        "a large yellow ball on the left of a linen table in front of a brick wall, lit from the front",
    ],
}


# What is run


def load(model: str, dtype: str, folder: Path) -> Editor:
    """The embedded model, or the tests' tiny one, which is written to `folder`."""
    if model == "scenes":
        return Editor.load("scenes", dtype=dtype)
    from checkpoint_files import write_checkpoint

    write_checkpoint(folder, scale=1 / 16)
    return Editor.load(folder, dtype=dtype)


def pictures(model: str) -> np.ndarray:
    """Two pictures: of noise, or as they were rendered once, since rendering them again may round otherwise."""
    if model == "tiny":
        integers = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3))
    else:
        integers = np.stack(
            [np.asarray(Image.open(COMMITTED / f"{name}.png")) for name in range(2)]
        )
    return (integers / 127.5 - 1).astype(np.float32)


def user_masks(side: int) -> np.ndarray:
    masks = np.zeros((2, side, side), np.float32)
    masks[0, side // 4 : side * 3 // 4 - 1, side // 4 : side * 3 // 4] = 1
    masks[1, side // 8 : side // 2, side // 8 : side * 3 // 4 + 1] = 1
    return masks


def run_edit(editor: Editor, model: str, case: Case) -> Arrays:
    """Everything that an edit returns, with every step's mask."""
    own = case.preset == "own"
    known = {"own": editor.default_config, "masked": MASKED}
    config = known.get(case.preset) or EditConfig.load(case.preset)
    # The model's own settings stay as they are, but for the number of steps.
    few = {"steps": FEW_STEPS[model]["steps"]} if own else dict(FEW_STEPS[model])
    if not isinstance(config.control, MasaCtrl):
        few.pop("control", None)
    images = pictures(model)
    result = editor.edit(
        images,
        [prompts[: case.targets] for prompts in TARGETS[model]],
        SOURCES[model] if case.sourced else None,
        masks=user_masks(images.shape[1]) if case.masked else None,
        config=config.updated(few).updated(case.changes or {}),
        keep_masks=True,
    )
    found = {
        "images": result.images,
        "latents": result.latents,
        "source_latents": result.source_latents,
        "auxiliary_latents": result.auxiliary_latents,
        "masks": result.masks,
        "step_masks": result.step_masks,
        "error_map": result.error_map,
        "confidence": result.confidence,
        "evaluations": result.evaluations,
        "source_index": result.source_index,
        **{f"signals/{name}": values for name, values in result.signals.items()},
    }
    return {name: plain(values) for name, values in found.items() if values is not None}


def run_inversion(editor: Editor, model: str, uniformity: float) -> Arrays:
    """The noise that two pictures are inverted to, and what is reconstructed from it."""
    prompts, steps = ("", SOURCES[model])[uniformity < 1], FEW_STEPS[model]["steps"]
    z0 = editor.encode(pictures(model))
    inversion = editor.invert(z0, prompts, uniformity=uniformity, steps=steps)
    found = {
        "z0": z0,
        "noise": inversion.at(steps),
        "reconstruction": editor.reconstruct_latents(inversion),
    }
    return {name: plain(values) for name, values in found.items()}


def plain(values: object) -> np.ndarray:
    """A host array of float32, integers or texts; float32 holds every bfloat16."""
    array = np.asarray(values)
    return array if array.dtype.kind in "iuUb" else array.astype(np.float32)


def run_case(editor: Editor, model: str, name: str) -> Arrays:
    """One of `names`."""
    if name in CASES:
        return run_edit(editor, model, CASES[name])
    return run_inversion(editor, model, {"inversion, uniform": 1.0, "inversion, text": 0.0}[name])


def names(model: str, dtype: str = "float32") -> list[str]:
    """The cases of a model: all, but of the embedded one in half precision a few, since its programs are large."""
    if model == "scenes" and dtype == "bfloat16":
        return ["own", "default", "region of the inversion", "inversion, uniform"]
    # The tiny model has no settings of its own.
    edits = [name for name in CASES if (model, name) != ("tiny", "own")]
    return [*edits, "inversion, uniform", "inversion, text"]


def run_job(model: str, folder: Path) -> Arrays:
    """`uam batch` on two pictures with two targets each: the rows' columns, and every file of the results."""
    lines = []
    for number, image in enumerate(pictures(model)):
        Image.fromarray(np.round((image + 1) * 127.5).astype(np.uint8)).save(
            folder / f"{number}.png"
        )
        lines.append(json.dumps({"image": f"{number}.png", "target": TARGETS[model][number]}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    if model == "tiny":
        load(model, "float32", folder / "model")
    command = [
        *(sys.executable, "-m", "uam_jax", "batch", "manifest.jsonl", "--out", "out", "--no-cache"),
        *("--model", "scenes" if model == "scenes" else "model", "--batch", "2", "--format", "png"),
        *("--set", f"steps={FEW_STEPS[model]['steps']}"),
    ]
    one_device = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run(command, cwd=folder, env=one_device, check=True, capture_output=True)
    out, found = folder / "out", {}
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for column in sorted({column for row in rows for column in row} - {*UNSTABLE, *LATER}):
        found[f"rows/{column}"] = column_of([row.get(column) for row in rows])
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name, content = path.relative_to(out).as_posix(), path.read_bytes()
        found[f"files/{name}/bytes"] = np.asarray(
            [len(content), hashlib.sha256(content).hexdigest()]
        )
        if path.suffix == ".png":
            with Image.open(path) as image:
                found[f"files/{name}/pixels"] = np.asarray(image)
    return found


def column_of(values: list[object]) -> np.ndarray:
    """Of a job's rows: numbers as float32, anything else as texts."""
    if all(type(value) in (int, float) for value in values):
        return np.asarray(values, np.float32)
    return np.asarray([json.dumps(value) for value in values])


def record() -> Arrays:
    """Every case of both models, in both precisions, and a job of each."""
    found = {}
    for model in FEW_STEPS:
        with tempfile.TemporaryDirectory() as folder:
            found |= within(f"{model}/float32/job", run_job(model, Path(folder)))
        for dtype in BOUNDS:
            with tempfile.TemporaryDirectory() as folder:
                editor = load(model, dtype, Path(folder))
                for name in names(model, dtype):
                    print(model, dtype, name, file=sys.stderr, flush=True)
                    found |= within(f"{model}/{dtype}/{name}", run_case(editor, model, name))
                    # All programs together need more memory mappings than Linux grants a process.
                    jax.clear_caches()
    return found


def within(prefix: str, arrays: Arrays) -> Arrays:
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


# How recordings are compared


def differences(
    old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, bool]]:
    """For each array that is not the same to the bit: a line that says how it differs, and if it must not."""
    for key in sorted({*old, *new}):
        if key not in old or key not in new:
            yield f"{key}: only in the {'old' if key in old else 'new'} recording", True
        elif old[key].shape != new[key].shape or old[key].dtype.kind != new[key].dtype.kind:
            before, after = (f"{each.dtype}{each.shape}" for each in (old[key], new[key]))
            yield f"{key}: was {before}, is {after}", True
        elif old[key].tobytes() != new[key].tobytes():
            yield difference(key, old[key], new[key])


def difference(key: str, old: np.ndarray, new: np.ndarray) -> tuple[str, bool]:
    what = key.rpartition("/")[2]
    if (
        what == "bytes"
    ):  # the pixels decide: a file also holds the settings, in words that may change
        return f"{key}: other bytes, {old[0]} before and {new[0]} now", False
    if what == "pixels":
        most = int(np.abs(old.astype(int) - new.astype(int)).max())
        return f"{key}: {most} of 255 levels", most > LEVELS
    if old.dtype.kind != "f" or what == "step_masks":
        count = int((old != new).sum())
        return f"{key}: {count} of {old.size} values differ, none may", count > 0
    finite = np.isfinite(old)
    if (finite != np.isfinite(new)).any():
        return f"{key}: not finite in other places", True
    old, new = old[finite], new[finite]
    largest = float(np.abs(old).max(initial=0)) or 1.0
    share = float(np.abs(old - new).max(initial=0)) / largest
    bound = BOUNDS[key.split("/")[1]]
    if "/signals/" in key or what == "confidence":
        bound *= SIGNALS
    return f"{key}: {share:.2g} of the largest value (bound {bound:g})", not share <= bound


def compare(old: Path, new: Path) -> bool:
    """Prints what differs; whether nothing is above its bound."""
    before, after = read(old), read(new)
    found = list(differences(before, after))
    for line, wrong in found:
        print("WRONG" if wrong else "close", line)
    wrong = sum(wrong for _, wrong in found)
    same = len({*before, *after}) - len(found)
    print(
        f"{same} arrays have equal bits, {len(found) - wrong} are within their bounds, {wrong} are not"
    )
    return wrong == 0


# What is kept


def read(path: Path) -> Arrays:
    with np.load(path) as file:
        return dict(file)


def committed(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The part of a recording that is compared on other machines: float32, without the bytes of files."""
    return {
        key: sampled(array) if not key.endswith("/step_masks") else array
        for key, array in arrays.items()
        if key.split("/")[1] == "float32" and not key.endswith("/bytes")
    }


def sampled(array: np.ndarray) -> np.ndarray:
    """The same `KEPT` values of every array of one size, or all if there are no more."""
    if array.size <= KEPT:
        return array
    return array.ravel()[np.sort(np.random.default_rng(0).choice(array.size, KEPT, replace=False))]


def commit(recording: Path) -> None:
    kept = committed(read(recording))
    for model in FEW_STEPS:
        arrays = {key: array for key, array in kept.items() if key.startswith(f"{model}/")}
        COMMITTED.mkdir(exist_ok=True)
        np.savez_compressed(COMMITTED / f"{model}.npz", **arrays)


def main(command: str = "", *files: str) -> int:
    match command, [Path(file) for file in files]:
        case "record", [file]:
            np.savez_compressed(file, **record())
        case "compare", [old, new]:
            return not compare(old, new)
        case "commit", [file]:
            commit(file)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
