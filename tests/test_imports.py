"""The package's shape: who may import what, and that every module is short and says what it is for."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import uam_jax

PACKAGE = Path(uam_jax.__file__).parent
REPOSITORY = Path(__file__).parent.parent

# A unit is a module or a subpackage, with all in it that has no place of its own. It imports units of earlier lines.
LAYERS = (
    {"errors", "names", "table", "urls"},
    {
        "types",
        "model_hash",
        "files",
        "formats",
        "host_memory",
        "outputs",
        "platforms",
        "png",
        "storage",
    },
    {"folders", "metadata"},
    {"images"},
    {
        "schedule",
        "plan",
        "parallel",
        "models",
        "tokenizer",
        "weight_files",
        "encoding",
        "mask_files",
        "manifest",
        "ledger",
        "grid",
        "report",
        "inversion",
        "metrics",
        "plots",
        "peaks",
    },
    {
        "ddim",
        "originals",
        "runner",
        "cache",
        "masks",
        "control",
        "weights",
        "hub",
        "compose",
    },
    {"edit", "checkpoints", "scenes", "data"},
    {"config", "predictors", "confidence", "shapes"},
    {"programs", "requests", "recommended", "delivery", "prepared"},
    {"inverter"},
    {"loaded"},
    {"pipeline"},
    {"uam_jax"},  # the public names, in __init__.py
    {"backend", "console", "jobs", "batch_plan", "evaluate", "scenes.demo"},
    {"job_folder", "batch_worker"},
    {"batch"},
    {"batch_command", "reconstruction", "bench"},
    {"eval_command", "bench_command"},
    {"subcommand"},
    {"cli"},
    {"__main__"},
)
LAYER = {unit: number for number, units in enumerate(LAYERS) for unit in units}

# Units that see nothing of the package but these, whatever their layer.
ONLY = {
    "models": {"errors", "platforms", "types"},
    "images": {"errors", "formats", "metadata", "png"},
    "metadata": {"png"},
    "encoding": {"errors", "formats", "images", "metadata", "outputs"},
    "mask_files": {"errors", "images"},
}

# Units and libraries that few may import.
RESERVED = {
    "models": {"checkpoints", "predictors", "programs", "shapes"},
    "flax": {"models"},
    "matplotlib": {"plots"},
    "PIL": {"encoding", "formats", "grid", "images", "mask_files", "metadata"},
    "pillow_heif": {"formats"},
    "optax": set(),
    "torch": set(),
    "diffusers": set(),
    "transformers": set(),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(module: Path) -> str:
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(name: str) -> str:
    """The unit that a dotted name below `uam_jax` belongs to; a public name of the package is its own."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        if (unit := ".".join(parts[:length])) in LAYER:
            return unit
    is_file = parts and ((PACKAGE / f"{parts[0]}.py").exists() or (PACKAGE / parts[0]).is_dir())
    return parts[0] if is_file else "uam_jax"


def absolute_name(node: ast.ImportFrom, module: Path) -> str:
    if not node.level:
        return node.module or ""
    folder = module.relative_to(PACKAGE.parent).parts[: -node.level]
    return ".".join((*folder, *filter(None, [node.module])))


def imported(tree: ast.AST, module: Path) -> Iterator[str]:
    """Units and libraries that a module imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = absolute_name(node, module)
            names = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            library = name.partition(".")[0]
            yield unit_of(name) if library == "uam_jax" else library


def complaint(importer: str, name: str) -> str | None:
    """What is wrong with `importer` importing `name`, or None."""
    if name == importer:
        return None
    if name in RESERVED and importer not in RESERVED[name]:
        allowed = ", ".join(sorted(RESERVED[name])) or "nothing in the package"
        return f"{importer} imports {name}; only these may: {allowed}"
    if name not in LAYER:
        return None
    if importer in ONLY and name not in ONLY[importer]:
        return f"{importer} imports {name}; of the package it may see {sorted(ONLY[importer])}"
    if LAYER[name] >= LAYER[importer]:
        return f"{importer} imports {name}, which is not below it"
    return None


def test_imports_point_downwards() -> None:
    unplaced = {unit_of(name_of(module)) for module in modules()} - set(LAYER)
    assert not unplaced, f"give {sorted(unplaced)} a place in LAYERS"
    complaints = {
        f"{module.relative_to(PACKAGE)}: {problem}"
        for module in modules()
        for name in imported(ast.parse(module.read_text(encoding="utf-8")), module)
        if (problem := complaint(unit_of(name_of(module)), name))
    }
    assert not complaints, "\n".join(sorted(complaints))


@pytest.mark.parametrize(
    ("importer", "name", "allowed"),
    [
        ("pipeline", "edit", True),
        ("edit", "pipeline", False),
        ("edit", "config", False),
        ("ddim", "masks", False),
        ("cli", "models", False),
        ("pipeline", "models", False),
        ("checkpoints", "models", True),
        ("models", "types", True),
        ("models", "schedule", False),
        ("pipeline", "flax", False),
        ("models", "flax", True),
        ("scenes", "PIL", False),
        ("checkpoints", "torch", False),
        ("edit", "jax", True),
        ("scenes.demo", "pipeline", True),
        ("scenes", "scenes.demo", False),
    ],
)
def test_the_rules_say_what_the_architecture_says(importer: str, name: str, allowed: bool) -> None:
    assert (complaint(importer, name) is None) == allowed


def test_every_spelling_of_an_import_is_seen() -> None:
    source = """
import torch.nn
from uam_jax import types, Editor
from uam_jax.errors import InputError
from ..types import Step
from .. import errors
from .sibling import helper
def late():
    import flax.linen as nn
"""
    seen = list(imported(ast.parse(source), PACKAGE / "models" / "unet.py"))
    assert sorted(set(seen)) == ["errors", "flax", "models", "torch", "types", "uam_jax"]


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_short_and_says_what_it_is_for(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert len(text.splitlines()) < 600


def test_the_installed_package_is_complete() -> None:
    source = REPOSITORY / "uam_jax"
    if not source.is_dir() or source.samefile(PACKAGE):
        pytest.skip("runs on the sources themselves")
    files = (p for p in source.rglob("*") if p.is_file() and p.suffix not in (".pyc", ".pyo"))
    stale = [
        str(path.relative_to(source))
        for path in files
        if not (copy := PACKAGE / path.relative_to(source)).exists()
        or copy.read_bytes() != path.read_bytes()
    ]
    assert not stale, f"not as in the sources (install again: pip install .): {stale}"


def test_nothing_is_imported_that_windows_lacks() -> None:
    """Not while the package is imported; inside a function it may be tried."""
    program = """
import builtins, importlib, pkgutil
import uam_jax
original = builtins.__import__

def refuse(name, globals=None, *rest):
    ours = (globals or {}).get("__name__", "").startswith("uam_jax")
    if ours and name in ("resource", "fcntl", "pwd", "grp", "termios"):
        raise ImportError(name)
    return original(name, globals, *rest)

builtins.__import__ = refuse
for module in pkgutil.walk_packages(uam_jax.__path__, "uam_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from uam_jax.bench import _peak_memory
import pathlib
from types import SimpleNamespace
pathlib.Path.read_text = lambda *_, **__: ""
assert _peak_memory(SimpleNamespace(devices=[SimpleNamespace(memory_stats=dict)]))["gigabytes"] is None
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
