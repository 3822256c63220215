"""Local and remote (fsspec) folders and files, which are written whole or not at all."""

import contextlib
import errno
import fnmatch
import os
from collections.abc import Collection, Iterator
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from uam_jax.errors import InputError
from uam_jax.files import at_home, base_name, local_path, parent
from uam_jax.io.local_disk import (
    append_whole,
    check_writable,
    lock_file,
    reason,
    rename_to_new,
    sweep,
    whole_file_beside,
    write_failure,
)

_IN_REMOTE = ("http", "https", "s3", "s3a", "gs", "gcs")
"""Protocols whose packages the extra `remote` installs."""


def locate(url: str) -> tuple[AbstractFileSystem, str]:
    """Finds the file system of a path or URL, and the path inside it; any text that is not a URL is a local path.

    Raises:
      InputError: the text is empty, there is no such file system, or a package for it is not installed.
    """
    if not url:
        raise InputError("a path is empty (perhaps a variable is not set): give a file or folder")
    path = local_path(url)
    if path is not None:
        # fsspec would take `::` for a chain.
        return LocalFileSystem(), os.path.abspath(at_home(path))
    try:
        return url_to_fs(url)
    except ImportError as error:
        known = url.partition("://")[0].rpartition("::")[2].lower() in _IN_REMOTE
        extra = ", or all at once: python -m pip install '.[remote]'" if known else ""
        raise InputError(f"{url}: a package is missing ({reason(error)}{extra})") from None
    except Exception as error:
        raise InputError(f"{url}: no such file system ({reason(error)})") from None


@contextlib.contextmanager
def _reading(url: str) -> Iterator[None]:
    """Turns any error while reading a place into an `InputError` that names it."""
    try:
        yield
    # Every file system has errors of its own, including those of botocore and aiohttp.
    except Exception as error:
        raise InputError(f"{url}: can't be read ({reason(error)})") from error


def is_folder(url: str) -> bool:
    """Whether a path or URL names a folder that exists.

    Raises:
      InputError: the place cannot be read.
    """
    filesystem, path = locate(url)
    with _reading(url):
        return filesystem.isdir(path)


def read_bytes(url: str) -> bytes:
    """Reads a local or remote file.

    Raises:
      InputError: the file cannot be read.
    """
    filesystem, path = locate(url)
    _refuse_special(url, filesystem, path)
    with _reading(url):
        return filesystem.cat_file(path)


def open_binary(url: str) -> Any:
    """Opens a local or remote file for reading; remote files are fetched in pieces.

    Raises:
      InputError: the file is a local device, pipe or folder.
    """
    filesystem, path = locate(url)
    _refuse_special(url, filesystem, path)
    return filesystem.open(path, "rb")


def write_bytes(url: str, content: bytes) -> None:
    """Writes a local or remote file, which appears whole.

    Raises:
      InputError: the file cannot be written.
    """
    Folder(parent(url) or ".").write(base_name(url), content)


class Folder:
    """A local or remote folder. Names of files in it are relative, with "/" between their parts."""

    def __init__(self, url: str):
        """Locates the folder, which need not exist.

        Args:
          url: a path, or a URL that fsspec knows.

        Raises:
          InputError: there is no such file system.
        """
        self.url = url
        self._files, root = locate(url)
        self._root = root.rstrip("/")
        self.is_local = isinstance(self._files, LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of a name in the folder's file system."""
        return f"{self._root}/{name}"

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, which appears whole and replaces an older one.

        Object stores write files whole by themselves. On a local disk the file is written under another name and then
        renamed. Other remote file systems (sftp, smb) may keep half of a file if the process is killed.

        Raises:
          InputError: the file cannot be written, for example because the disk is full; an older file stays.
        """
        with self._writing(name) as path:
            if not self.is_local:
                self._files.pipe_file(path, content)
                return
            with whole_file_beside(path, content) as temporary:
                os.replace(temporary, path)

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file unless it exists, so that only one of several processes writes it.

        Object stores decide by themselves which process is first, if they can. Other remote file systems leave a
        moment in which a second process may write as well.

        Returns:
          Whether this call has written the file.

        Raises:
          InputError: the file cannot be written.
        """
        with self._writing(name) as path:
            try:
                if self.is_local:
                    with whole_file_beside(path, content) as temporary:
                        rename_to_new(temporary, path)
                elif self._exists(path):
                    return False
                else:
                    self._files.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            except TypeError:  # an older version of a file system, which lacks this mode
                self._files.pipe_file(path, content)
            except Exception:  # some file systems have an error of their own for it
                if self.is_local or not self._exists(path):
                    raise
                return False
            return True

    def append(self, name: str, content: bytes) -> None:
        """Adds to the end of a local file and waits until the content is on the disk.

        Raises:
          InputError: the content cannot be written; then nothing is added.
        """
        with self._writing(name) as path:
            append_whole(path, content)

    def check(self, names: Collection[str] = ()) -> None:
        """Checks before long work that files can be written; makes no folder and leaves no file.

        Args:
          names: names of files, none of which may be too long or lie below a file.

        Raises:
          InputError: a file cannot be written.
        """
        if self.is_local:
            check_writable(self._root, names)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """Takes the lock of a name, and yields whether it is taken by this call.

        No other process, and no other holder in this process, can take the lock at the same time. The lock ends with
        the process, even if that is killed. Remote file systems, which have no locks, always yield True.
        """
        if not self.is_local:
            yield True
            return
        with self._writing(f".uam-{name}.lock") as path:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = open(path, "ab")  # noqa: SIM115
        with file:  # closing the file releases the lock
            yield lock_file(file) is not False

    def sweep(self) -> None:
        """Removes the unfinished files of processes that were killed."""
        if self.is_local:
            sweep(self._root)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[str]:
        """Yields the path of a name, and turns errors into an `InputError` with the remedy."""
        path = self.path(name)
        try:
            yield path
        except InputError:
            raise
        except OSError as error:
            raise InputError(write_failure(path, error)) from error
        except Exception as error:  # a remote file system has errors of its own
            if self.is_local:
                raise
            raise InputError(f"{self.url}: can't be written ({reason(error)})") from error

    def _exists(self, path: str) -> bool:
        self._files.invalidate_cache(path.rpartition("/")[0])
        return self._files.exists(path)

    def read(self, name: str) -> bytes | None:
        """Reads a file; None if it does not exist.

        Raises:
          InputError: the file cannot be read.
        """
        with _reading(self.path(name)):
            try:
                return self._files.cat_file(self.path(name))
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:  # no file can have this name
                    return None
                raise

    def names(self, pattern: str) -> list[str]:
        """Lists, sorted, the names of files and folders whose last part matches a pattern with `*`, `?` and `[]`.

        Raises:
          InputError: the folder cannot be read.
        """
        parent, _, wanted = pattern.rpartition("/")
        place = self.path(parent) if parent else self._root
        self._files.invalidate_cache(place)
        with _reading(self.url):
            try:  # not `glob`, because the folder's own name may have its special characters
                found = self._files.ls(place, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = [str(path).rstrip("/").rpartition("/")[2] for path in found]
        matching = sorted(fnmatch.filter(names, wanted))
        return [f"{parent}/{name}" if parent else name for name in matching]


def _refuse_special(url: str, filesystem: AbstractFileSystem, path: str) -> None:
    """Refuses devices and pipes, which may have no end."""
    if (
        isinstance(filesystem, LocalFileSystem)
        and os.path.exists(path)
        and not os.path.isfile(path)
    ):
        raise InputError(f"{url}: can't be read (not a plain file)")
