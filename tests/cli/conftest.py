"""Stand-ins for the editor that a subcommand loads, and a picture to work on."""

from pathlib import Path
from typing import Any

import pytest
from fake_editor import FakeEditor
from program import picture

from uam_jax.cli.options import Compute


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch) -> FakeEditor:
    fake = FakeEditor()
    monkeypatch.setattr(Compute, "load_editor", lambda compute, model, console: fake)
    return fake


@pytest.fixture
def no_editor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        pytest.fail("the model was loaded before the input was checked")

    monkeypatch.setattr(Compute, "load_editor", fail)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return picture(tmp_path / "in.png")
