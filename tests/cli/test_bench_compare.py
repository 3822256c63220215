"""`uam bench compare`: columns, ratios, agreement of the kept edits, and files that are no records."""

import json
from pathlib import Path

import numpy as np
import pytest
from bench_records import measured
from typer.testing import CliRunner

from uam_jax import InputError
from uam_jax.cli import bench_compare, main
from uam_jax.cli.bench_compare import run_compare
from uam_jax.cli.bench_tables import RESULT
from uam_jax.evaluation.kept_edits import KEPT, KeptEdits


def test_ratios_are_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = measured(tmp_path / "slow", monkeypatch, 1.0)
    fast = measured(tmp_path / "fast", monkeypatch, 0.25, batch=(4, 8))
    summary = run_compare([str(slow), str(fast / RESULT)], str(tmp_path / "both.md"))
    rows = summary["images_per_second"]
    # Only the batch of 4 was measured in both.
    assert len(rows) == 3 and all("batch 4" in row["work"] for row in rows)
    assert all(row["1"] == 1 and row["2"] == 4 for row in rows)
    text = (tmp_path / "both.md").read_text()
    assert text.index("as a multiple") < text.index("## Images/s\n")
    assert "1. slow: cpu, float32" in text and "2. fast: cpu, float32" in text


def test_records_of_the_same_name_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / machine / "bench" for machine in ("a100", "h100")]
    for folder, seconds in zip(folders, (1.0, 0.5), strict=True):
        measured(folder, monkeypatch, seconds, task=("edit",), batch=(1,))
    summary = run_compare([str(folder) for folder in folders], None)
    assert [row["2"] for row in summary["images_per_second"]] == [2]
    versions = [tmp_path / "jax-0.10.1", tmp_path / "jax-0.10.2"]
    for version in versions:
        measured(version, monkeypatch, 1.0, task=("edit",), batch=(1,))
    summary = run_compare([str(version) for version in versions], None)
    columns = [column["what"] for column in summary["columns"]]
    assert [text.partition(":")[0] for text in columns] == ["jax-0.10.1", "jax-0.10.2"]


def test_one_record_compares_its_own_setups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = measured(tmp_path, monkeypatch, 1.0, dtype=("float32", "bfloat16"))
    summary = run_compare([str(folder)], None)
    assert [column["what"] for column in summary["columns"]] == ["cpu, float32", "cpu, bfloat16"]


