"""The folder of inversions: whose it is, and what it may remove."""

import os
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.engine.cache import InversionCache
from uam_jax.engine.inversion import Inversion, InversionKey

KEY = InversionKey("model", ("",), 0.0, 1.0, steps=2)
LATENTS = np.arange(2 * 4, dtype=np.float32).reshape(2, 1, 2, 2, 1)


def store(cache: InversionCache, digest: str = "picture") -> None:
    cache.store([digest], [Inversion(jnp.asarray(LATENTS), KEY, (0, 2))])


def test_a_cache_that_is_only_readable_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, or on a read-only disk: the time of use can't be noted there."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    store(InversionCache(tmp_path))
    monkeypatch.setattr(os, "utime", refuse)
    found = InversionCache(tmp_path).load(["picture"], {KEY: (0, 2)}, LATENTS[0])
    assert found is not None
    np.testing.assert_array_equal(found[0].latents, LATENTS)


def test_only_inversions_are_counted_and_removed(tmp_path: Path) -> None:
    others = [
        tmp_path / "photos" / "1.png",
        tmp_path / "ab" / "x.tmp",
        tmp_path / "ab" / "1.safetensors",
    ]
    abandoned = tmp_path / "ab" / f"{'0' * 32}.tmp"
    for file in (*others, abandoned):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(5000))
        os.utime(file, (0, time.time() - 7200))
    cache = InversionCache(tmp_path, max_bytes=1000)
    store(cache)
    assert all(file.is_file() for file in others) and not abandoned.exists()
    kept = [file for file in tmp_path.rglob("*.safetensors") if file not in others]
    assert len(kept) == 1
    for number in range(20):
        store(cache, f"another {number}")
    assert all(file.is_file() for file in others) and not kept[0].exists()
