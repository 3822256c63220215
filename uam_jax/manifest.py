"""What a data-set job is to do: a manifest's lines, or a folder's pictures, as checked items."""

import io
import json
import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsspec.core import url_to_fs

from uam_jax.errors import InputError
from uam_jax.storage import is_remote, join, read_bytes

_KEYS = {"image", "target", "source", "id", "mask", "set"}
_PICTURES = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
_SHOWN = 5
"""How many faults of a manifest are told at once."""


@dataclass(frozen=True)
class Item:
    """A picture and what is to become of it.

    Attributes:
      id: names the results; relative, with "/" between its parts.
      image: a path or URL.
      targets: at least one.
      source: what the picture shows.
      mask: a path or URL.
      settings: "key=value", as for `--set`.
    """

    id: str
    image: str
    targets: tuple[str, ...]
    source: str | None = None
    mask: str | None = None
    settings: tuple[str, ...] = ()

    @property
    def results(self) -> tuple[str, ...]:
        """The ids of its results: its own, numbered if there are several targets."""
        if len(self.targets) == 1:
            return (self.id,)
        return tuple(f"{self.id}-{number + 1}" for number in range(len(self.targets)))


def read_manifest(url: str) -> list[Item]:
    """The items of a JSONL or Parquet manifest, in order.

    A line has `image`, `target` (one or a list), and if wanted `source`, `id`, `mask` and `set` (a table
    of settings). Pictures and masks are found from the manifest's folder.

    Raises:
      InputError: it can't be read, or lines are at fault; the first few are told.
    """
    content = read_bytes(url)
    rows = _parquet(url, content) if url.lower().endswith(".parquet") else _jsonl(url, content)
    folder = posixpath.dirname(url)
    items, faults = [], []
    for place, row in rows:
        try:
            items.append(_item(row, folder))
        except InputError as error:
            faults.append(f"{place}: {error}")
    _raise(faults)
    if not items:
        raise InputError(f"{url} has no lines: give one JSON object per picture")
    return checked(items, url)


def read_folder(
    url: str, targets: Sequence[str], *, source: str | None = None, besides: str = ""
) -> list[Item]:
    """The pictures of a folder and its subfolders, each with the same prompts, in the order of their names.

    Args:
      url: the folder.
      targets: of every picture.
      source: of every picture.
      besides: a folder that does not count, should it lie inside: the results'.

    Raises:
      InputError: there are none.
    """
    filesystem, root = url_to_fs(url)
    root = root.rstrip("/")
    _, apart = url_to_fs(besides) if besides else (None, "")
    names = sorted(
        str(path).removeprefix(root).lstrip("/")
        for path in filesystem.find(root)
        if str(path).lower().endswith(_PICTURES)
        and not (apart and str(path).startswith(apart.rstrip("/") + "/"))
    )
    if not names:
        raise InputError(f"{url} holds no pictures ({', '.join(_PICTURES)})")
    stems = [posixpath.splitext(name)[0] for name in names]
    seen = Counter(stems)
    items = [
        Item(
            # Two files that differ in their suffix alone keep it.
            id=name if seen[stem] > 1 else stem,
            image=join(url, name),
            targets=tuple(targets),
            source=source,
        )
        for name, stem in zip(names, stems, strict=True)
    ]
    return checked(items, url)


def checked(items: list[Item], origin: str) -> list[Item]:
    """The same items, if each result has a name that is safe and its own.

    Raises:
      InputError: names are unsafe, or given twice (also where only case tells them apart, since not
        every file system does).
    """
    faults, owners = [], {}
    for item in items:
        if fault := _unsafe(item.id):
            faults.append(f"{origin}: id {item.id!r} {fault}")
            continue
        for result in {item.id: None, **dict.fromkeys(item.results)}:
            name = _folded(result)
            if name in owners:
                faults.append(
                    f"{origin}: {owners[name].image} and {item.image} would both be {result!r}: "
                    "give each an `id` of its own"
                )
            owners.setdefault(name, item)
    for name, item in owners.items():
        parents = name.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            stem, suffix = posixpath.splitext("/".join(parents[:depth]))
            if suffix and stem in owners:  # the other's file would have this one's folder's name
                faults.append(f"{origin}: id {item.id!r} lies below the result of {stem!r}")
    _raise(faults)
    return items


