"""Checks whether local files can be written, and writes several files, all or none."""

import errno
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from uam_jax.errors import InputError

Files = dict[Path, bytes]


def check_places(paths: Iterable[Path]) -> None:
    """Checks that files can be written, before anything is computed for them.

    Raises:
      InputError: a path is too long, is that of a folder, lies below a file, or must not be written.
    """
    for path in paths:
        try:
            if path.is_dir():
                raise InputError(f"{path} is a folder, so no file can have that name")
            nearest = next(folder for folder in path.parents if folder.exists())
            if not nearest.is_dir():
                raise InputError(f"{nearest} is a file, so {path} cannot be written below it")
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise InputError(f"{nearest} cannot be written: choose another --out")
            parts = path.relative_to(nearest).parts
            if len(parts) > 1 and (nearest / parts[0]).is_symlink():
                raise InputError(f"{nearest / parts[0]} is a link that leads nowhere: remove it")
            # The parts below do not exist yet, but the file system already refuses names that it cannot hold.
            for part in parts:
                with suppress(FileNotFoundError):
                    os.lstat(nearest / part)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}): choose another or a shorter name"
            ) from None


def key_of(path: Path) -> str:
    """Returns a text that is equal for two paths if they name the same file in their file system."""
    folder = next(folder for folder in path.parents if folder.exists())
    return str(path).casefold() if _ignores_case(folder) else str(path)


@cache
def _ignores_case(folder: Path) -> bool:
    other = folder.with_name(folder.name.swapcase()) if folder.name else folder
    return other != folder and other.exists() and other.samefile(folder)


def write_files(files: Mapping[Path, bytes]) -> None:
    """Writes all files or none: each first under a temporary name beside its place, then all are renamed.

    Raises:
      InputError: a file cannot be written, for example because the disk is full; older files and folders are
        unchanged.
    """
    staged: dict[Path, Path] = {}
    replaced: list[Path] = []
    path = Path()
    try:
        with ExitStack() as undo:
            for path, data in files.items():
                _make_folder(path.parent, undo)
                staged[path] = _name_beside(path)
                undo.callback(staged[path].unlink, missing_ok=True)
                _write(staged[path], data)
            for path, temporary in staged.items():
                if os.path.lexists(path):
                    replaced.append(_set_aside(path, undo))
                else:
                    undo.callback(path.unlink, missing_ok=True)
                os.replace(temporary, path)
            undo.pop_all()
    except OSError as error:
        raise InputError(
            f"{path.parent} cannot be written ({path.name}: {error.strerror or error}): make room there, or choose "
            "another --out"
        ) from error
    for older in replaced:
        older.unlink()


def _name_beside(path: Path) -> Path:
    """A name in the same folder that is short enough for every file system and that no other process uses."""
    return path.with_name(f".uam-{secrets.token_hex(8)}.tmp")


def _make_folder(folder: Path, undo: ExitStack) -> None:
    for each in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        each.mkdir(exist_ok=True)
        undo.callback(_remove_empty, each)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # some disks report only here that they are full


def _set_aside(path: Path, undo: ExitStack) -> Path:
    """Keeps an older file under a second name until all files are written; it stays in its place if links work."""
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    older = _name_beside(path)
    try:
        os.link(path, older, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a file system without links
        os.replace(path, older)
    undo.callback(_put_back, older, path)
    return older


def _put_back(older: Path, path: Path) -> None:
    os.replace(older, path)
    older.unlink(missing_ok=True)  # `replace` does nothing if both are names of one file
