"""Files on the local disk: written whole or not at all, locked, and swept; and their errors in words."""

import contextlib
import errno
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from uam_jax.errors import InputError

_ABANDONED_SECONDS = 3600
"""A temporary file that has not been written for this long was left by a process that was killed."""
_LOCKED_SECONDS = 2
"""A new temporary file is locked well before this age, where files can be locked."""

_TEMPORARY_LENGTH = len(f".uam-{uuid.UUID(int=0).hex}.tmp")


@contextlib.contextmanager
def whole_file_beside(path: str, content: bytes) -> Iterator[str]:
    """Writes a whole file under a temporary name beside `path`, yields that name, and removes the file at the end."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), f".uam-{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            lock_file(file)  # until it has its final name, so that `sweep` leaves it alone
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":  # where an open file can't be renamed
                file.close()
            yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def rename_to_new(temporary: str, path: str) -> None:
    """Gives a file a name that no other file has.

    Raises:
      FileExistsError: another file has the name.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with open(path, "xb") as file:
            file.write(Path(temporary).read_bytes())


def append_whole(path: str, content: bytes) -> None:
    """Adds to the end of a file and waits until the content is on the disk.

    Raises:
      OSError: the content cannot be written; then nothing is added.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def lock_file(file: IO[bytes]) -> bool | None:
    """Locks an open file until it is closed.

    Returns:
      Whether this call holds the lock; None on a file system without locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def sweep(folder: str) -> None:
    """Removes temporary files of killed processes: those that nobody locks, and those older than any write."""
    for path in Path(folder).rglob(".uam-*.tmp"):
        with contextlib.suppress(OSError):
            age = time.time() - path.stat().st_mtime
            if age >= _ABANDONED_SECONDS or (age >= _LOCKED_SECONDS and _is_unlocked(path)):
                path.unlink()


def _is_unlocked(path: Path) -> bool:
    """Whether the process that wrote a temporary file is gone."""
    if len(path.name) != _TEMPORARY_LENGTH:  # temporary files of other kinds are never locked
        return False
    with path.open("r+b") as file:
        return lock_file(file) is True


def check_writable(folder: str, names: Collection[str] = ()) -> None:
    """Checks that files can be written below a folder; makes no folder and leaves no file.

    Args:
      folder: the folder's absolute path; it need not exist.
      names: names of files relative to the folder, with "/" between their parts. None of them may be too long or lie
        below a file.

    Raises:
      InputError: a file cannot be written.
    """
    nearest = _nearest(folder)
    below = {os.path.dirname(f"{folder}/{name}") for name in names}
    for place in {nearest, *map(_nearest, below)}:
        if not os.path.isdir(place):
            raise InputError(
                f"{place} is not a folder, so nothing can be written below it: choose another --out"
            )
        try:
            with tempfile.TemporaryFile(dir=place, prefix=".uam-", suffix=".tmp"):
                pass
        except OSError as error:
            raise InputError(write_failure(os.path.join(place, "new files"), error)) from None
    if hasattr(os, "pathconf"):
        longest_part = os.pathconf(nearest, "PC_NAME_MAX")
        longest_path = os.pathconf(nearest, "PC_PATH_MAX")
        for name in names:
            part = max(len(os.fsencode(part)) for part in name.split("/"))
            parent = len(os.fsencode(os.path.dirname(f"{folder}/{name}")))
            own = len(os.fsencode(os.path.basename(name)))
            if part > longest_part or parent + max(_TEMPORARY_LENGTH, own) + 2 > longest_path:
                raise InputError(
                    f"{folder}: the name {name} is too long for this file system: give a shorter `id`, or choose an "
                    "--out with a shorter path"
                )


def _nearest(path: str) -> str:
    """The path, or the nearest folder above it that exists."""
    while not os.path.lexists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def write_failure(path: str, error: OSError) -> str:
    """A sentence that says why a file cannot be written, with the remedy."""
    folder = os.path.dirname(path) or path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{folder}: the disk is full ({error.strerror}). Finished results are kept: free space and start the same "
            "command again"
        )
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{path} can't be written: a file has the name of a folder above it; remove it, or choose another --out"
    return (
        f"{path} can't be written ({error.strerror or reason(error)}): correct that, or choose another --out; "
        "finished results are kept"
    )


def reason(error: Exception) -> str:
    """The first line of an error's message, or the name of its kind where it has no message."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    first = next(iter(str(error).splitlines()), "")
    return first or type(error).__name__
