"""A job's ledger: a line of JSON for every result, added when the result's files are written.

A process writes one file, `results.jsonl` or, for shard I of N, `results.I-of-N.jsonl`, and reads them all; `merge`
makes one `results.jsonl` and a Parquet table. Where files can't be added to (object stores), a process writes its
lines in numbered pieces instead.
"""

import contextlib
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from uam_jax.checkpoints.model_hash import differences
from uam_jax.errors import InputError, JobFailed
from uam_jax.files import public
from uam_jax.io.storage import Folder
from uam_jax.jobs.table import to_parquet

Row = dict[str, Any]

_STEM = "results"
LEDGER = f"{_STEM}.jsonl"
TABLE = "results.parquet"
_PLACES = ("image", "given_mask", "reason")
"""Keys of a row whose values may have URLs in them."""
_PIECE = 500
"""Lines of a piece, at most."""


class Ledger:
    """The rows of this process, on disk; a context, in which no other process has the same ledger.

    Attributes:
      is_sole: it is the whole job's, not a shard's.
    """

    def __init__(self, folder: Folder, shard: tuple[int, int] = (0, 1)):
        """Names the ledger.

        Args:
          folder: the job's.
          shard: (index, count) of this process.
        """
        self.is_sole = shard == (0, 1)
        self._folder = folder
        self._stem = _STEM if self.is_sole else f"{_STEM}.{shard[0]}-of-{shard[1]}"
        self._piece: list[Row] = []
        self._number = len(folder.names(f"{self._stem}.piece-*.jsonl"))
        # Where there are no locks, another process of the same shard must have other pieces.
        self._own = uuid.uuid4().hex[:8]
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Takes the ledger; a line that a killed process left unfinished is removed.

        Raises:
          InputError: another process has it.
        """
        if not self._held.enter_context(self._folder.locked(self._stem)):
            self._held.close()
            part = "" if self.is_sole else " with the same --shard"
            raise InputError(
                f"{self._folder.url}: another process{part} is at work on this job: wait for its end, choose another "
                "--out, or share the work out with --shard I/N"
            )
        if self._folder.is_local:
            _mend(self._folder, f"{self._stem}.jsonl")
        return self

    def __exit__(self, *_: object) -> None:
        """Lets others have it."""
        self._held.close()

    def add(self, rows: Sequence[Row]) -> None:
        """Writes rows; when this returns they are there, whatever happens to the process.

        Raises:
          InputError: they can't be written; then none of them is there.
        """
        if self._folder.is_local:
            self._folder.append(f"{self._stem}.jsonl", to_lines(rows))
            return
        self._piece += rows
        name = f"{self._stem}.piece-{self._number:06d}-{self._own}.jsonl"
        self._folder.write(name, to_lines(self._piece))
        if len(self._piece) >= _PIECE:
            self._piece, self._number = [], self._number + 1


def read_rows(folder: Folder) -> dict[str, Row]:
    """All processes' rows by their id: of several of an id, the last "ok" one, else the last."""
    found: dict[str, Row] = {}
    # The merged one first, since what the others have is newer.
    for name in sorted(folder.names("results*.jsonl"), key=lambda name: name != LEDGER):
        for row in from_lines(folder.read(name) or b"", name):
            if row["status"] == "ok" or found.get(row["id"], row)["status"] != "ok":
                found[row["id"]] = row
    return found


def read_record(folder: Folder, name: str) -> dict[str, Any]:
    """A JSON object that a job keeps beside its ledger; an empty one where there is none.

    Raises:
      InputError: it is damaged.
    """
    try:
        found = json.loads(folder.read(name) or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"{folder.path(name)} is damaged: choose another --out, or remove the file, and it is made anew"
        )
    return found


def refuse_other(folder: Folder, name: str, now: Mapping[str, Any], remedy: str = "") -> None:
    """Compares settings with those that the folder's job was begun with, key by key.

    Args:
      folder: the job's.
      name: of the file that holds them.
      now: this run's.
      remedy: what else can be done than to choose another folder.

    Raises:
      InputError: something differs; all of it is told.
    """
    before = read_record(folder, name)
    new = json.loads(json.dumps(now))
    changed = [
        f"{key} was {_short(before[key])}, is {_short(new[key])}{_explained(key, before, new)}"
        for key in new
        if key in before and before[key] != new[key]
    ]
    if changed:
        raise InputError(
            f"{folder.url} holds a job with other settings ({'; '.join(changed)}): choose another "
            f"--out{remedy}"
        )


def refuse_all_failed(rows: Iterable[Row]) -> None:
    """Tells of a job without a single result.

    Raises:
      JobFailed: every row failed; it tells how most of them did.
    """
    rows = list(rows)
    if not rows or any(row["status"] == "ok" for row in rows):
        return

    def kind(row: Row) -> str:  # without what is the picture's own
        reason = str(row.get("reason"))
        for key in ("image", "given_mask"):
            reason = reason.replace(str(row.get(key) or "\n"), "")
        return reason

    [(commonest, count)] = Counter(map(kind, rows)).most_common(1)
    example = next(row for row in rows if kind(row) == commonest)
    raise JobFailed(
        f"all {len(rows)} results failed, {count} of them as {example['id']}: {example['reason']}. "
        "Mend that, and start the same command with --retry-failed"
    )


def merge(folder: Folder, expected: Sequence[str]) -> list[Row]:
    """Writes every process's rows as one ledger and one table; running it again changes nothing.

    The processes' own files stay: one may still be running. So does `results.jsonl` as it is, while the process
    whose ledger it is runs.

    Args:
      folder: the job's.
      expected: ids in the order that the rows are to have; others follow.

    Returns:
      The rows.
    """
    order = {name: number for number, name in enumerate(expected)}
    with folder.locked(_STEM) as is_free:
        found = read_rows(folder)
        rows = sorted(found.values(), key=lambda row: order.get(row["id"], len(order)))
        if is_free:
            folder.write(LEDGER, to_lines(rows))
    folder.write(TABLE, to_parquet(rows))
    return rows


def to_lines(rows: Iterable[Row]) -> bytes:
    """A line of JSON per row."""
    lines = (json.dumps(_kept(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return "".join(lines).encode("utf-8", "surrogatepass")


def from_lines(content: bytes, name: str) -> Iterator[Row]:
    """The rows of whole lines; the part after the last line's end was never finished.

    Raises:
      InputError: a whole line is no row.
    """
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["id"], str) or not isinstance(row["status"], str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{name} line {number} is no ledger line: remove it, and its result is made again"
            ) from None
        yield _kept(row)


def _kept(row: Row) -> Row:
    """A row as it is kept and shown: without what is secret in the URLs of its inputs."""
    return row | {name: public(row[name]) for name in _PLACES if isinstance(row.get(name), str)}


def _explained(key: str, before: Row, new: Row) -> str:
    if key != "model_hash":
        return ""
    return f", with other {differences(str(before[key]), str(new[key]))}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else hashlib.sha256(text.encode()).hexdigest()[:8]


def _mend(folder: Folder, name: str) -> None:
    content = folder.read(name)
    if content and not content.endswith(b"\n"):
        folder.write(name, content[: content.rfind(b"\n") + 1])
