"""The notebooks in `colab/`, as files: `.ci/run` runs them."""

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text(encoding="utf-8"))


def sources(notebook: dict[str, Any]) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_all_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["batch_job", "compare_backends", "quickstart"]


def test_nothing_is_kept_of_a_run(notebook: dict[str, Any]) -> None:
    assert (notebook["nbformat"], set(notebook["metadata"])) == (4, {"kernelspec", "language_info"})
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_the_first_cell_of_code_installs_what_is_not_there(notebook: dict[str, Any]) -> None:
    first, *others = sources(notebook)
    assert 'find_spec("uam_jax") is None' in first and "%pip install" in first
    assert not any("pip install" in source for source in others)


def test_what_they_import_of_the_package_is_there(notebook: dict[str, Any]) -> None:
    _, *others = sources(notebook)
    for node in (node for source in others for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uam_jax"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_one_cell_chooses_real_weights_and_they_are_off(notebook: dict[str, Any]) -> None:
    [cell] = [source for source in sources(notebook) if "REAL_WEIGHTS" in source]
    assert cell.startswith("REAL_WEIGHTS = False\n") and "if REAL_WEIGHTS:" in cell
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in cell
