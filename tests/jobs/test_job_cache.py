"""A data-set job with a cache: inversions are kept by their pictures, whatever their batch."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_job import CONFIG, files_of, run_tiny

from uam_jax import Editor
from uam_jax.engine.cache import InversionCache
from uam_jax.engine.parallel import Program
from uam_jax.io.encoding import write_image
from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import read_rows
from uam_jax.jobs.manifest import Item


def test_a_kept_inversion_is_not_made_again(
    editor: Editor, items: list[Item], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = InversionCache(tmp_path / "cache")
    run_tiny(editor, items[:5], tmp_path / "first", cache=cache)
    calls = []
    run = Program.__call__
    monkeypatch.setattr(
        Program, "__call__", lambda self, *a, **k: calls.append(self.__name__) or run(self, *a, **k)
    )
    other = [Item(item.id, item.image, ("a red cube",)) for item in items[:2]]
    run_tiny(editor, other, tmp_path / "second", cache=cache)
    assert "invert" not in calls and "edit" in calls
    calls.clear()
    run_tiny(editor, items[2:3], tmp_path / "third")  # two targets, one inversion of each kind
    assert calls.count("invert") == 2 and calls.count("edit") == 2
    monkeypatch.undo()

    run_tiny(editor, items[:5], tmp_path / "again", cache=cache)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "first")
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.write_bytes(b"damaged")
    run_tiny(editor, items[:2], tmp_path / "mended", cache=cache)
    assert files_of(tmp_path / "mended").items() <= files_of(tmp_path / "first").items()


@pytest.mark.long
def test_an_inversion_that_other_code_has_made_is_not_used(
    editor: Editor, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.updated({"inversion": "my_module:MyInversion"})
    cache, calls = InversionCache(tmp_path / "cache"), []
    # Compiling the programs of a first job calls them too.
    run_tiny(editor, items[:1], tmp_path / "compiled", config=config)
    run = Program.__call__
    monkeypatch.setattr(
        Program, "__call__", lambda self, *a, **k: calls.append(self.__name__) or run(self, *a, **k)
    )
    made = []
    for out, files in (("a", None), ("b", None), ("c", {"my_module": "0123456789abcdef"})):
        if files:
            monkeypatch.setattr(type(config.inversion.method), "_files", files)
        run_tiny(editor, items[:1], tmp_path / out, config=config, cache=cache)
        made.append(calls.count("invert"))
        calls.clear()
    assert made == [2, 0, 2]
    first, kept = (read_rows(Folder(str(tmp_path / out)))["set/0"]["figures"] for out in "ab")
    assert first == kept and kept["source_length"] > 0


def test_a_kept_inversion_is_of_one_picture_whatever_its_batch(
    editor: Editor, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its region too: one picture's is not found by the masks of those beside it."""
    masked = []
    for number, item in enumerate(items[:2]):
        mask = -np.ones((12, 12, 3), np.float32)
        mask[: 4 + 4 * number] = 1
        write_image(tmp_path / f"mask{number}.png", mask)
        source, own = f"a cube {number}", f"{tmp_path}/mask{number}.png"
        masked.append(Item(item.id, item.image, item.targets, source=source, mask=own))
    config = CONFIG.updated(
        {"inversion": {"outside_uniformity": 0.5}, "source": {"condition": "prompt"}}
    )
    cache = InversionCache(tmp_path / "cache")
    run_tiny(editor, masked, tmp_path / "first", cache=cache, config=config)
    calls = []
    run = Program.__call__
    monkeypatch.setattr(
        Program, "__call__", lambda self, *a, **k: calls.append(self.__name__) or run(self, *a, **k)
    )
    run_tiny(editor, masked[::-1], tmp_path / "turned", cache=cache, config=config)
    run_tiny(editor, masked[1:], tmp_path / "alone", cache=cache, config=config)
    assert "invert" not in calls and "edit" in calls
    assert files_of(tmp_path / "turned") == files_of(tmp_path / "first")
    assert files_of(tmp_path / "alone").items() <= files_of(tmp_path / "first").items()


@pytest.mark.long
def test_a_cache_knows_shapes_and_keeps_no_nonsense(
    editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = InversionCache(tmp_path / "cache")
    grey = []
    for number, shape in enumerate([(8, 16), (16, 8), (8, 16)]):
        write_image(tmp_path / f"{number}.png", np.zeros((*shape, 3), np.float32))
        grey.append(Item(f"{number}", f"{tmp_path}/{number}.png", ("a blue ball",)))
    for out in ("first", "second"):
        assert run_tiny(editor, grey, tmp_path / out, cache=cache).failed == 0
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")

    empty = InversionCache(tmp_path / "empty")
    encode = Editor.encode
    monkeypatch.setattr(
        Editor, "encode", lambda self, x, **k: encode(self, x, **k).at[0].set(jnp.nan)
    )
    assert run_tiny(editor, grey[::2], tmp_path / "third", cache=empty).failed == 1
    kept = len(list((tmp_path / "empty").rglob("*.safetensors")))
    assert kept == 2  # both kinds of inversion, of the other picture


def test_a_full_cache_forgets_what_was_used_longest_ago(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    cache = InversionCache(tmp_path / "cache", max_bytes=2000)
    run_tiny(editor, items[:5], tmp_path / "out", cache=cache)
    held = [file.stat().st_size for file in (tmp_path / "cache").rglob("*.safetensors")]
    assert 0 < sum(held) <= 2000
