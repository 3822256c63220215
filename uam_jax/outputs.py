"""Files on the local disk that a command makes: whether they can be written, and writing them."""

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from uam_jax.atomic import write_files
from uam_jax.errors import InputError

Files = dict[Path, bytes]


def check_places(paths: Iterable[Path]) -> None:
    """Checks that files can be written, before anything is computed for them.

    Raises:
      InputError: a path is too long or no file's, or may not be written.
    """
    for path in paths:
        try:
            if path.is_dir():
                raise InputError(f"{path} is a folder, so no file can have that name")
            nearest = next(folder for folder in path.parents if folder.exists())
            if not nearest.is_dir():
                raise InputError(f"{nearest} is a file, so {path} cannot be written below it")
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise InputError(f"{nearest} may not be written: choose another --out")
            parts = path.relative_to(nearest).parts
            if len(parts) > 1 and (nearest / parts[0]).is_symlink():
                raise InputError(f"{nearest / parts[0]} is a link that leads nowhere: remove it")
            # What is to be below it does not exist yet, but the file system knows whether it may be called so.
            for part in parts:
                with suppress(FileNotFoundError):
                    os.lstat(nearest / part)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}): choose another or a shorter name"
            ) from None


def key_of(path: Path) -> str:
    """A text that is equal for two paths if their file system takes them for one file's."""
    folder = next(folder for folder in path.parents if folder.exists())
    return str(path).casefold() if _ignores_case(folder) else str(path)


@cache
def _ignores_case(folder: Path) -> bool:
    other = folder.with_name(folder.name.swapcase()) if folder.name else folder
    return other != folder and other.exists() and other.samefile(folder)


def save(files: Files) -> None:
    """Writes the files of a picture or a page, all or none.

    Raises:
      InputError: they can't be written; the disk may be full.
    """
    try:
        write_files(files)
    except OSError as error:
        folder = Path(error.filename or next(iter(files))).parent
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}): make room there, or choose another --out"
        ) from error
