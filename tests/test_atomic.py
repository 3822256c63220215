"""Files of one result are there together or not at all."""

from pathlib import Path

import pytest

from uam_jax.atomic import write_files


def test_all_files_are_written_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []

    def write(path: Path, data: bytes) -> None:
        writes.append(path)
        if len(writes) == 2:
            path.touch()
            raise OSError("No space left on device")
        with path.open("wb") as file:
            file.write(data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space left"):
        write_files({tmp_path / "a.png": b"a", tmp_path / "b.png": b"b"})
    assert not list(tmp_path.iterdir())
