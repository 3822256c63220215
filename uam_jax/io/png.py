"""Sorts the chunks of PNG files into metadata and the rest.

Programs write metadata before or after the pixels, as EXIF, XMP or ImageMagick's raw profiles, and some write whole
workflows as texts of megabytes. This module reads the metadata up to a bound and skips other texts.
"""

import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST = 16 << 20
"""Most bytes of a piece of metadata, unpacked; a larger piece is left out."""
_XMP = b"XML:com.adobe.xmp"
_RAW_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1", b"Raw profile type xmp")


@dataclass
class Chunks:
    """The sorted content of a PNG file.

    Attributes:
      rest: a PNG file without texts, EXIF and colour profile.
      exif: the bytes of EXIF, from an eXIf chunk or else from a raw profile.
      xmp: the XMP packet.
      icc_profile: the bytes of the colour profile.
      left_out: names of metadata that are too large.
    """

    rest: io.BytesIO = field(default_factory=io.BytesIO)
    exif: bytes = b""
    xmp: bytes = b""
    icc_profile: bytes = b""
    left_out: list[str] = field(default_factory=list)


def read_chunks(file: Any, *, pixels: bool = True) -> Chunks:
    """Sorts the chunks of a PNG file.

    Args:
      file: the file, open for reading in binary mode.
      pixels: whether to read the pixels too; otherwise they are skipped, and `rest` ends where they begin.
    """
    file.seek(len(SIGNATURE))
    kept, found = [SIGNATURE], Chunks()
    reading, raw_exif = True, b""
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        after = file.tell() + length + 4
        if kind == b"eXIf":
            found.exif = found.exif or _read(file, length, "EXIF", found)
        elif kind == b"iCCP":
            content = _read(file, length, "colour profile", found)
            packed = content.partition(b"\0")[2][1:]
            found.icc_profile = _unpack(packed, "colour profile", found)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, content = _text(file, kind, length, found)
            if keyword == _XMP:
                found.xmp = content
            elif keyword in _RAW_PROFILES:
                profile = _raw_profile(content)
                if profile.startswith((b"Exif\0\0", b"II*\0", b"MM\0*")):
                    raw_exif = profile
                else:
                    found.xmp = found.xmp or profile
        elif reading:
            if kind == b"IDAT" and not pixels:
                kept.append(head)
                reading = False
            else:
                kept += [head, file.read(length + 4)]
        file.seek(after)
        if kind == b"IEND":
            break
    found.exif = found.exif or raw_exif
    found.rest = io.BytesIO(b"".join(kept))
    return found


def _read(file: Any, length: int, name: str, found: Chunks) -> bytes:
    if length > LARGEST:
        found.left_out.append(name)
        return b""
    return file.read(length)


def _unpack(packed: bytes, name: str, found: Chunks) -> bytes:
    """Unpacks a zlib stream; nothing if it is damaged or too large."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(packed, LARGEST)
    except zlib.error:
        return b""
    if stream.unconsumed_tail:
        found.left_out.append(name)
        return b""
    return content if stream.eof else b""


def _text(file: Any, kind: bytes, length: int, found: Chunks) -> tuple[bytes, bytes]:
    """Reads the keyword of a text chunk, and its content if it is metadata that is used."""
    begin = file.read(min(length, 80))
    keyword, _, _ = begin.partition(b"\0")
    if keyword != _XMP and keyword not in _RAW_PROFILES:
        return keyword, b""
    name = "XMP" if keyword == _XMP else "raw profile"
    rest = _read(file, length - len(begin), name, found)
    content = (begin + rest)[len(keyword) + 1 :]
    packed = kind == b"zTXt"
    if kind == b"zTXt":
        content = content[1:]
    elif kind == b"iTXt":
        packed, content = content[:1] == b"\1", b"".join(content[2:].split(b"\0", 2)[2:])
    return keyword, _unpack(content, name, found) if packed else content


def _raw_profile(text: bytes) -> bytes:
    """Decodes a raw profile of ImageMagick: a newline, its name, its length, and lines of hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
