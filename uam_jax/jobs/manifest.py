"""Items of a data-set job: the checked lines of a manifest, or the pictures of a folder."""

import io
import json
import ntpath
import os
import posixpath
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from uam_jax.errors import InputError, quoted, shortened
from uam_jax.files import base_name, decode_text, is_url, join, local_path, parent, public
from uam_jax.io.formats import readable_suffixes
from uam_jax.io.storage import read_bytes
from uam_jax.jobs.folders import find_pictures, refuse_results
from uam_jax.jobs.names import fault, folded, own_id, result_file
from uam_jax.method.edits import Edit, Words

_KEYS = {"image", "target", "source", "negative", "words", "id", "mask", "set"}
_SHOWN = 5
"""Faults of a manifest that one message names."""


@dataclass(frozen=True)
class Item:
    """A picture and its edits.

    Attributes:
      id: names the results; relative, with "/" between its parts.
      image: a path or URL.
      targets: prompts, at least one, each for a result.
      source: a prompt that describes the picture.
      mask: the user's mask, a path or URL.
      settings: "key=value", as for `--set`, with the value in TOML, sorted.
      negative: a prompt in place of the null prompt in the target's unguided half.
      words: of the prompts, for controls that act on single words.
    """

    id: str
    image: str
    targets: tuple[str, ...]
    source: str | None = None
    mask: str | None = None
    settings: tuple[str, ...] = ()
    negative: str | None = None
    words: Words = field(default_factory=Words)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edit of each target; the source is given for the whole picture."""
        negative = self.negative or ""
        return tuple(Edit(text, words=self.words, negative=negative) for text in self.targets)

    @property
    def results(self) -> tuple[str, ...]:
        """The ids of its results: its own, numbered if there are several targets."""
        if len(self.targets) == 1:
            return (self.id,)
        return tuple(f"{self.id}-{number + 1}" for number in range(len(self.targets)))


def read_manifest(url: str, *, besides: str = "") -> list[Item]:
    """The items of a JSONL or Parquet manifest, in order.

    A line has `image`, `target` (one or a list), and if wanted `source`, `negative`, `words` (a list of words to
    blend, or a table, see `Words`), `id`, `mask` and `set` (a table of settings). Pictures and masks are found from the
    manifest's folder.

    Args:
      url: the manifest.
      besides: the folder of the results; no picture or mask may lie where they go.

    Raises:
      InputError: it can't be read, or lines are at fault; the message names the first few.
    """
    content = read_bytes(url)
    is_table = content.startswith(b"PAR1") or base_name(url).lower().endswith(".parquet")
    rows = _parquet(url, content) if is_table else _jsonl(url, content)
    folder = parent(url)
    items, faults = [], []
    for place, row in rows:
        try:
            items.append(_item(row, folder))
        except InputError as error:
            faults.append(f"{place}: {error}")
    _raise(faults)
    if not items:
        raise InputError(f"{url} has no lines: give one JSON object per picture")
    if besides:
        refuse_results(
            (file for item in items for file in (item.image, item.mask) if file), besides
        )
    return checked(items, url)


def read_folder(
    url: str,
    targets: Sequence[str],
    *,
    source: str | None = None,
    negative: str | None = None,
    words: Words | None = None,
    besides: str = "",
) -> list[Item]:
    """The pictures of a folder and its subfolders, each with the same prompts, in the order of their names.

    Args:
      url: the folder.
      targets: of every picture.
      source: of every picture.
      negative: prompt of every picture.
      words: of every picture's prompts.
      besides: the folder of the results, which does not count if it lies inside.

    Raises:
      InputError: there are none.
    """
    names, left_out = find_pictures(url, besides)
    if left_out:
        warnings.warn(left_out, stacklevel=2)
    if not names:
        raise InputError(f"{url} holds no pictures{f' ({left_out})' if left_out else ''}")
    items = [
        Item(
            own_id(name),
            join(url, name),
            tuple(targets),
            source,
            negative=negative,
            words=words or Words(),
        )
        for name in names
    ]
    return checked(items, url)


def checked(items: list[Item], origin: str) -> list[Item]:
    """Returns the items if every result has a safe name of its own.

    Raises:
      InputError: a name is unsafe or given twice, or a result's file would be another's file or folder.
    """
    faults, owners = [], {}
    for item in items:
        if reason := fault(item.id):
            faults.append(f"{origin}: id {quoted(item.id)} {reason}")
            continue
        for result in {item.id: None, **dict.fromkeys(item.results)}:
            if result in owners:
                faults.append(
                    f"{origin}: {owners[result].image} and {item.image} would both be {result!r}: "
                    "give each an `id` of its own"
                )
            owners.setdefault(result, item)
    places = {folded(name): item for name, item in owners.items()}
    for name, item in owners.items():
        stem, suffix = posixpath.splitext(folded(name))
        keeps = suffix and result_file(folded(name), suffix, own=True) == folded(name)
        if keeps and (other := places.get(stem)):
            own = posixpath.splitext(folded(base_name(other.image)))[1]
            # PNGs get different names anyway; a picture whose name has no known suffix may be of any format.
            if suffix != ".png" and (suffix == own or own not in readable_suffixes()):
                faults.append(f"{origin}: ids {other.id!r} and {name!r} would both be {name!r}")
        parents = folded(name).split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            above = "/".join(parents[:depth])
            stem, suffix = posixpath.splitext(above)
            if suffix and (stem in places or above in places):
                faults.append(
                    f"{origin}: id {item.id!r} lies below the result of {(places.get(stem) or places[above]).id!r}"
                )
    _raise(faults)
    return items


def _item(row: Any, folder: str) -> Item:
    if not isinstance(row, Mapping):
        raise InputError("not a JSON object")
    if unknown := sorted(map(str, row.keys() - _KEYS)):
        raise InputError(f"unknown key {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}")
    row = {key: value for key, value in row.items() if value is not None}
    for key in ("image", "source", "negative", "id", "mask"):
        if key in row and not isinstance(row[key], str):
            raise InputError(f"{key} is {quoted(row[key])}: text is needed")
    if not row.get("image"):
        raise InputError("no `image`: give the picture's path or URL")
    target = row.get("target")
    listed = [target] if isinstance(target, str) else target
    targets = tuple(listed) if isinstance(listed, list) else ()
    if not targets or not all(isinstance(text, str) and text.strip() for text in targets):
        raise InputError("no `target`: say what the result shows, in a text or a list of texts")
    words = Words.of(row.get("words", []))
    own = (*words.blend, *words.subtract, *words.weights, *words.windows)
    for text in (*targets, row.get("source", ""), row.get("negative", ""), *own):
        if any(unicodedata.category(char) == "Cs" for char in text):
            raise InputError(
                f"the prompt {quoted(text)} is no valid Unicode text: half a character is in it"
            )
    settings = row.get("set", {})
    if not isinstance(settings, Mapping):
        raise InputError(f'set is {quoted(settings)}: give an object, as {{"guidance": 5}}')
    chosen = list(_settings(settings))
    if twice := [key for key, count in Counter(key for key, _ in chosen).items() if count > 1]:
        raise InputError(f"{', '.join(twice)} is set twice")
    image = _found(row["image"], folder)
    return Item(
        id=row["id"] if "id" in row else _default_id(image, folder),
        image=join(folder, image),
        targets=targets,
        source=row.get("source"),
        mask=join(folder, _found(row["mask"], folder)) if "mask" in row else None,
        # A kind comes before the settings that belong to it.
        settings=tuple(
            f"{key}={value}"
            for key, value in sorted(chosen, key=lambda pair: (not pair[0].endswith(".kind"), pair))
        ),
        negative=row.get("negative"),
        words=words,
    )


def _found(name: str, folder: str) -> str:
    """The name of a file on this system; a path of Windows gets "/" between its parts.

    Raises:
      InputError: it is a path on a drive of Windows.
    """
    foreign = os.sep == "/" and not is_url(name) and re.search(r"\\|^[A-Za-z]:/", name)
    if not foreign or _exists(name, folder):
        return name
    if drive := ntpath.splitdrive(name)[0]:
        raise InputError(
            f"{quoted(name)} is a path of Windows: this system has no drive {drive}; give paths from the "
            "manifest's folder"
        )
    turned = name.replace("\\", "/")
    return turned if is_url(folder) or _exists(turned, folder) else name


def _exists(name: str, folder: str) -> bool:
    return not is_url(folder) and os.path.exists(join(folder, name))


def _default_id(image: str, folder: str) -> str:
    """The id made of a picture's path below the manifest; elsewhere, of its file's name and its place."""
    path = local_path(image)
    if path is None or (is_url(folder) and os.path.isabs(path)):
        return own_id(base_name(image), public(image))
    if os.path.isabs(path):
        with suppress(ValueError):  # on another drive
            path = os.path.relpath(path, folder or ".")  # all may be moved together
    path = posixpath.normpath(path.replace(os.sep, "/"))
    outside = path.startswith("../") or os.path.isabs(path)
    return own_id(posixpath.basename(path), path) if outside else own_id(path)


def _settings(table: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of a nested table and their values in TOML, in which each keeps its type.

    Raises:
      InputError: a key is no name, or a value is none that JSON has.
    """
    for key, value in table.items():
        if not isinstance(key, str) or not all(part.isidentifier() for part in key.split(".")):
            raise InputError(f"set has the key {quoted(key)}: give names, as mask.quantile")
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
            continue
        try:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError):
            raise InputError(
                f"set has {prefix}{key} = {quoted(value)}: text or a number is needed"
            ) from None


