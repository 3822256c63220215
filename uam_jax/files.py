"""Small text files from elsewhere, read with one clear message if they are at fault."""

import json
from pathlib import Path
from typing import Any

from uam_jax.errors import InputError


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't be read ({_reason(error)})") from None


def read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: not a JSON object")
    return value


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
