"""Inversions on disk, named by what they are made from: later edits of the same pictures need not invert again."""

import contextlib
import hashlib
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from uam_jax.engine.inversion import Inversion, InversionKey

Needed = Mapping[InversionKey, tuple[int, ...]]
"""Levels by inversion."""

FORM = 2
"""Of the files; a new one where a method records another array."""

# The folder may hold anything else: nothing of another name is counted or removed.
_OWN = re.compile(
    r"(?P<pair>[0-9a-f]{2})/(?:(?P=pair)[0-9a-f]{62}\.safetensors|(?P<temporary>[0-9a-f]{32}\.tmp))"
)


class InversionCache:
    """A folder of inversions, one file a picture; several processes may use it at once.

    What was used longest ago goes first when the folder is full.
    """

    def __init__(self, folder: Path, max_bytes: int = 10_000_000_000):
        """Names the folder, which need not exist, and how much it may hold."""
        self._folder, self._max_bytes = folder, max_bytes
        self._held: int | None = None  # as far as this process knows

    def load(
        self, digests: Sequence[str], needed: Needed, z0: np.ndarray
    ) -> list[Inversion] | None:
        """A batch's inversions, if every picture has all of them; else None.

        Args:
          digests: a name for each picture's content and for what it is computed with.
          needed: what is asked for, with the prompts of all pictures.
          z0: (b, h, w, c), the pictures' latents, which must be the inversions' own.
        """
        found = []
        for key, levels in needed.items():
            parts = []
            for slot, digest in enumerate(digests):
                data = self._read(self._file(digest, key.of(slot), levels))
                if data is None or data["latents"].shape != (len(levels), *z0.shape[1:]):
                    return None
                if not np.allclose(data["latents"][0], z0[slot], atol=1e-5):
                    return None
                parts.append(data)
            # In their files, arrays have no batch axis.
            data = jax.tree.map(lambda *each: jnp.asarray(np.stack(each, axis=1)), *parts)
            found.append(Inversion(data.pop("latents"), key, levels, data=data))
        return found

    def store(self, digests: Sequence[str], inversions: Sequence[Inversion]) -> None:
        """Keeps a batch's inversions, picture by picture, but none that is not finite.

        Raises:
          OSError: the disk is full, or the folder can't be written.
        """
        for inversion in inversions:
            data = jax.device_get({"latents": inversion.latents, **inversion.data})
            for slot, digest in enumerate(digests):
                own = {name: np.ascontiguousarray(each[:, slot]) for name, each in data.items()}
                if all(np.isfinite(each).all() for each in own.values()):
                    self._write(self._file(digest, inversion.key.of(slot), inversion.levels), own)
        if self._held is None or self._held > self._max_bytes:
            self._shrink()

    def _file(self, digest: str, key: InversionKey, levels: tuple[int, ...]) -> Path:
        name = hashlib.sha256(f"{FORM} {digest} {key.fingerprint()} {levels}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def _read(self, file: Path) -> dict[str, np.ndarray] | None:
        try:
            data = load(file.read_bytes())
            if "latents" not in data:
                return None
        # Another process may have removed it; a damaged one is made again.
        except (OSError, SafetensorError, KeyError):
            return None
        with contextlib.suppress(OSError):  # another user's folder, or a read-only one
            os.utime(file)
        return data

    def _write(self, file: Path, data: Mapping[str, np.ndarray]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(save(dict(data)))
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        if self._held is not None:
            self._held += file.stat().st_size

    def _shrink(self) -> None:
        """Looks at the whole folder, and if it holds too much leaves nine tenths of what it may hold."""
        entries = []
        for file in self._folder.glob("*/*"):
            if not (own := _OWN.fullmatch(f"{file.parent.name}/{file.name}")):
                continue
            with contextlib.suppress(OSError):
                stat = file.stat()
                if not own["temporary"]:
                    entries.append((stat.st_mtime, stat.st_size, file))
                elif time.time() - stat.st_mtime > 3600:  # a killed process's
                    file.unlink()
        held = sum(size for _, size, _ in entries)
        if held > self._max_bytes:
            for _, size, file in sorted(entries):
                if held <= 0.9 * self._max_bytes:
                    break
                file.unlink(missing_ok=True)
                held -= size
        self._held = held
