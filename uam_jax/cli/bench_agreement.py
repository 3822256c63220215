"""The kept edits of `uam bench`'s records side by side: how far each column's are those of the first."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from uam_jax.errors import InputError
from uam_jax.evaluation.kept_edits import Agreement, KeptEdits


class Agreements(NamedTuple):
    """Agreements of the edits of each work by column, where they are known.

    Attributes:
      psnr: in dB, at most 100, which the reference has with itself.
      overlap: of the masks, in [0, 1].
      notes: why a column lacks a figure, or what must be known of it.
    """

    psnr: dict[str, dict[str, float]]
    overlap: dict[str, dict[str, float]]
    notes: list[str]


def compare_edits(shared: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Agreements:
    """Compares the edits of every work of the task `edit` with those of the first column that has them.

    Args:
      shared: for each work its row in each column; a row's `folder` is that of its record.
      names: of all columns, in order.
    """
    found = Agreements({}, {}, [])
    for work, rows in shared.items():
        if any(row["task"] != "edit" for row in rows.values()):
            continue
        psnr, overlap = found.psnr.setdefault(work, {}), found.overlap.setdefault(work, {})
        first: tuple[KeptEdits, str] | None = None
        for number, name in enumerate(names, start=1):
            if name not in rows:
                continue
            row, notes = rows[name], []
            try:
                edits = _read(row)
                first = first or (edits, row["weights"])
                agreement = edits.agreement(first[0])
            except InputError as error:
                notes = [str(error)]
            else:
                psnr |= _known(name, agreement.psnr)
                overlap |= _known(name, agreement.overlap)
                notes = _notes(agreement, same_weights=row["weights"] == first[1])
            texts = [f"Column {number}: {note}." for note in notes]
            found.notes.extend(text for text in texts if text not in found.notes)
    return found


def _read(row: Mapping[str, Any]) -> KeptEdits:
    if not row["edits"]:
        raise InputError("no edits are kept beside its record, which an older version wrote")
    return KeptEdits.read(row["folder"] / str(row["edits"]).rpartition("/")[2])


def _known(name: str, value: float) -> dict[str, float]:
    return {} if math.isnan(value) else {name: value}


def _notes(agreement: Agreement, *, same_weights: bool) -> list[str]:
    notes = {
        "its weights are not those of the first column": not same_weights,
        "its edits, or the first column's, have numbers that are not finite": math.isnan(
            agreement.psnr
        ),
        "neither its masks nor the first column's take anything from an edit": math.isnan(
            agreement.overlap
        ),
    }
    return [note for note, holds in notes.items() if holds]
