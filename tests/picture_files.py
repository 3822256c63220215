"""Picture files of every kind, made for tests, and what Pillow reads in them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def integers(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def load(source: Path | bytes) -> tuple[str, np.ndarray]:
    """Mode and values, as Pillow sees them."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return image.mode, np.asarray(image)


def png(width: int, height: int, colour_type: int, depth: int, data: bytes) -> bytes:
    """A PNG of any header, also of those that Pillow doesn't write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(data)),
            chunk(b"IEND", b""),
        ]
    )
