"""Folders and files, local or remote (fsspec), with writes that are there whole or not at all."""

import contextlib
import fnmatch
import os
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from uam_jax.errors import InputError


def read_bytes(url: str) -> bytes:
    """The content of a local or remote file.

    Raises:
      InputError: it can't be read.
    """
    _refuse_special(url)
    try:
        filesystem, path = url_to_fs(url)
        return filesystem.cat_file(path)
    # Every file system has errors of its own, down to botocore's and aiohttp's.
    except Exception as error:
        raise InputError(f"{url}: can't be read ({_reason(error)})") from None


def open_binary(url: str) -> Any:
    """A file to read from; remote ones are fetched piece by piece.

    Raises:
      InputError: it is local and no plain file.
    """
    _refuse_special(url)
    return fsspec.open(url, "rb")


def is_remote(url: str) -> bool:
    """Whether a name is a URL rather than a path."""
    return "://" in url


def join(folder: str, name: str) -> str:
    """`name` as seen from `folder`; an absolute path or a URL stays as it is."""
    if is_remote(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if folder else name


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
        try:
            self._files, root = url_to_fs(url)
        except Exception as error:
            raise InputError(f"{url}: no such file system ({_reason(error)})") from None
        self._root = root.rstrip("/")
        self.is_local = isinstance(self._files, LocalFileSystem)

    def path(self, name: str) -> str:
        """The file system's own path of a name."""
        return f"{self._root}/{name}"

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, which appears whole; an older one of that name is replaced.

        Object stores do that by themselves; on a local disk a file of another name is renamed. Other remote file
        systems (sftp, smb) may leave half a file where the process is killed.
        """
        path = self.path(name)
        if not self.is_local:
            self._files.pipe_file(path, content)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = os.path.join(os.path.dirname(path), f".uam-{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    def sweep(self, min_age: float = 0.0) -> None:
        """Removes what killed processes had begun to write, at least `min_age` seconds ago.

        With no `min_age`, no other process may be writing.
        """
        if not self.is_local:
            return
        for path in Path(self._root).rglob(".uam-*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= min_age:
                    path.unlink()

    def append(self, name: str, content: bytes) -> None:
        """Adds to the end of a local file, and waits until it is on the disk."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none."""
        try:
            return self._files.cat_file(self.path(name))
        except FileNotFoundError:
            return None

    def names(self, pattern: str) -> list[str]:
        """The names whose last part matches, sorted."""
        parent, _, wanted = pattern.rpartition("/")
        place = self.path(parent) if parent else self._root
        self._files.invalidate_cache(place)
        try:  # no glob: the folder's own name may hold its special characters
            found = self._files.ls(place, detail=False)
        except FileNotFoundError:
            return []
        names = [str(path).rstrip("/").rpartition("/")[2] for path in found]
        matching = sorted(fnmatch.filter(names, wanted))
        return [f"{parent}/{name}" if parent else name for name in matching]


def _refuse_special(url: str) -> None:
    """Devices and pipes have no end, or none in sight."""
    if not is_remote(url) and os.path.exists(url) and not os.path.isfile(url):
        raise InputError(f"{url}: can't be read (no plain file)")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    first = next(iter(str(error).splitlines()), "")
    return first or type(error).__name__
