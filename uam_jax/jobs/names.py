"""Names of results: ids made of pictures' names, faults of ids, and the names of results' files.

An id depends on the picture's name alone, so that it stays when other pictures come and go, and no two names make the
same id. That is why most ids keep the suffix: photo.jpg and photo.png may lie in one folder.
"""

import hashlib
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_LONGEST_PART, _LONGEST = 200, 1000
"""Bytes of a part and of the whole id, which leaves room for suffixes, numbers and marks."""

_FORBIDDEN = re.compile(r'[\\:<>"|?*]')  # all but the first two on Windows only
# Windows takes each of them for a device, whatever follows a dot.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])\s*(?:\.|$)", re.I)
_MARKED = re.compile(r"~[0-9a-f]{8}(?:\.\w+)?$")
# As results of several targets are. Where a picture has a thousand, `checked` refuses what meets another's.
_NUMBERED = re.compile(r"-[1-9]\d{0,2}$")
_SUFFIX = re.compile(r"\.\w{1,8}$", re.ASCII)
_PICTURE = re.compile(r"\.[a-z]\w{2,4}$", re.I | re.ASCII)


def own_id(name: str, place: str = "") -> str:
    """The id that a picture's name makes: the name itself, without the suffix if that is `.png`.

    If this could not be a file's name on every system, or could be another picture's id or numbered result, it is
    changed and marked with a hash: `12:30.jpg` becomes `12_30~` with eight digits and `.jpg`.

    Args:
      name: relative, with "/" between its parts.
      place: the picture's place, if `name` does not tell it.
    """
    *folders, file = name.split("/")
    stem, suffix = posixpath.splitext(file)
    is_plain = not (place or any(p.search(stem) for p in (_PICTURE, _NUMBERED)) or _changed(stem))
    if not (suffix == ".png" and is_plain):
        ambiguous = place or not _PICTURE.search(file)
        stem = _marked(file, place or file) if ambiguous or _changed(file) else file
    parts = [
        # A result of another picture may have this folder's name.
        _marked(part, part) if _changed(part) or _PICTURE.search(part) else part
        for part in folders
    ]
    whole = "/".join([*parts, stem])
    if len(whole.encode()) > _LONGEST:
        whole = f"{_marked(parts[0], name)}/{stem}"
    return whole


def fault(name: str) -> str:
    """The reason why a result must not have this name; empty if it may."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts):
        return 'must be a relative path without empty parts, "." and ".."'
    if _FORBIDDEN.search(name) or any(map(_invisible, name)):
        return (
            'must not contain backslashes, colons, any of <>"|?*, control characters or what is no '
            "Unicode"
        )
    if any(
        part.startswith(".uam-") or part != part.strip() or part.endswith(".") for part in parts
    ):
        return 'must not have parts that start with ".uam-" or a space, or end with a dot or space'
    if any(map(_DEVICE.match, parts)):
        return "has a part that Windows keeps for a device, as CON, NUL or COM1"
    if any(len(part.encode()) > _LONGEST_PART for part in parts):
        return f"has a part of more than {_LONGEST_PART} bytes"
    if len(name.encode()) > _LONGEST:
        return f"has more than {_LONGEST} bytes"
    return ""


def result_file(name: str, suffix: str, *, own: bool = False) -> str:
    """The name of a result's file: its id and the suffix.

    Args:
      name: the id.
      suffix: of the file.
      own: the suffix is the picture's own; an id that ends with it then stays as it is, so that the result has its
        picture's name.
    """
    stem, has = posixpath.splitext(name)
    file = posixpath.basename(stem)
    # Other ids could have the same file: `photo.png` that of `photo.jpg.png`, and the first result of `photo`
    # that of `photo-1.png`.
    is_taken = _PICTURE.search(_NUMBERED.sub("", file)) or (
        has.lower() == ".png" and _NUMBERED.search(file)
    )
    return name if own and has == suffix and not is_taken else name + suffix


def file_stems(names: Iterable[str]) -> dict[str, str]:
    """A stem for the files of each name: the name itself, marked where a file system would take two names for one."""
    names = list(dict.fromkeys(names))
    seen = Counter(map(_png, names))
    # The slash keeps the mark from being that of a name which `own_id` has marked.
    return {
        name: f"{name}~{_digest('/' + name)}" if seen[_png(name)] > 1 else name for name in names
    }


def folded(name: str) -> str:
    """One form for all names that some file system takes for the same."""
    return unicodedata.normalize("NFC", name).casefold()


def _png(name: str) -> str:
    return result_file(folded(name), ".png", own=True)


def _changed(part: str) -> bool:
    """Whether a part can't stay as it is, because it is unsafe or looks like one that was changed."""
    return bool(fault(part) or _MARKED.search(part))


def _marked(part: str, origin: str) -> str:
    """A safe name that ends with a hash of `origin` and the suffix, if there is one."""
    suffix = found[0] if (found := _SUFFIX.search(part)) else ""
    ending = f"~{_digest(origin)}{suffix}"
    stem = "".join("_" if _invisible(char) else char for char in part.removesuffix(suffix))
    stem = re.sub(r"^\s+|[\s.]+$", "", _FORBIDDEN.sub("_", stem))
    if stem.startswith(".uam-") or _DEVICE.match(stem + ending):
        stem = f"_{stem}"
    room = _LONGEST_PART - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore").strip() + ending


def _invisible(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
