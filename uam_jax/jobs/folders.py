"""The search for pictures in a folder and its subfolders, local or remote, with the reasons for what is left out."""

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from uam_jax.errors import InputError
from uam_jax.files import local_path
from uam_jax.io.formats import lacks_heif, readable_suffixes
from uam_jax.io.storage import locate

_PARTS = ("images", "masks", "originals", "errors", "shown", "gallery")
"""Subfolders of a job's folder that hold pictures."""

_SYSTEM = {
    "$recycle.bin", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx",
    "lost+found", "recycler", "system volume information", "thumbs.db",
}  # fmt: skip
_KINDS_SHOWN = 5

Found = Iterator[tuple[str, str]]
"""Names (a folder's ends with "/"), each with the reason why it is left out, which is empty for a plain file."""


def find_pictures(url: str, besides: str = "") -> tuple[list[str], str]:
    """Finds the pictures in a folder and its subfolders.

    A linked folder counts once. Hidden files do not count, nor do those that systems make for themselves.

    Args:
      url: the folder.
      besides: the folder of the results; nothing that lies in it counts, by whatever name it is reached.

    Returns:
      The sorted names, with "/" between their parts; and a sentence about files that were left out although the
      user may have meant them, which is empty if there are none.

    Raises:
      InputError: the folder can't be read, or it lies among the results.
    """
    filesystem, root = locate(url)
    own = _result_folders(url, filesystem, root, besides)
    is_local = isinstance(filesystem, LocalFileSystem)
    found = _local(root, own) if is_local else _remote(url, filesystem, root, own)
    suffixes, names = readable_suffixes(), []
    left: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for name, reason in found:
        suffix = posixpath.splitext(name)[1].lower()
        if lacks_heif(name):
            left["HEIC (install the extra `heif`)"] += not reason
        elif reason and (suffix in suffixes or name.endswith("/")):
            left[reason] += 1
        elif suffix in suffixes:
            names.append(name)
        elif not reason:
            others[suffix or "without a suffix"] += 1
    reasons = [f"{count} {reason}" for reason, count in left.items() if count]
    if not reasons:
        return sorted(names), ""
    if others:
        shown = [name for name, _ in others.most_common(_KINDS_SHOWN)]
        more = [f"{len(others) - len(shown)} more"] if len(others) > len(shown) else []
        reasons.append(f"{others.total()} other files ({', '.join([*shown, *more])})")
    return sorted(names), f"{url}: left out are {', '.join(reasons)}"


def refuse_results(files: Iterable[str], out: str) -> None:
    """Refuses pictures and masks that lie in the folders of a job's results, where a result might replace them.

    Raises:
      InputError: naming the first.
    """
    filesystem, place = locate(out)
    place_of = _real if isinstance(filesystem, LocalFileSystem) else posixpath.normpath
    parts = [f"{place_of(place)}/{name}" for name in _PARTS]
    is_local = local_path(out) is not None
    for file in files:
        if (local_path(file) is not None) != is_local:
            continue
        try:
            other, path = locate(file)
        except InputError:  # reported when the file is read
            continue
        if other == filesystem and _lies_in(place_of(path), parts):
            raise InputError(
                f"--out {out}: {file} lies where results go, and one might replace it: choose another folder"
            )


def _local(root: str, own: Sequence[str]) -> Found:
    """All files, those in linked folders last, so that a link never gives another name to files that have one."""
    seen: set[str] = set()
    links = [("", root)]
    while links:
        waiting = [links.pop(0)]
        while waiting:
            below, path = waiting.pop()
            real = _real(path)
            if real in seen or _lies_in(real, own):
                continue
            seen.add(real)
            try:
                entries = list(os.scandir(path))
            except OSError as error:
                if not below:
                    raise InputError(f"{path}: can't be read ({error.strerror})") from None
                yield below, "folders that may not be read"
                continue
            for entry in entries:
                name = below + entry.name
                if entry.is_symlink() and _lies_in(_real(entry.path), own):
                    continue
                if os.path.isdir(entry.path):
                    if _is_hidden(entry.name):
                        yield f"{name}/", "hidden folders"
                    else:
                        (links if entry.is_symlink() else waiting).append((f"{name}/", entry.path))
                elif _is_hidden(entry.name):
                    yield name, "hidden files"
                else:
                    yield (
                        name,
                        "" if os.path.isfile(entry.path) else "broken links, pipes or devices",
                    )
        links.sort()


def _remote(url: str, filesystem: AbstractFileSystem, root: str, own: Sequence[str]) -> Found:
    root = root.rstrip("/")
    try:
        paths = [str(path) for path in filesystem.find(root)]
    except Exception as error:  # every file system has errors of its own
        raise InputError(f"{url}: can't be read ({type(error).__name__}: {error})") from None
    hidden: set[str] = set()
    for path in paths:
        if _lies_in(posixpath.normpath(path), own):
            continue
        name = path.removeprefix(root).lstrip("/")
        *folders, file = name.split("/")
        first = next((depth for depth, part in enumerate(folders, 1) if _is_hidden(part)), 0)
        if first:
            hidden.add("/".join(folders[:first]) + "/")
        else:
            yield name, "hidden files" if _is_hidden(file) else ""
    for name in sorted(hidden):
        yield name, "hidden folders"


def _result_folders(
    url: str, filesystem: AbstractFileSystem, root: str, besides: str
) -> Sequence[str]:
    """The real paths of the folders with results; empty if they are in another file system."""
    if not besides:
        return ()
    other, place = locate(besides)
    if other != filesystem:
        return ()
    place_of = _real if isinstance(filesystem, LocalFileSystem) else posixpath.normpath
    root, place = place_of(root), place_of(place)
    if not _lies_in(root, [place]):
        return (place,)
    parts = [f"{place}/{name}" for name in _PARTS]
    if root == place or _lies_in(root, parts):
        raise InputError(
            f"--out {besides}: results would lie in {url}, among the pictures, and be edited the next time: "
            "choose another folder"
        )
    return parts


def _real(path: str) -> str:
    return os.path.realpath(path).replace(os.sep, "/")


def _lies_in(path: str, folders: Sequence[str]) -> bool:
    """Whether a real path is one of the folders or lies below one."""
    return any(f"{path}/".startswith(folder.rstrip("/") + "/") for folder in folders)


def _is_hidden(name: str) -> bool:
    """Whether a name is hidden, or one that systems make for themselves."""
    return name.startswith(".") or name.casefold() in _SYSTEM