def test_a_record_is_called_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    labels = bench_compare._labels(["bench.json", "../other/bench.json", "../old.json", "."])
    assert labels == ["bench.json", "other", "old", "."]  # the first and the last are the same
    assert bench_compare._labels(["bench.json", "../other"]) == ["mine", "other"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"format": 99, "cases": []}', "not a record of `uam bench`"),
        ('{"format": 1, "cases": []}', "nothing to compare"),
    ],
)
def test_a_file_that_is_no_record_is_refused(
    content: str | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    result = CliRunner().invoke(main.app, ["bench", "compare", str(file)])
    assert result.exit_code == 2 and message in result.stderr


# The kept edits.


def edits(shift: float = 0.0, left: int = 4) -> KeptEdits:
    """Two edits, brighter by `shift`, whose masks have so many columns."""
    pictures = np.zeros((2, 16, 16, 3), np.float32)
    masks = np.broadcast_to(np.arange(16) < left, (2, 16, 16)).astype(np.float32)
    return KeptEdits.of(pictures, ["", "a cube"], pictures + shift, masks)


def test_the_same_edits_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured(tmp_path / "whole", monkeypatch, 1.0, batch=(1,), edits=edits())
    half = measured(tmp_path / "half", monkeypatch, 0.5, batch=(1,), edits=edits(0.2, left=8))
    old = measured(tmp_path / "old", monkeypatch, 0.5, batch=(1,))
    summary = run_compare([str(each) for each in (old, whole, half)], str(tmp_path / "out.md"))
    [psnr], [overlap] = summary["psnr_of_edits"], summary["overlap_of_masks"]
    # A tenth of the range everywhere; four columns of eight.
    assert psnr["work"].startswith("edit, ") and (psnr["1"], psnr["2"]) == (None, 100)
    assert psnr["3"] == pytest.approx(20, abs=0.01)
    assert (overlap["1"], overlap["2"], overlap["3"]) == (None, 1, 0.5)
    [note] = summary["notes_on_edits"]
    assert note.startswith("Column 1: no edits are kept beside its record")
    text = (tmp_path / "out.md").read_text()
    assert "| – | 100.0 | 20.0 |" in text and "| – | 1.000 | 0.500 |" in text
    assert f"- {note}" in text


def test_edits_that_did_not_move_with_their_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = measured(tmp_path / "here", monkeypatch, 1.0, batch=(1,), edits=edits())
    there = measured(tmp_path / "there", monkeypatch, 1.0, batch=(1,), edits=edits(0.1))
    record = json.loads((there / RESULT).read_text())
    [moved] = there.glob("edits-*.npz")
    assert record["cases"][0]["edits"] == moved.name
    moved.rename(tmp_path / "edits.npz")
    for content, message in ((None, "can't be read"), (b"PK\x03\x04", "not edits")):
        if content:
            moved.write_bytes(content)
        summary = run_compare([str(here), str(there)], None)
        assert summary["psnr_of_edits"][0]["2"] is None
        assert moved.name in summary["notes_on_edits"][0]
        assert message in summary["notes_on_edits"][0]


def test_numbers_that_do_not_exist_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = measured(tmp_path / "a", monkeypatch, 1.0, batch=(1,), edits=edits(left=0))
    broken = edits(left=0)
    broken.images[1, 3] = np.nan
    overflown = measured(tmp_path / "b", monkeypatch, 1.0, batch=(1,), edits=broken)
    summary = run_compare([str(fine), str(overflown)], None)
    assert summary["psnr_of_edits"][0]["2"] is None and summary["overlap_of_masks"][0]["2"] is None
    assert [note.partition(":")[0] for note in summary["notes_on_edits"]] == [
        "Column 1", "Column 2", "Column 2",
    ]  # fmt: skip


def test_edits_of_other_weights_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = measured(tmp_path / "here", monkeypatch, 1.0, batch=(1,), edits=edits())
    there = measured(tmp_path / "there", monkeypatch, 1.0, batch=(1,), edits=edits())
    record = (there / RESULT).read_text()
    (there / RESULT).write_text(record.replace('"weights": "w"', '"weights": "v"'))
    summary = run_compare([str(here), str(there)], None)
    assert summary["psnr_of_edits"][0]["2"] == 100
    assert summary["notes_on_edits"] == ["Column 2: its weights are not those of the first column."]


def test_edits_of_other_pictures_or_prompts_do_not_count() -> None:
    mine = edits()
    for other in (
        mine._replace(inputs=mine.inputs + np.float32(0.1)),
        mine._replace(prompts=np.asarray(["", "a ball"])),
        mine._replace(images=mine.images[:, ::2], masks=mine.masks[:, ::2]),
        KeptEdits(*(array[:1] for array in mine)),
    ):
        with pytest.raises(InputError, match="of other pictures or prompts"):
            mine.agreement(other)
    nearly = mine._replace(inputs=mine.inputs + np.float32(1e-6))
    assert mine.agreement(nearly) == (100, 1)


def test_a_few_edits_go_through_a_file(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).uniform(-1, 1, (5, 32, 48, 3)).astype(np.float32)
    masks = pictures[..., 0] / 2 + 0.5
    kept = KeptEdits.of(pictures, ["a", "é"], pictures, masks)
    file = tmp_path / "e.npz"
    file.write_bytes(kept.encode())
    found = KeptEdits.read(file)
    assert found.images.shape == (KEPT, 32, 48, 3) and found.inputs.shape == (KEPT, 2, 3, 3)
    assert all(map(np.array_equal, found, kept)) and list(found.prompts) == ["a", "é"]
    assert np.abs(found.images - pictures[:KEPT]).max() < 1e-3
    np.testing.assert_array_equal(found.masks, pictures[:KEPT, ..., 0] > 0)
    # One at a time, each array is not what it should be; pickles are not loaded.
    for bad in (
        {"images": kept.images[..., 0]},
        {"prompts": np.asarray([{}], object)},
        {"masks": kept.masks.astype(float)},
    ):
        np.savez(file, **{**kept._asdict(), **bad})
        with pytest.raises(InputError, match="not edits of `uam bench`"):
            KeptEdits.read(file)
