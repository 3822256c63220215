"""The package's shape and words: who may import what, and that every module is short and says what it is for."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import uam_jax

PACKAGE = Path(uam_jax.__file__).parent
REPOSITORY = Path(__file__).parent.parent
LONGEST = 400
"""Lines of a file."""

# A room is a sub-package, or a module beside them, and imports rooms of earlier lines only.
LAYERS = (
    {"errors"},
    {"types", "files"},
    {"runtime"},
    {"io", "models", "method"},
    {"checkpoints"},
    {"engine", "scenes"},
    {"editor"},
    {"jobs"},
    {"evaluation"},
    {"cli"},
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}

# Libraries, and the only rooms that may import them.
RESERVED = {
    "flax": {"models"},
    "PIL": {"io"},
    "pillow_heif": {"io"},
    "matplotlib": {"evaluation"},
    "jinja2": {"jobs"},
    "typer": {"cli"},
    "rich": {"cli"},
    "optax": {"method"},
    "torch": set(),
    "diffusers": set(),
    "transformers": set(),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(module: Path) -> str:
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str:
    """The room that a dotted name belongs to; the package's public names have none."""
    room = name.split(".")[1] if "." in name else ""
    return room if (PACKAGE / f"{room}.py").exists() or (PACKAGE / room).is_dir() else ""


def absolute_name(node: ast.ImportFrom, module: Path) -> str:
    if not node.level:
        return node.module or ""
    folder = module.relative_to(PACKAGE.parent).parts[: -node.level]
    return ".".join((*folder, *filter(None, [node.module])))


def imported(tree: ast.AST, module: Path) -> Iterator[str]:
    """Rooms and libraries that a module imports, also inside functions and under TYPE_CHECKING."""
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
            yield room_of(name) if library == "uam_jax" else library


def complaint(importer: str, name: str) -> str | None:
    """The fault of `importer` importing `name`, or None."""
    if name in RESERVED and importer not in RESERVED[name]:
        allowed = ", ".join(sorted(RESERVED[name])) or "nothing in the package"
        return f"{importer} imports {name}; only these may: {allowed}"
    inside = name in LAYER and importer in LAYER
    if inside and name != importer and LAYER[name] >= LAYER[importer]:
        return f"{importer} imports {name}, which is not below it"
    return None


def test_imports_point_downwards() -> None:
    complaints = {
        f"{module.relative_to(PACKAGE)}: {problem}"
        for module in modules()
        for name in imported(ast.parse(module.read_text(encoding="utf-8")), module)
        if (problem := complaint(room_of(name_of(module)), name))
    }
    assert not complaints, "\n".join(sorted(complaints))


def test_the_rooms_are_few_and_all_have_a_place() -> None:
    rooms = {room_of(name_of(module)) for module in modules()} - {"__init__", "__main__", ""}
    assert rooms == set(LAYER)
    assert len(list(PACKAGE.glob("*.py"))) <= 10
    folders = {module.parent.relative_to(PACKAGE) for module in modules()}
    assert len(folders) + len(list(PACKAGE.glob("*.py"))) - 1 <= 20


@pytest.mark.parametrize(
    ("importer", "name", "allowed"),
    [
        ("editor", "method", True),
        ("method", "editor", False),
        ("method", "models", False),
        ("method", "io", False),
        ("models", "types", True),
        ("models", "method", False),
        ("checkpoints", "models", True),
        ("cli", "typer", True),
        ("jobs", "typer", False),
        ("editor", "flax", False),
        ("models", "flax", True),
        ("scenes", "PIL", False),
        ("checkpoints", "torch", False),
        ("method", "jax", True),
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
    assert sorted(set(seen)) == ["", "errors", "flax", "models", "torch", "types"]


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_short_and_has_a_docstring(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert len(text.splitlines()) <= LONGEST


def programs() -> list[Path]:
    """Our Python files outside the package."""
    folders = ("tests", "scripts", "benchmarks")
    files = [file for folder in folders for file in (REPOSITORY / folder).rglob("*.py")]
    assert files
    return files


def test_tests_and_scripts_are_short_too() -> None:
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in programs()}
    assert not {str(file): count for file, count in lines.items() if count > LONGEST}


def unplain(source: str) -> Iterator[str]:
    """Words that CONTRIBUTING asks to replace, with their lines."""
    for node in ast.walk(ast.parse(source)):
        text = node.value if isinstance(node, ast.Expr) else None
        if isinstance(text, ast.Constant) and str(text.value).lstrip().startswith("What "):
            yield f"{text.lineno}: begin with a noun or a verb, not with What"
    for number, line in enumerate(source.splitlines(), 1):
        if re.search(r"\btol[d]\b", line, re.IGNORECASE):
            yield f"{number}: the word is condition"


def test_docstrings_begin_with_a_noun_or_a_verb_and_a_condition_is_called_so() -> None:
    files = [*modules(), *programs()]
    faults = [f"{file}:{at}" for file in files for at in unplain(file.read_text(encoding="utf-8"))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("source", "faults"),
    [
        ('"""The masks."""\nx = "What else"  # untold', 0),
        ('"""What a mask is."""', 1),
        ('def f():\n    """\n    What it does."""', 1),
        ("tol\x64 = 3", 1),
    ],
)
def test_such_words_are_seen(source: str, faults: int) -> None:
    assert len(list(unplain(source))) == faults


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
from uam_jax.evaluation.timing import peak_memory
import pathlib
from types import SimpleNamespace
pathlib.Path.read_text = lambda *_, **__: ""
assert peak_memory(SimpleNamespace(devices=[SimpleNamespace(memory_stats=dict)]))["gigabytes"] is None
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
