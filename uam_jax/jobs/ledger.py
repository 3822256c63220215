"""A job's ledger: a line of JSON for every result, added when the result's files are written.

A process writes one file, `results.jsonl` or, for shard I of N, `results.I-of-N.jsonl`, and reads those of all
processes; `merge` makes one `results.jsonl` and a Parquet table of them. Object stores can't add to a file: there a
process writes its lines in numbered pieces. Other modules reach ledgers through `job_folder.JobFolder`.
"""

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from uam_jax.errors import InputError, JobFailed
from uam_jax.files import public
from uam_jax.io.storage import Folder
from uam_jax.jobs.table import to_parquet

Row = dict[str, Any]

_STEM = "results"
LEDGER = f"{_STEM}.jsonl"
TABLE = "results.parquet"
_PLACES = ("image", "given_mask", "reason")
"""Keys of a row whose values may contain URLs."""
_PIECE = 500
"""Lines of a piece, at most."""


class Ledger:
    """The rows of this process, on disk; a context in which no other process holds the same ledger.

    Attributes:
      folder: the job's.
      is_sole: whether it is the ledger of the whole job, not of a shard.
    """

    def __init__(self, folder: Folder, shard: tuple[int, int] = (0, 1)):
        """Names the ledger.

        Args:
          folder: the job's.
          shard: (index, count) of this process.
        """
        self.folder = folder
        self.is_sole = shard == (0, 1)
        self._stem = _STEM if self.is_sole else f"{_STEM}.{shard[0]}-of-{shard[1]}"
        self._piece: list[Row] = []
        self._number = len(folder.names(f"{self._stem}.piece-*.jsonl"))
        # Where there are no locks, another process of the same shard must have other pieces.
        self._own = uuid.uuid4().hex[:8]
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Takes the ledger, and removes a line that a killed process left unfinished.

        Raises:
          InputError: another process holds it.
        """
        if not self._held.enter_context(self.folder.locked(self._stem)):
            self._held.close()
            part = "" if self.is_sole else " with the same --shard"
            raise InputError(
                f"{self.folder.url}: another process{part} is at work on this job: wait for its end, choose another "
                "--out, or share the work out with --shard I/N"
            )
        if self.folder.is_local:
            _mend(self.folder, f"{self._stem}.jsonl")
        return self

    def __exit__(self, *_: object) -> None:
        """Releases the ledger."""
        self._held.close()

    def add(self, rows: Sequence[Row]) -> None:
        """Writes rows; once this returns, they are on disk whatever happens to the process.

        Raises:
          InputError: they can't be written; then none of them is on disk.
        """
        if self.folder.is_local:
            self.folder.append(f"{self._stem}.jsonl", to_lines(rows))
            return
        self._piece += rows
        name = f"{self._stem}.piece-{self._number:06d}-{self._own}.jsonl"
        self.folder.write(name, to_lines(self._piece))
        if len(self._piece) >= _PIECE:
            self._piece, self._number = [], self._number + 1


def read_rows(folder: Folder) -> dict[str, Row]:
    """The rows of all processes by their ids; of several rows of an id the last "ok" one, else the last one."""
    found: dict[str, Row] = {}
    # The merged ledger comes first, since the others' rows are newer.
    for name in sorted(folder.names("results*.jsonl"), key=lambda name: name != LEDGER):
        for row in from_lines(folder.read(name) or b"", name):
            if row["status"] == "ok" or found.get(row["id"], row)["status"] != "ok":
                found[row["id"]] = row
    return found


def refuse_all_failed(rows: Iterable[Row]) -> None:
    """Refuses a job without a single result.

    Raises:
      JobFailed: every row failed; the message gives the commonest reason.
    """
    rows = list(rows)
    if not rows or any(row["status"] == "ok" for row in rows):
        return

    def kind(row: Row) -> str:  # the reason without the names of this picture's files
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
    """Writes the rows of all processes as one ledger and one table; doing so again changes nothing.

    The processes' own files stay, since one may still be running. `results.jsonl` itself stays as it is while the
    process that adds to it runs.

    Args:
      folder: the job's.
      expected: ids in the order of the rows; rows with other ids follow.

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
    """Formats rows as lines of JSON."""
    lines = (json.dumps(_kept(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return "".join(lines).encode("utf-8", "surrogatepass")


def from_lines(content: bytes, name: str) -> Iterator[Row]:
    """Parses the lines that are whole; what follows the last end of a line was never finished.

    Raises:
      InputError: a whole line is not a row.
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
    """The row as it is kept and shown, without the secrets in the URLs of its inputs."""
    return row | {name: public(row[name]) for name in _PLACES if isinstance(row.get(name), str)}


def _mend(folder: Folder, name: str) -> None:
    content = folder.read(name)
    if content and not content.endswith(b"\n"):
        folder.write(name, content[: content.rfind(b"\n") + 1])
