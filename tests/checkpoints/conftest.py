"""A tiny checkpoint: written once for a file of tests, and copied for each test that changes it."""

import shutil
from pathlib import Path

import pytest
from checkpoint_files import write_checkpoint

from uam_jax.types import Params


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """The folder of a checkpoint, which no test changes, and its params."""
    folder = tmp_path_factory.mktemp("model")
    return folder, write_checkpoint(folder)


@pytest.fixture
def folder(written: tuple[Path, Params], tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may change."""
    return shutil.copytree(written[0], tmp_path / "model")
