"""Small text files from elsewhere, read with one clear message if they are at fault."""

import json
import tomllib
from pathlib import Path
from typing import Any

from uam_jax.errors import InputError


def decode_text(content: bytes, name: object) -> str:
    """Decodes UTF-8 text, with or without a byte order mark, which Windows' editors write.

    Raises:
      InputError: it is another encoding; the message begins with `name`.
    """
    # The marks of UTF-16 and UTF-32; without one, ASCII characters leave zeros.
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) or b"\0" in content[:4]:
        raise InputError(f"{name}: it is UTF-16 or UTF-32 text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: can't be read ({error}); save it as UTF-8") from None


def read_text(file: Path) -> str:
    """Reads a text file, whose lines end in newlines whatever they ended in.

    Raises:
      InputError: it can't be read, or is not UTF-8.
    """
    try:
        content = file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path that holds a null character
        raise InputError(f"{file}: can't be read ({_reason(error)})") from None
    return decode_text(content, file).replace("\r\n", "\n").replace("\r", "\n")


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      InputError: the file can't be read, is not JSON, or holds another kind of value.
    """
    text = read_text(file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: not a JSON object")
    return value


def read_toml(file: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
      InputError: the file can't be read, or is not TOML.
    """
    text = read_text(file)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not TOML ({error})") from None


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
