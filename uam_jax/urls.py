"""Paths and URLs as text: told apart, taken apart, joined, and shown without what is secret in them."""

import os
import posixpath
import re
from urllib.parse import unquote

# One letter before the colon is a drive of Windows.
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+(?:::[A-Za-z][\w+.-]+)*://")
_LINK = re.compile(r"::[A-Za-z][\w+.-]+://")
_LOCAL = re.compile(r"(?:file|local)://(?:localhost(?=/))?", re.IGNORECASE)
# Bounded, so that a long text without any takes no longer than it is long. A name may have apostrophes, and
# blanks if a query comes after; the next link of a chain is an address of its own.
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
    """Whether a name is a URL rather than a path."""
    return _SCHEME.match(name) is not None


def local_path(name: str) -> str | None:
    """The local path that a name stands for, also as a `file://` URL; None if it is another URL."""
    if not is_url(name):
        return name
    if not (scheme := _LOCAL.match(name)) or _LINK.search(name):
        return None
    path = name[scheme.end() :]
    if os.path.splitdrive(path[1:])[0]:  # of file:///C:/a.png
        path = path[1:]
    return path if os.path.exists(path) else unquote(path)


def at_home(path: str) -> str:
    """A local path in which a "~" at the beginning is the home folder, unless something is there by that name."""
    return path if os.path.lexists(path) else os.path.expanduser(path)


def parent(name: str) -> str:
    """The folder that a file lies in; of a URL without its query."""
    if not is_url(name):
        return os.path.dirname(name)
    before, path, after = _split(name)
    return before + posixpath.dirname(path) + after


def base_name(name: str) -> str:
    """A file's name without its folders, and of a URL without its query."""
    return posixpath.basename(_split(name)[1]) if is_url(name) else os.path.basename(name)


def join(folder: str, name: str) -> str:
    """`name` as seen from `folder`; an absolute path or a URL stays as it is."""
    if is_url(name) or os.path.isabs(name) or not folder:
        return name
    if not is_url(folder):
        return f"{folder.rstrip('/')}/{name}"
    before, path, after = _split(folder)
    return f"{before}{path.rstrip('/')}/{name}{after}" if path else f"{before}{name}{after}"


def public(text: str) -> str:
    """A text with the URLs in it as they may be shown and kept: without signatures, user names and passwords."""
    return _ADDRESS.sub(_without_secrets, text)


def _without_secrets(found: re.Match[str]) -> str:
    scheme, rest = found[1], found[2]
    user = _USER.match(rest)
    # In other schemes a name before the "@" may be part of the place, as a container's.
    if user and (":" in user[0] or scheme.lower() in ("http", "https")):
        rest = rest[user.end() :]
    place = re.split("[?#]", rest, maxsplit=1)[0]
    if _SECRET.search(rest[len(place) :]):
        rest = place + (re.search(r"[.,:;)\]]*$", rest) or [""])[0]  # the sentence's, not the URL's
    return f"{scheme}://{rest}"


def _split(url: str) -> tuple[str, str, str]:
    """What comes before, in and after the path of a URL; the query is left out.

    The first link of a chain (`zip://inner::s3://bucket/outer.zip`) that has a path is the file's.
    """
    links = url.split("::")
    number = next(number for number, link in enumerate(links) if "://" in link)
    scheme, _, path = links[number].partition("://")
    if scheme.lower() in ("http", "https"):  # elsewhere these are characters like any others
        path = re.split("[?#]", path, maxsplit=1)[0]
    before = "".join(f"{link}::" for link in links[:number]) + f"{scheme}://"
    return before, path, "".join(f"::{link}" for link in links[number + 1 :])