def _folded(name: str) -> str:
    """The same for names that some file system takes for one."""
    return unicodedata.normalize("NFC", name).casefold()


def _item(row: Any, folder: str) -> Item:
    if not isinstance(row, Mapping):
        raise InputError("not a JSON object")
    if unknown := sorted(map(str, row.keys() - _KEYS)):
        raise InputError(f"unknown key {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}")
    row = {key: value for key, value in row.items() if value is not None}
    for key in ("image", "source", "id", "mask"):
        if key in row and not isinstance(row[key], str):
            raise InputError(f"{key} is {row[key]!r}: text is needed")
    if not row.get("image"):
        raise InputError("no `image`: give the picture's path or URL")
    target = row.get("target")
    listed = [target] if isinstance(target, str) else target
    targets = tuple(listed) if isinstance(listed, list) else ()
    if not targets or not all(isinstance(text, str) and text.strip() for text in targets):
        raise InputError("no `target`: say what the result shows, in a text or a list of texts")
    for text in (*targets, row.get("source", "")):
        if any(unicodedata.category(char) == "Cs" for char in text):
            raise InputError(
                f"the prompt {text!r} is no valid Unicode text: half a character is in it"
            )
    settings = row.get("set", {})
    if not isinstance(settings, Mapping):
        raise InputError(f'set is {settings!r}: give an object, as {{"guidance": 5}}')
    own = row.get("id")
    return Item(
        id=_default_id(row["image"]) if own is None else own,
        image=join(folder, row["image"]),
        targets=targets,
        source=row.get("source"),
        mask=join(folder, row["mask"]) if "mask" in row else None,
        settings=tuple(f"{key}={_setting(value)}" for key, value in sorted(settings.items())),
    )


def _default_id(image: str) -> str:
    """A relative path without its suffix; of an absolute one or a URL, the file's name."""
    stem = posixpath.splitext(image.replace(os.sep, "/"))[0]
    outside = is_remote(image) or os.path.isabs(image) or ".." in stem.split("/")
    return posixpath.basename(stem) if outside else posixpath.normpath(stem)


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _unsafe(name: str) -> str:
    """Why a result must not be called so, or nothing."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts):
        return 'must be a relative path without empty parts, "." and ".."'
    if (
        "\\" in name
        or ":" in name
        or any(unicodedata.category(char) in ("Cc", "Cs") for char in name)
    ):
        return "must not contain backslashes, colons, control characters or what is no Unicode"
    if any(
        part.startswith(".uam-") or part != part.strip() or part.endswith(".") for part in parts
    ):
        return 'must not have parts that start with ".uam-" or a space, or end with a dot or space'
    if any(len(part.encode("utf-8", "surrogatepass")) > 200 for part in parts):
        return "has a part of more than 200 bytes"
    if len(name.encode()) > 1000:
        return "has more than 1000 bytes"
    return ""


def _jsonl(url: str, content: bytes) -> Iterable[tuple[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{url}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            yield f"{url} line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{url} line {number}: not JSON ({error})") from None


def _parquet(url: str, content: bytes) -> Iterable[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise InputError(f"{url}: not a Parquet file ({first})") from None
    for number, row in enumerate(table.to_pylist(), start=1):
        # A table has every key in every row's `set`.
        if isinstance(row.get("set"), dict):
            row["set"] = {key: value for key, value in row["set"].items() if value is not None}
        yield f"{url} row {number}", row


def _raise(faults: list[str]) -> None:
    if faults:
        more = len(faults) - _SHOWN
        shown = [*faults[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise InputError("; ".join(shown))
