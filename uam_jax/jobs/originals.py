"""Pictures of a data set at their own sizes: kept as their files' bytes, and decoded when they are needed."""

import hashlib
from dataclasses import dataclass

import numpy as np

from uam_jax.errors import InputError
from uam_jax.io.focus import Crop
from uam_jax.io.images import Picture, quietly, read_image
from uam_jax.io.mask_files import read_mask
from uam_jax.io.storage import read_bytes
from uam_jax.jobs.manifest import Item
from uam_jax.runtime.host_memory import free_bytes

DECODING, COMPOSING = 36, 64
"""Bytes for each pixel of a picture, measured: while it is read and scaled, and while its result is composed."""


@dataclass(frozen=True)
class Original:
    """A picture and the user's mask as bytes of their files; decoded, a photograph takes a hundred times the memory.

    Attributes:
      item: of the manifest.
      size: of the picture.
      crop: the part of the picture that is edited.
      content: of both files; None if it is too large to keep, so that the files are read again.
      digest: of the content.
    """

    item: Item
    size: tuple[int, int]
    crop: Crop
    content: tuple[bytes, bytes] | None
    digest: bytes

    @classmethod
    def of(
        cls,
        item: Item,
        size: tuple[int, int],
        crop: Crop,
        content: tuple[bytes, bytes],
        *,
        may_keep: int,
    ) -> "Original":
        """Keeps the content if it has at most `may_keep` bytes."""
        kept = content if sum(map(len, content)) <= may_keep else None
        return cls(item, size, crop, kept, _digest(content))

    @property
    def bytes_to_compose(self) -> int:
        """Memory that the result takes while it is composed and encoded."""
        return bytes_to_compose(self.size)

    def read(self) -> tuple[Picture, np.ndarray | None]:
        """The picture, and the user's mask at its size.

        Raises:
          InputError: the files had to be read again, and have changed since.
        """
        content = self.content or read_files(self.item)
        if content is not self.content and _digest(content) != self.digest:
            raise InputError(
                f"{self.item.image}: it has changed while it was edited; run it with --retry-failed"
            )
        return decode_files(self.item, content)


def bytes_to_compose(size: tuple[int, int]) -> int:
    """Memory that a result of this size takes while it is composed and encoded."""
    return size[0] * size[1] * COMPOSING


def refuse_too_large(item: Item, size: tuple[int, int]) -> None:
    """Refuses a picture for which the system would end the whole process.

    Raises:
      InputError: even alone, it needs more memory than is free.
    """
    needed, free = bytes_to_compose(size), free_bytes()
    if needed > free:
        height, width = size
        raise InputError(
            f"{item.image}: {width}x{height} pixels take about {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free: scale the picture down, or run it on a machine with more, with "
            "--retry-failed"
        )


def read_item(item: Item) -> tuple[Picture, np.ndarray | None]:
    """An item's picture, and the user's mask at its size.

    Raises:
      InputError: one of them is missing or damaged, or the mask does not fit the picture.
    """
    return decode_files(item, read_files(item))


def read_files(item: Item) -> tuple[bytes, bytes]:
    """The content of an item's picture and of its mask, which is empty if there is no mask.

    Raises:
      InputError: one of them is missing.
    """
    return read_bytes(item.image), read_bytes(item.mask) if item.mask is not None else b""


def decode_files(item: Item, content: tuple[bytes, bytes]) -> tuple[Picture, np.ndarray | None]:
    """Decodes the content of an item's files.

    Raises:
      InputError: one of them is damaged, or the mask does not fit the picture.
    """
    with quietly():
        picture = read_image(item.image, content[0])
        if item.mask is None:
            return picture, None
        return picture, read_mask(item.mask, picture.size, content[1])


def _digest(content: tuple[bytes, bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    return digest.digest()
