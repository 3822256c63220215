"""Folders and files, local or remote (fsspec), with writes that are there whole or not at all."""

import contextlib
import errno
import fnmatch
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from uam_jax.errors import InputError
from uam_jax.files import at_home, base_name, local_path, parent

_IN_REMOTE = ("http", "https", "s3", "s3a", "gs", "gcs")
"""Protocols whose packages the extra `remote` brings."""


def locate(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URL, and the path in it; whatever is no URL is a local path.

    Raises:
      InputError: it is empty, there is no such file system, or its package is not installed.
    """
    if not url:
        raise InputError(
            "a path is empty, as a variable that is not set makes it: give a file or folder"
        )
    path = local_path(url)
    if path is not None:
        # fsspec would take `::` for a chain.
        return LocalFileSystem(), os.path.abspath(at_home(path))
    try:
        return url_to_fs(url)
    except ImportError as error:
        known = url.partition("://")[0].rpartition("::")[2].lower() in _IN_REMOTE
        extra = ", or all at once: python -m pip install '.[remote]'" if known else ""
        raise InputError(f"{url}: a package is missing ({_reason(error)}{extra})") from None
    except Exception as error:
        raise InputError(f"{url}: no such file system ({_reason(error)})") from None


def is_folder(url: str) -> bool:
    """Whether there is a folder of that name.

    Raises:
      InputError: that can't be told.
    """
    filesystem, path = locate(url)
    try:
        return filesystem.isdir(path)
    except Exception as error:
        raise InputError(f"{url}: can't be read ({_reason(error)})") from None


_ABANDONED_SECONDS = 3600
"""A temporary file that nobody has written to for so long is a killed process's."""
_LOCKED_SECONDS = 2
"""A new file is locked long before that, where files can be locked."""

_TEMPORARY_LENGTH = len(f".uam-{uuid.UUID(int=0).hex}.tmp")


def read_bytes(url: str) -> bytes:
    """The content of a local or remote file.

    Raises:
      InputError: it can't be read.
    """
    filesystem, path = locate(url)
    _refuse_special(url, filesystem, path)
    try:
        return filesystem.cat_file(path)
    # Every file system has errors of its own, down to botocore's and aiohttp's.
    except Exception as error:
        raise InputError(f"{url}: can't be read ({_reason(error)})") from None


def open_binary(url: str) -> Any:
    """A file to read from; remote ones are fetched piece by piece.

    Raises:
      InputError: it is local and no plain file.
    """
    filesystem, path = locate(url)
    _refuse_special(url, filesystem, path)
    return filesystem.open(path, "rb")


def write_bytes(url: str, content: bytes) -> None:
    """Writes a local or remote file, which appears whole."""
    Folder(parent(url) or ".").write(base_name(url), content)


class Folder:
    """A folder that outputs go to; names in it are relative, with "/" between their parts."""

    def __init__(self, url: str):
        """Names the folder, which need not exist.

        Args:
          url: a path, or a URL of anything that fsspec knows.

        Raises:
          InputError: there is no such file system.
        """
        self.url = url
        self._files, root = locate(url)
        self._root = root.rstrip("/")
        self.is_local = isinstance(self._files, LocalFileSystem)

    def path(self, name: str) -> str:
        """The file system's own path of a name."""
        return f"{self._root}/{name}"

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, which appears whole; an older one of that name is replaced.

        Object stores do that by themselves; on a local disk a file of another name is renamed. Other remote file
        systems (sftp, smb) may leave half a file where the process is killed.

        Raises:
          InputError: it can't be written, since the disk is full, say; an older file is still there.
        """
        with self._writing(name) as path:
            if not self.is_local:
                self._files.pipe_file(path, content)
                return
            with _beside(path, content) as temporary:
                os.replace(temporary, path)

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file unless there is one of that name: of several processes one alone does.

        Object stores decide that themselves where they can; other remote file systems leave a moment in which a
        second process may write as well.

        Returns:
          Whether this call has written it.

        Raises:
          InputError: it can't be written.
        """
        with self._writing(name) as path:
            try:
                if self.is_local:
                    with _beside(path, content) as temporary:
                        _rename_to_new(temporary, path)
                elif self._exists(path):
                    return False
                else:
                    self._files.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            except TypeError:  # an older file system, which knows no such mode
                self._files.pipe_file(path, content)
            except Exception:  # some tell it by an error of their own
                if self.is_local or not self._exists(path):
                    raise
                return False
            return True

    def append(self, name: str, content: bytes) -> None:
        """Adds to the end of a local file, and waits until it is on the disk.

        Raises:
          InputError: it can't be written; then nothing is added.
        """
        with self._writing(name) as path:
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

    def check(self, names: Collection[str] = ()) -> None:
        """Makes sure that files can be written, before long work is done for them; makes no folder and leaves no file.

        Args:
          names: of files; that none is too long is checked, and that none lies below a file.

        Raises:
          InputError: they can't be written.
        """
        if not self.is_local:
            return
        nearest = _nearest(self._root)
        below = {os.path.dirname(self.path(name)) for name in names}
        for place in {nearest, *map(_nearest, below)}:
            if not os.path.isdir(place):
                raise InputError(
                    f"{place} is no folder, so nothing can be written below it: choose another --out"
                )
            try:
                with tempfile.TemporaryFile(dir=place, prefix=".uam-", suffix=".tmp"):
                    pass
            except OSError as error:
                raise InputError(_unwritten(os.path.join(place, "new files"), error)) from None
        if hasattr(os, "pathconf"):
            longest_part = os.pathconf(nearest, "PC_NAME_MAX")
            longest_path = os.pathconf(nearest, "PC_PATH_MAX")
            for name in names:
                part = max(len(os.fsencode(part)) for part in name.split("/"))
                folder = len(os.fsencode(os.path.dirname(self.path(name))))
                whole = (
                    folder + max(_TEMPORARY_LENGTH, len(os.fsencode(os.path.basename(name)))) + 2
                )
                if part > longest_part or whole > longest_path:
                    raise InputError(
                        f"{self.url}: the name {name} is too long for this file system: give a shorter `id`, or choose "
                        "an --out with a shorter path"
                    )

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """Holds a lock of that name, which ends with the process however that ends, and yields whether it has it.

        Another process, or another holder in this one, does not have it meanwhile. File systems without locks, which
        remote ones are, always give it.
        """
        if not self.is_local:
            yield True
            return
        with self._writing(f".uam-{name}.lock") as path:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = open(path, "ab")  # noqa: SIM115
        with file:  # closing it gives the lock back
            yield lock_file(file) is not False

    def sweep(self) -> None:
        """Removes what killed processes had begun to write: what nobody holds, and what is older than any write."""
        if not self.is_local:
            return
        for path in Path(self._root).rglob(".uam-*.tmp"):
            with contextlib.suppress(OSError):
                age = time.time() - path.stat().st_mtime
                if age >= _ABANDONED_SECONDS or (age >= _LOCKED_SECONDS and _is_unheld(path)):
                    path.unlink()

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[str]:
        """Yields a name's path, and tells of any fault what can be done."""
        path = self.path(name)
        try:
            yield path
        except InputError:
            raise
        except OSError as error:
            raise InputError(_unwritten(path, error)) from error
        except Exception as error:  # of a remote file system, which has errors of its own
            if self.is_local:
                raise
            raise InputError(f"{self.url}: can't be written ({_reason(error)})") from error

    def _exists(self, path: str) -> bool:
        self._files.invalidate_cache(path.rpartition("/")[0])
        return self._files.exists(path)

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none.

        Raises:
          InputError: it can't be read.
        """
        try:
            return self._files.cat_file(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # every file system has errors of its own
            raise InputError(f"{self.path(name)}: can't be read ({_reason(error)})") from error

    def names(self, pattern: str) -> list[str]:
        """The names whose last part matches, sorted.

        Raises:
          InputError: the folder can't be read.
        """
        parent, _, wanted = pattern.rpartition("/")
        place = self.path(parent) if parent else self._root
        self._files.invalidate_cache(place)
        try:  # no glob: the folder's own name may hold its special characters
            found = self._files.ls(place, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            raise InputError(f"{self.url}: can't be read ({_reason(error)})") from error
        names = [str(path).rstrip("/").rpartition("/")[2] for path in found]
        matching = sorted(fnmatch.filter(names, wanted))
        return [f"{parent}/{name}" if parent else name for name in matching]


def _nearest(path: str) -> str:
    """The path, or what there is of it."""
    while not os.path.lexists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


@contextlib.contextmanager
def _beside(path: str, content: bytes) -> Iterator[str]:
    """A whole file of another name in the same folder, which is gone in the end."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), f".uam-{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            lock_file(file)  # until it has its name, so that `Folder.sweep` leaves it alone
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":  # where an open file can't be renamed
                file.close()
            yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _rename_to_new(temporary: str, path: str) -> None:
    """Gives a file a name that none has.

    Raises:
      FileExistsError: one has.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with open(path, "xb") as file:
            file.write(Path(temporary).read_bytes())


def lock_file(file: IO[bytes]) -> bool | None:
    """Locks an open file until it is closed; tells whether it could, or None where nobody can."""
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


def _is_unheld(path: Path) -> bool:
    """Whether a temporary file of `_beside` has lost its process."""
    if len(path.name) != _TEMPORARY_LENGTH:  # others are not locked
        return False
    with path.open("r+b") as file:
        return lock_file(file) is True


def _unwritten(path: str, error: OSError) -> str:
    """Says why a file can't be written, and the way on."""
    folder = os.path.dirname(path) or path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{folder}: the disk is full ({error.strerror}). What is finished is kept: free space and start the same "
            "command again"
        )
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{path} can't be written: a file has the name of a folder above it; remove it, or choose another --out"
    return (
        f"{path} can't be written ({error.strerror or _reason(error)}): see to that, or choose another --out; what is "
        "finished is kept"
    )


def _refuse_special(url: str, filesystem: AbstractFileSystem, path: str) -> None:
    """Refuses devices and pipes, which have no end, or none in sight."""
    if (
        isinstance(filesystem, LocalFileSystem)
        and os.path.exists(path)
        and not os.path.isfile(path)
    ):
        raise InputError(f"{url}: can't be read (no plain file)")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    first = next(iter(str(error).splitlines()), "")
    return first or type(error).__name__
