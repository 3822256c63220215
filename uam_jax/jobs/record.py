"""Records of a job: JSON objects that it keeps beside its results, and their comparison with another run's."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from uam_jax.checkpoints.model_hash import differences
from uam_jax.errors import InputError
from uam_jax.io.storage import Folder

Record = dict[str, Any]


def read_record(folder: Folder, name: str) -> Record:
    """Reads a record; a file that does not exist is an empty one.

    Raises:
      InputError: the file is damaged or cannot be read.
    """
    content = folder.read(name)  # not in the block below: that it cannot be read is another fault
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"{folder.path(name)} is damaged: choose another --out, or remove the file, and it is made anew"
        )
    return found


def to_json(record: Mapping[str, Any]) -> bytes:
    """The content of a record's file."""
    return json.dumps(record, indent=1).encode()


def changes(before: Record, now: Mapping[str, Any]) -> str:
    """Lists the settings that differ, each with both values; keys that one of the two lacks do not count."""
    new = json.loads(json.dumps(now))
    return "; ".join(
        f"{key} was {_short(before[key])}, is {_short(value)}{_explained(key, before[key], value)}"
        for key, value in new.items()
        if key in before and before[key] != value
    )


def _explained(key: str, before: Any, now: Any) -> str:
    if key == "model_hash":
        return f", with other {differences(str(before), str(now))}"
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        other = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        return f", with other {', '.join(other)}"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else hashlib.sha256(text.encode()).hexdigest()[:8]
