"""The gallery of a batch job: a page that opens from the file system, made from the job's ledger."""

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any
from urllib.parse import quote

from uam_jax.errors import InputError
from uam_jax.jobs.pages import render_page, visible, words

ROWS_PER_FILE = 20_000

_FOLDER = "gallery"
_ASSETS = ("page.css", "data.js", "stage.js", "page.js")
_TEXTS = ("id", "reason", "review", "image", "target", "source", "size", "crop")
_PATHS = ("output", "shown", "preview", "mask", "error", "answer")
_NUMBERS = ("confidence", "mask_share", "seconds")


def render_report(
    rows: Sequence[Mapping[str, Any]], *, title: str, facts: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files of a page that shows every row, to compare, search and sort.

    Failures come first, then the results to be reviewed, then the others, the least confident first.

    The page needs no server. Its data are scripts, the only data that a browser reads from a disk.

    Args:
      rows: one mapping per edit, in the order of the job. Needed: `id`, and `status`, "ok" or
        "failed". Shown where there: the texts `reason` (of a failure), `review` (why to look at a
        result), `image` (the input's name), `target` and `source` (prompts), `size` ("640x480"),
        `crop` (the part that was edited); the pictures `output`, `shown` (a copy of it, where
        browsers don't show it), `preview` (the original), `mask`, `error` (the reconstruction's)
        and `answer` (the exact result), as paths relative to the page with "/"; `confidence` and
        `mask_share` in [0, 1], `seconds`, and `figures`, a mapping of names to numbers. Other keys
        are ignored, and a number that is not finite counts as missing.
      title: the heading.
      facts: names and values that hold for the whole job, shown in this order.

    Returns:
      Names relative to the page, which is `index.html`, and their contents.

    Raises:
      InputError: a row has no `id`, or no known `status`.
    """
    for number, row in enumerate(rows, 1):
        if row.get("id") in (None, ""):
            raise InputError(f"row {number} of the report has no id")
        if row.get("status") not in ("ok", "failed"):
            raise InputError(
                f"row {number} of the report ({row['id']}): status is {row.get('status')!r}, "
                'must be "ok" or "failed"'
            )
    folder = resources.files("uam_jax.jobs") / _FOLDER
    assets = {f"{_FOLDER}/{name}": (folder / name).read_bytes() for name in _ASSETS}
    data = {f"{_FOLDER}/rows-{number}.js": chunk for number, chunk in enumerate(_chunks(rows))}

    def address(name: str) -> str:
        # A page made anew must not meet the data of the old one in a browser's cache.
        return f"{name}?{zlib.crc32((assets | data)[name]):08x}"

    # The data come between the script that receives them and those that show them.
    names = [f"{_FOLDER}/data.js", *data, f"{_FOLDER}/stage.js", f"{_FOLDER}/page.js"]
    template = (folder / "page.html.jinja").read_text(encoding="utf-8")
    page = render_page(
        template,
        {
            "title": visible(title),
            "facts": facts,
            "count": len(rows),
            "style": address(f"{_FOLDER}/page.css"),
            "scripts": [address(name) for name in names],
        },
    )
    return {"index.html": page, **assets, **data}


def _chunks(rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    """Scripts with the rows, column by column, in which names and repeated texts stand once."""
    figures = list(dict.fromkeys(str(name) for row in rows for name in row.get("figures") or {}))
    for start in range(0, len(rows), ROWS_PER_FILE):
        part = rows[start : start + ROWS_PER_FILE]
        columns: dict[str, Any] = {"failed": [int(row["status"] == "failed") for row in part]}
        for name in _TEXTS:
            columns[name] = _shared([_label(row.get(name)) for row in part])
        for name in _PATHS:
            columns[name] = _shared([_address(row.get(name)) for row in part])
        for name in _NUMBERS:
            columns[name] = [_number(row.get(name)) for row in part]
        measured = [{str(k): v for k, v in (row.get("figures") or {}).items()} for row in part]
        chunk = {
            "count": len(part),
            "columns": columns,
            # Pairs, not an object: a figure may have any name, and their order is to stay.
            "figures": [
                [words(name), [_number(of.get(name)) for of in measured]] for name in figures
            ],
        }
        # ASCII: no line separator ends a statement, and no guess at an encoding goes wrong. "<"
        # matters only to those who paste the script into a page.
        script = json.dumps(chunk, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        yield f"addRows({script});\n".encode("ascii")


def _shared(values: list[str | None]) -> Any:
    """The column itself or, if many of its values are equal, its distinct values and their places."""
    places: dict[str | None, int] = {}
    at = [places.setdefault(value, len(places)) for value in values]
    return {"words": list(places), "at": at} if len(places) <= len(values) / 2 else values


def _label(value: Any) -> str | None:
    return None if value is None else visible(str(value))


def _address(path: Any) -> str | None:
    """The URL of a file in the page's folder or below it, without the parts that would lead elsewhere."""
    parts = [part for part in str(path or "").split("/") if part not in ("", ".", "..")]
    name = "/".join(parts)
    try:
        # As Python reads a file's name that is not UTF-8.
        return quote(name.encode("utf-8", "surrogateescape")) or None
    except UnicodeEncodeError:  # half a character: no file is called so
        return quote(name.encode("utf-8", "replace"))


def _number(value: Any) -> int | float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    # More digits than anybody reads would be half of the data.
    number = number if abs(number) >= 1e6 else float(f"{number:.7g}")
    return int(number) if number.is_integer() else number
