"""Functions on paths, URLs and small text files. Every fault of a file is one clear message."""

import json
import os
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from uam_jax.errors import InputError

# A single letter before the colon is a drive of Windows, not a scheme.
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+(?:::[A-Za-z][\w+.-]+)*://")
_LINK = re.compile(r"::[A-Za-z][\w+.-]+://")
_LOCAL = re.compile(r"(?:file|local)://(?:localhost(?=/))?", re.IGNORECASE)
# The repetitions are bounded, so that the time grows only linearly with the text. A name may contain apostrophes, and
# blanks if a query follows; the next link of a chain is an address of its own.
_ADDRESS = re.compile(
    r"(?<![\w+.-])([A-Za-z][\w+.-]{1,30})://"
    r"((?:(?!::[A-Za-z][\w+.-]{1,30}://)[^\s'\"<>]|'(?=\w))+"
    r"(?:(?: (?:[^\s'\"<>?:]|'(?=\w))*){1,9}\?[^\s'\"<>]*)?)"
)
_USER = re.compile(r"[^/?#]*@")
_SECRET = re.compile(
    r"(?:^|[?&;#~*])(?:x-(?:amz|goog|oss|ms)-[\w-]+|hm|[\w.-]*(?:sig|signature|token|secret|passw(?:or)?d|pwd"
    r"|credentials?|hmac|jwt|auth|authorization|key|keyid|key-pair-id|accessid|policy|expires))=",
    re.IGNORECASE,
)


def is_url(name: str) -> bool:
    """Whether a name is a URL and not a path."""
    return _SCHEME.match(name) is not None


def local_path(name: str) -> str | None:
    """Returns the local path of a path or a `file://` URL; None for any other URL."""
    if not is_url(name):
        return name
    if not (scheme := _LOCAL.match(name)) or _LINK.search(name):
        return None
    path = name[scheme.end() :]
    if os.path.splitdrive(path[1:])[0]:  # of file:///C:/a.png
        path = path[1:]
    return path if os.path.exists(path) else unquote(path)


def at_home(path: str) -> str:
    """Replaces a "~" at the beginning of a local path by the home folder, unless a file has exactly that name."""
    return path if os.path.lexists(path) else os.path.expanduser(path)


def parent(name: str) -> str:
    """Returns the folder of a file, without the query of a URL."""
    if not is_url(name):
        return os.path.dirname(name)
    before, path, after = _split(name)
    return before + posixpath.dirname(path) + after


def base_name(name: str) -> str:
    """Returns the name of a file without its folders, and without the query of a URL."""
    return posixpath.basename(_split(name)[1]) if is_url(name) else os.path.basename(name)


def join(folder: str, name: str) -> str:
    """Joins a folder and a relative name; an absolute path or a URL is returned unchanged."""
    if is_url(name) or os.path.isabs(name) or not folder:
        return name
    if not is_url(folder):
        return f"{folder.rstrip('/')}/{name}"
    before, path, after = _split(folder)
    return f"{before}{path.rstrip('/')}/{name}{after}" if path else f"{before}{name}{after}"


def public(text: str) -> str:
    """Removes signatures, user names and passwords from all URLs in a text, so that it can be shown and kept."""
    return _ADDRESS.sub(_without_secrets, text)


def _without_secrets(found: re.Match[str]) -> str:
    scheme, rest = found[1], found[2]
    user = _USER.match(rest)
    # In other schemes a name before the "@" may be part of the address, such as a container's name.
    if user and (":" in user[0] or scheme.lower() in ("http", "https")):
        rest = rest[user.end() :]
    place = re.split("[?#]", rest, maxsplit=1)[0]
    if _SECRET.search(rest[len(place) :]):
        rest = (
            place + (re.search(r"[.,:;)\]]*$", rest) or [""])[0]
        )  # belongs to the sentence, not to the URL
    return f"{scheme}://{rest}"


def _split(url: str) -> tuple[str, str, str]:
    """Splits a URL into the text before its path, the path, and the text after it; the query is left out.

    In a chain (`zip://inner::s3://bucket/outer.zip`) the path is that of the first link that has one.
    """
    links = url.split("::")
    number = next(number for number, link in enumerate(links) if "://" in link)
    scheme, _, path = links[number].partition("://")
    if scheme.lower() in ("http", "https"):  # in other schemes these characters are ordinary ones
        path = re.split("[?#]", path, maxsplit=1)[0]
    before = "".join(f"{link}::" for link in links[:number]) + f"{scheme}://"
    return before, path, "".join(f"::{link}" for link in links[number + 1 :])


def decode_text(content: bytes, name: object) -> str:
    """Decodes UTF-8 text, with or without the byte order mark that editors on Windows write.

    Args:
      content: the bytes of the text.
      name: the name of the file, with which the message of an error begins.

    Raises:
      InputError: the text has another encoding.
    """
    # The marks of UTF-16 and UTF-32; without a mark, ASCII characters contain zero bytes.
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) or b"\0" in content[:4]:
        raise InputError(f"{name}: the text is UTF-16 or UTF-32; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: can't be read ({error}); save it as UTF-8") from None


def read_text(file: Path) -> str:
    """Reads a text file and turns every line end into a newline.

    Raises:
      InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        content = file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: the path has a null character
        raise InputError(f"{file}: can't be read ({_reason(error)})") from None
    return decode_text(content, file).replace("\r\n", "\n").replace("\r", "\n")


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      InputError: the file cannot be read, is not JSON, or has a value that is not an object.
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
      InputError: the file cannot be read, or is not TOML.
    """
    text = read_text(file)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not TOML ({error})") from None


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
