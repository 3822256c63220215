"""Files on the local disk that a command makes: whether they can be written, and writing them."""

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


def write_files(files: Mapping[Path, bytes]) -> None:
    """Writes all files or none: beside their places first, then into them.

    Raises:
      InputError: they can't be written, since the disk is full, say; older files and folders are as before.
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
    """A name in the same folder that no file system finds too long, and no other process takes."""
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
        os.fsync(file.fileno())  # some disks say only now that they are full


def _set_aside(path: Path, undo: ExitStack) -> Path:
    """Keeps a file under another name, until all are written; meanwhile it stays where it is, if it can."""
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
    older.unlink(missing_ok=True)  # two names of one file are left alone by that
