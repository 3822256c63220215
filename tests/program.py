"""Calls the program in this process, and makes and reads the pictures that it works on."""

from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner, Result

from uam_jax.cli import main


def picture(path: Path, *shape: int, dtype: type = np.uint8) -> Path:
    path.parent.mkdir(exist_ok=True)
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape or (48, 80, 3))
    Image.fromarray(array.astype(dtype)).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


def uam(*arguments: object) -> Result:
    return CliRunner().invoke(main.app, [str(argument) for argument in arguments])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
