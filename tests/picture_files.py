"""Makes picture files of every kind for tests, and reads them with Pillow."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def integers(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def load(source: Path | bytes) -> tuple[str, np.ndarray]:
    """Reads the mode and the values of a picture with Pillow."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return image.mode, np.asarray(image)


def png(width: int, height: int, colour_type: int, depth: int, data: bytes) -> bytes:
    """A PNG with any header, including headers that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(data)),
            chunk(b"IEND", b""),
        ]
    )


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def with_chunk(content: bytes, added: bytes, *, before: bytes = b"IDAT") -> bytes:
    """A PNG file with one more chunk before the first of a name."""
    at = content.index(before) - 4
    return content[:at] + added + content[at:]


def xmp(orientation: int | str) -> bytes:
    """An XMP packet with an orientation."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def exif(orientation: int) -> bytes:
    """EXIF with an orientation."""
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    return block.tobytes()
