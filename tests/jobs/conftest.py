"""A tiny model, a small data set with faults, and an uninterrupted job on them; a browser for the gallery."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_editor
from tiny_job import run_tiny

from uam_jax import Editor
from uam_jax.io.encoding import write_image
from uam_jax.jobs.manifest import Item


@pytest.fixture(scope="package")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    return tiny_editor(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="package")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Seven pictures of two sizes; one has two targets, one is damaged."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    made = []
    for number in range(7):
        pixels = rng.uniform(-1, 1, (12, 12, 3)).astype(np.float32)
        path = folder / f"{number}.{'jpg' if number == 3 else 'png'}"
        write_image(path, pixels)
        made.append(Item(f"set/{number}", str(path), ("a blue ball",)))
    made[2] = Item("set/2", made[2].image, ("a blue ball", "a cube"))
    Path(made[5].image).write_bytes(Path(made[5].image).read_bytes()[:200])
    return made


@pytest.fixture(scope="package")
def whole(editor: Editor, items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    progress = run_tiny(editor, items, folder)
    assert (progress.done, progress.failed) == (8, 1)
    return folder


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium or Chrome with its chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--disable-gpu", "--no-sandbox", "--window-size=1300,950"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The driver's path is given, or selenium would look for one on the network.
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()