def _jsonl(url: str, content: bytes) -> Iterable[tuple[str, Any]]:
    text = decode_text(content, url)
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            yield f"{url} line {number}", json.loads(line, object_pairs_hook=_once)
        except InputError as error:
            raise InputError(f"{url} line {number}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{url} line {number}: not JSON ({error}); give a JSON object a line, as in "
                '{"image": "a.jpg", "target": "a red shoe"}, a Parquet table, or a folder of pictures'
            ) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that comes twice, of which Python would keep the last value, is refused."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise InputError(f"{quoted(twice)} is given twice; several targets are a list")
    return found


def _parquet(url: str, content: bytes) -> Iterable[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise InputError(f"{url}: not a Parquet file ({first})") from None
    if len({*table.column_names}) < table.num_columns:
        raise InputError(f"{url}: two columns have the same name: give each its own")
    for name in {"image", "mask"} & {*table.column_names}:
        kind = table.schema.field(name).type
        if pyarrow.types.is_nested(kind) or "binary" in str(kind):
            raise InputError(
                f"{url}: the column {name!r} holds pictures ({shortened(str(kind), 80)}), which are not read "
                "from a table: write them to files, and give their paths"
            )
    listed = (table.schema.pandas_metadata or {}).get("index_columns", [])
    index = {name for name in listed if isinstance(name, str)} - _KEYS
    index |= {name for name in table.column_names if re.fullmatch(r"__index_level_\d+__", name)}
    rows = table.drop_columns(sorted(index & {*table.column_names})).to_pylist()
    for number, row in enumerate(rows, start=1):
        own = row.get("set")
        if isinstance(own, list) and all(isinstance(pair, tuple) for pair in own):  # a map
            own = dict(own)
        if isinstance(own, dict):
            row["set"] = _given(own)
        yield f"{url} row {number}", row


def _given(table: Mapping[str, Any]) -> dict[str, Any]:
    """A nested table without its nulls, since Parquet has every key in every row."""
    return {
        key: _given(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def _raise(faults: list[str]) -> None:
    if faults:
        more = len(faults) - _SHOWN
        shown = [*faults[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise InputError("; ".join(shown))
