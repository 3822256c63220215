"""Inversions on disk, named by what they are made from: later edits of the same pictures need not invert again."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from uam_jax.inversion import Inversion, InversionKey

Needed = Mapping[InversionKey, tuple[int, ...]]
"""Levels by inversion."""


class InversionCache:
    """A folder of inversions, one file a picture; several processes may use it at once.

    What was used longest ago goes first when the folder is full.
    """

    def __init__(self, folder: Path, max_bytes: int = 10_000_000_000):
        """Names the folder, which need not exist, and how much it may hold."""
        self._folder, self._max_bytes = folder, max_bytes

    def load(self, digests: Sequence[str], needed: Needed) -> list[Inversion] | None:
        """A batch's inversions, if every picture has all of them; else None.

        Args:
          digests: a name for each picture's content.
          needed: what is asked for, with the prompts of all pictures.
        """
        found = []
        for key, levels in needed.items():
            parts = []
            for slot, digest in enumerate(digests):
                latents = self._read(self._file(digest, _own(key, slot), levels))
                if latents is None:
                    return None
                parts.append(latents)
            found.append(Inversion(jnp.asarray(np.stack(parts, axis=1)), key, levels))
        return found

    def store(self, digests: Sequence[str], inversions: Sequence[Inversion]) -> None:
        """Keeps a batch's inversions, picture by picture."""
        for inversion in inversions:
            latents = np.asarray(inversion.latents)
            for slot, digest in enumerate(digests):
                file = self._file(digest, _own(inversion.key, slot), inversion.levels)
                file.parent.mkdir(parents=True, exist_ok=True)
                temporary = file.with_name(f".{uuid.uuid4().hex}.tmp")
                temporary.write_bytes(save({"latents": np.ascontiguousarray(latents[:, slot])}))
                os.replace(temporary, file)
        self._shrink()

    def _file(self, digest: str, key: InversionKey, levels: tuple[int, ...]) -> Path:
        name = hashlib.sha256(f"{digest} {key.fingerprint()} {levels}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def _read(self, file: Path) -> np.ndarray | None:
        try:
            latents = load(file.read_bytes())["latents"]
            os.utime(file)
        # Another process may have removed it; a damaged one is made again.
        except (OSError, SafetensorError, KeyError):
            return None
        return latents

    def _shrink(self) -> None:
        entries = []
        for file in self._folder.glob("*/*.safetensors"):
            with contextlib.suppress(OSError):
                stat = file.stat()
                entries.append((stat.st_mtime, stat.st_size, file))
        held = sum(size for _, size, _ in entries)
        for _, size, file in sorted(entries):
            if held <= self._max_bytes:
                break
            file.unlink(missing_ok=True)
            held -= size


def _own(key: InversionKey, slot: int) -> InversionKey:
    """The key of one picture of a batch."""
    return (
        replace(key, prompts=key.prompts[slot : slot + 1] or key.prompts)
        if len(key.prompts) > 1
        else key
    )
