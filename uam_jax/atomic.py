"""Several local files written together: all of them, or none."""

import os
from collections.abc import Mapping
from pathlib import Path


def write_files(files: Mapping[Path, bytes]) -> None:
    """Writes all files or none: to temporary names beside them first, then renamed into place."""
    staged: list[tuple[Path, Path]] = []
    try:
        for number, (path, data) in enumerate(files.items()):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.parent / f".uam-{os.getpid()}-{number}.tmp"
            staged.append((temporary, path))
            temporary.write_bytes(data)
        for temporary, path in staged:
            os.replace(temporary, path)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
