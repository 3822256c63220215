"""The notebooks in `colab/`, as files: `.ci/run` runs them."""

import ast
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
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


def test_the_first_cells_of_code_install_what_is_not_there(notebook: dict[str, Any]) -> None:
    [repository, _, gpu, tpu, cpu, *others] = sources(notebook)
    assert [line for line in repository.splitlines() if line[0] != "#"] == ['REPOSITORY = ".."']
    assert gpu.startswith("if GPU:") and tpu.startswith("if TPU:") and "not GPU" in cpu
    assert 'install("cuda12")' in gpu and 'install("tpu")' in tpu and "install()" in cpu
    assert not any("pip" in source or "REPOSITORY" in source for source in others)
    first = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    assert sources(first)[:5] == sources(notebook)[:5]


class Runtime:
    """The install cell on an invented machine: its packages, and what pip is asked for."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, *installed: str, code: int = 0
    ) -> None:
        monkeypatch.chdir(folder)
        self.asked: list[str] = []

        def run(command: list[str], **_: Any) -> SimpleNamespace:
            self.asked = command
            return SimpleNamespace(returncode=code, stdout="pip's own words")

        pairs = [text.split("==") for text in installed]
        packages = [SimpleNamespace(name=name, version=version) for name, version in pairs]
        _, cell, *_ = sources(json.loads(NOTEBOOKS[0].read_text(encoding="utf-8")))
        self.names: dict[str, Any] = {"REPOSITORY": "https://example.org/uam_jax"}
        exec(cell, self.names)
        self.names["util"] = SimpleNamespace(find_spec=lambda name: None)
        self.names["metadata"] = SimpleNamespace(distributions=lambda: packages)
        self.names["subprocess"] = SimpleNamespace(run=run, PIPE=-1, STDOUT=-2)

    def install(self, extra: str = "") -> str:
        self.names["install"](extra)
        return self.asked[-1]


def test_a_runtime_keeps_its_jax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colab = ("jax==0.10.9", "jaxlib==0.10.8", "jaxtyping==0.3.9", "numpy==2.1")
    runtime = Runtime(tmp_path, monkeypatch, *colab, "jax-cuda13-plugin==0.10.9")
    assert runtime.install("cuda12") == "uam_jax @ git+https://example.org/uam_jax"
    assert runtime.asked[-3:-1] == ["--constraint", "kept.txt"]
    kept = (tmp_path / "kept.txt").read_text().splitlines()
    assert kept == ["jax==0.10.9", "jax-cuda13-plugin==0.10.9", "jaxlib==0.10.8"]
    # JAX for the CPU alone: what the device needs is added, of the same version.
    runtime = Runtime(tmp_path, monkeypatch, *colab)
    assert runtime.install("cuda12") == "uam_jax[cuda12] @ git+https://example.org/uam_jax"
    runtime = Runtime(tmp_path, monkeypatch, *colab, "libtpu==0.0.40")
    assert runtime.install("tpu").startswith("uam_jax @")
    assert "libtpu==0.0.40" in (tmp_path / "kept.txt").read_text()
    # None at all.
    assert Runtime(tmp_path, monkeypatch).install("tpu").startswith("uam_jax[tpu] @")
    assert (tmp_path / "kept.txt").read_text() == ""


def test_a_package_that_can_not_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(tmp_path, monkeypatch, "jax==0.9.1", code=1)
    with pytest.raises(
        RuntimeError, match=r"can't be installed from https://example.org/uam_jax.*jax==0.9.1"
    ):
        runtime.install()
    runtime = Runtime(tmp_path, monkeypatch)
    runtime.names["REPOSITORY"] = ".."
    with pytest.raises(RuntimeError, match="is not its repository: set REPOSITORY, at the top"):
        runtime.install()
    assert not runtime.asked
    (tmp_path.parent / "pyproject.toml").touch()
    assert runtime.install() == f"uam_jax @ {tmp_path.parent.as_uri()}"


def test_what_is_installed_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(tmp_path, monkeypatch)
    runtime.names["util"] = SimpleNamespace(find_spec=lambda name: name)
    runtime.names["install"]("cuda12")
    assert not runtime.asked and not list(tmp_path.iterdir())


def test_what_they_import_of_the_package_is_there(notebook: dict[str, Any]) -> None:
    for node in (node for source in sources(notebook) for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uam_jax"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_one_cell_chooses_real_weights_and_they_are_off(notebook: dict[str, Any]) -> None:
    [cell] = [source for source in sources(notebook) if "REAL_WEIGHTS" in source]
    assert cell.startswith("REAL_WEIGHTS = False\n") and "if REAL_WEIGHTS:" in cell
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in cell


def test_the_number_format_is_that_of_the_device(notebook: dict[str, Any]) -> None:
    for source in sources(notebook):
        chosen = re.findall(r'"--dtype"\W+(\w+)', source)
        assert not chosen or chosen[0] == "auto", (
            "another one may stand beside it, not in its place"
        )


def test_colab_asks_for_a_photo_and_for_a_folder_that_stays() -> None:
    def cell(name: str, text: str) -> str:
        book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
        [found] = [source for source in sources(book) if text in source]
        return found

    assert 'FILE = ""' in cell("quickstart", "files.upload()")
    place = cell("batch_job", "drive.mount")
    assert 'PLACE = ""' in place and "/content/drive/MyDrive" in place
