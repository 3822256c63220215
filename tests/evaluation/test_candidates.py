"""The comparison of trees and flags of XLA: its processes, its trees and its record, mostly with stand-ins."""

import importlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from checkpoint_files import write_checkpoint

import uam_jax

pytestmark = pytest.mark.long

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TOY = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "load":
        answer = {key: os.environ[key] for key in ("PYTHONPATH", "XLA_FLAGS")} | asked
    elif asked["do"] == "latents":
        answer = {"values": [3.0, 4.0]}
    elif asked["rows"] == 6:
        answer = {"error": "ValueError: six"}
    elif asked["rows"] == 9:
        sys.exit("unknown flag\\n\\n")
    else:
        answer = {}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("candidates")


def test_a_variant_is_a_process_that_answers(
    candidates: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "candidate.py").write_text(TOY)
    monkeypatch.setattr(candidates, "HERE", tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "--a")
    monkeypatch.setenv("PYTHONPATH", "b")
    variant = candidates.Variant("v", Path("c"), "--d", {"calls": 2}, tmp_path / "log")
    try:
        variant.run(3)
        assert variant.facts == {
            "PYTHONPATH": "c:b", "XLA_FLAGS": "--a --d", "do": "load", "tree": "c", "calls": 2,
        }  # fmt: skip
        assert variant.latents[3].tolist() == [3, 4]
        with pytest.raises(RuntimeError, match="^ValueError: six$"):
            variant.run(6)
        variant.run(3)  # It still answers.
        for _ in range(2):
            with pytest.raises(RuntimeError, match="^the process ended: unknown flag$"):
                variant.run(9)
    finally:
        variant.end()


def test_a_tree_is_a_folder_a_tar_file_or_a_revision(
    candidates: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, scratch = tmp_path / "repository", tmp_path / "scratch"
    scratch.mkdir()
    for name in ("uam_jax", "benchmarks"):
        (repository / name).mkdir(parents=True)
        (repository / name / "a.py").write_text("1")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    (repository / "uam_jax" / "a.py").write_text("2")
    monkeypatch.setattr(candidates, "HERE", repository)
    assert candidates.tree_of(str(repository), scratch) == repository.resolve()
    of_revision = candidates.tree_of("HEAD", scratch)
    assert (of_revision / "uam_jax" / "a.py").read_text() == "1"
    packed = tmp_path / "before.tar"
    with tarfile.open(packed, "w") as tar:
        entry = tarfile.TarInfo("uam_jax/a.py")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"3"))
    of_tar = candidates.tree_of(str(packed), scratch)
    assert of_tar != of_revision and (of_tar / "uam_jax" / "a.py").read_text() == "3"
    with pytest.raises(SystemExit, match="--against nothing: no folder, no file, and .*nothing"):
        candidates.tree_of("nothing", scratch)


def test_a_record_has_rates_shares_and_ratios_within_rounds(
    candidates: ModuleType, tmp_path: Path
) -> None:
    comparison = importlib.import_module("comparison")
    facts = {
        "model": "sd15", "size": 512, "dtype": "bfloat16", "device": "H100", "flops": 5e11,
        "versions": {"jax": "1"}, "peak": 1e14,
    }  # fmt: skip
    latents = {candidates.NOW: [3.0, 4.0], "old": [3.0, 4.5], "tuned": [3.0, 4.0]}
    variants = []
    for name, values in latents.items():
        flags = "--tuned" if name == "tuned" else ""
        variant = candidates.Variant(name, tmp_path, flags, {}, tmp_path / "log")
        variant.facts, variant.latents = facts, {24: np.asarray(values)}
        variants.append(variant)
    times = {candidates.NOW: [2.0, 4.0, 2.4], "old": [3.0, 8.0, 2.4], "tuned": [1.0, 2.0]}
    cells = [
        comparison.Cell(name, "evaluation", 24, 20, lambda: None, first=9.0, seconds=seconds)
        for name, seconds in times.items()
    ]
    cells.append(comparison.Cell("broken", "evaluation", 24, 20, lambda: None, failed="no flag"))
    summary = candidates.summary_of(variants, cells, "command", "old")
    now, old, tuned = summary["rows"]
    assert now["rate"]["median"] == pytest.approx(200)  # 20 calls of 24 rows in 2.4 s.
    assert (now["tflops"], now["share"]) == (pytest.approx(100), pytest.approx(1.0))
    middle, low, high = now["relative"]["old"]
    assert (middle, low, high) == (1.5, 1, 2)  # Of 1.5, 2 and 1.
    assert now["difference"]["old"] == pytest.approx(0.5 / np.hypot(3.0, 4.5))
    assert tuned["relative"]["old"][0] == 3.5  # Of the two rounds that both have.
    assert tuned["relative"][candidates.NOW] == (2, 2, 2)
    assert list(old["relative"]) == [candidates.NOW]
    candidates.write(tmp_path, summary)
    text = (tmp_path / "summary.md").read_text()
    assert "| this tree | 24 | 9.0 | 3 | 200.0 [160.0, 220.0] | 100 | 100.0 % | 1.500 [" in text
    assert "broken, evaluation, batch 24 could not run: no flag" in text


def test_a_candidate_measures_its_own_tree(
    candidates: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = importlib.import_module("candidate").Candidate()
    write_checkpoint(tmp_path / "model", scale=1 / 16)
    monkeypatch.setattr(sys, "path", [*sys.path])
    options = {
        "model": str(tmp_path / "model"), "shape": None, "dtype": "float32", "size": 8, "calls": 2,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="uam_jax is that of .*, not of"):
        candidate.load(tree=str(tmp_path), count=False, **options)
    tree = Path(uam_jax.__file__).parents[1]
    facts = candidate.load(tree=str(tree), count=True, **options)
    assert facts["flops"] > 0 and facts["size"] == 8 and facts["device"] == "cpu"
    assert candidate.run(rows=6) == {}
    values = candidate.latents()["values"]
    assert len(values) == 2 * 4 * 4 * 4 and np.isfinite(values).all()
