"""Sizes of a job's pictures: read from their files once, and agreed on by all processes of the job."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from uam_jax.errors import InputError
from uam_jax.files import is_url
from uam_jax.io.images import picture_size, working_size
from uam_jax.io.storage import Folder, open_binary, read_bytes
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.record import read_record

READERS = 16
"""Threads that read picture files."""

SIZES = "sizes.json"
_ALL_SIZES = "sizes*.json"

Size = tuple[int, int]
"""(height, width) in pixels."""


class KnownSizes:
    """The sizes of pictures that a job's folder keeps, so that its groups never change.

    They lie in numbered files, each of which is written once and by one process.
    """

    def __init__(self, folder: Folder):
        """Names the folder, which need not exist."""
        self._folder = folder
        self._files_before: set[str] = set()
        self._looked_at: set[str] = set()

    def measure(
        self,
        items: Sequence[Item],
        *,
        again: bool = False,
        seen: Callable[[], None] = lambda: None,
    ) -> list[Size | InputError]:
        """Every picture's size: the one that an earlier run or another process has found, else its file's.

        So groups stay the same, also where a picture could not be read at first and can be read now.

        Args:
          items: of the manifest.
          again: read the files that could not be read before once more.
          seen: called after each file.
        """
        self._files_before = set(self._folder.names(_ALL_SIZES))
        known = self._read(self._files_before)
        kept = {name: size for name, size in known.items() if size or not again}
        new = [item for item in items if item.id not in kept]
        self._looked_at |= {item.id for item in new}
        kept |= dict(zip((item.id for item in new), measure(new, seen), strict=True))
        return [_from_kept(item, kept[item.id]) for item in items]

    def agree(
        self, items: Sequence[Item], sizes: Sequence[Size | InputError]
    ) -> list[Size | InputError]:
        """Keeps the sizes that this process has found; where another process was first, its sizes hold."""
        found = {item.id: _to_keep(size) for item, size in zip(items, sizes, strict=True)}
        while True:
            names = set(self._folder.names(_ALL_SIZES))
            known, since = self._read(names), self._read(names - self._files_before)
            new = {
                name: size
                for name, size in found.items()
                if name not in known or (name in self._looked_at and name not in since)
            }
            next_file = f"sizes.{len(names)}.json" if names else SIZES
            if not new or self._folder.create(next_file, json.dumps(new).encode()):
                break
        agreed = known | new
        return [
            size if _to_keep(size) == agreed[item.id] else _from_kept(item, agreed[item.id])
            for item, size in zip(items, sizes, strict=True)
        ]

    def _read(self, names: Iterable[str]) -> dict[str, list[int] | None]:
        """Sizes by their items' ids; None for pictures that could not be read."""
        known: dict[str, list[int] | None] = {}
        for name in names:
            for item, size in read_record(self._folder, name).items():
                known[item] = known.get(item) or size
        return known


def _to_keep(size: Size | InputError) -> list[int] | None:
    return None if isinstance(size, InputError) else list(size)


def _from_kept(item: Item, kept: Any) -> Size | InputError:
    if isinstance(kept, InputError):
        return kept
    if not kept:
        return InputError(f"{item.image}: could not be read when the job began")
    return kept[0], kept[1]


def measure(
    items: Sequence[Item], seen: Callable[[], None] = lambda: None
) -> list[Size | InputError]:
    """Every picture's size, read from the head of its file, or the reason why it could not be read in three tries.

    Args:
      items: in any order.
      seen: called after each.
    """

    def size(item: Item) -> Size | InputError:
        found = head(item, open_binary)
        # Some servers send a file from its beginning to its end only.
        for opened in (open_binary, lambda url: io.BytesIO(read_bytes(url))):
            if is_url(item.image) and isinstance(found, InputError):
                found = head(item, opened)
        seen()
        return found

    def head(item: Item, opened: Callable[[str], Any]) -> Size | InputError:
        try:
            with opened(item.image) as file:
                return picture_size(item.image, file)
        except FileNotFoundError:
            return InputError(f"{item.image}: no such file; check the path")
        except InputError as error:
            return error
        except Exception as error:  # a file system's own
            return InputError(f"{item.image}: can't be read ({type(error).__name__}: {error})")

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(size, items))


def working_sizes(
    items: Sequence[Item], sizes: Sequence[Size | InputError], *, side: int, multiple: int
) -> list[Size | InputError]:
    """The size at which each picture is worked on, or why there is none; the arguments are those of `group`."""

    def at(item: Item, size: Size | InputError) -> Size | InputError:
        try:
            if isinstance(size, InputError):
                return size
            return working_size(size, side, multiple, item.image)
        except InputError as error:
            return error

    return [at(item, size) for item, size in zip(items, sizes, strict=True)]
