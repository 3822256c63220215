"""`uam batch` and `uam merge` from outside: refusals, messages, and processes on several hosts."""

import json
import os
import random
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from typer.testing import CliRunner, Result

from uam_jax import InputError
from uam_jax.cli import batch_run, main
from uam_jax.io.encoding import write_image
from uam_jax.jobs.runner import Stop
from uam_jax.runtime import backend


def uam(*arguments: object) -> Result:
    return CliRunner().invoke(main.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, scale=1 / 16)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "in" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        write_image(path, rng.uniform(-1, 1, (8, 8, 3)).astype(np.float32))
    return tmp_path / "in"


def batch(model: Path, folder: Path, out: Path, *more: object) -> list[object]:
    settings = ("--set", "steps=2", "--set", "control=none", "--set", "mask.radius=0")
    return [
        "batch", folder, "--target", "a blue ball", "--out", out, "--model", model, "--batch", 2,
        "--no-cache", "--json", *settings, *more,
    ]  # fmt: skip


FAULTS = [
    (["none.jsonl"], "none.jsonl: can't be read"),
    (["{in}"], "for a folder of pictures, give --target"),
    (["{in}", "--target", " "], "for a folder of pictures, give --target"),
    (["{manifest}", "--target", "x"], "and options for words are for a folder"),
    (["{manifest}", "--blend", "x"], "options for words are for a folder"),
    (["{manifest}"], "line 1: not JSON"),
    (
        [
            "{in}",
            "--target",
            "a ball",
            "--source",
            "a cube",
            "--blend",
            "cone",
            "--set",
            "source.condition=prompt",
            "--set",
            "control=prompt-to-prompt",
        ],
        "item 0: the word 'cone' is not in 'a cube' or 'a ball'",
    ),
    (["{in}", "--target", "x", "--set", "control=prompt-to-prompt"], "compares the prompts"),
    (["{in}", "--target", "x", "--config", "captioned"], "item 0 has no source prompt"),
    (["{empty}", "--target", "x"], "holds no pictures"),
    (["{in}", "--target", "x", "--shard", "2/2"], "--shard 2/2: give I/N"),
    (["{in}", "--target", "x", "--shard", "half"], "--shard half: give I/N"),
    (["{in}", "--target", "x", "--shard", "0/2", "--distributed"], "both choose the part"),
    (["{in}", "--target", "x", "--distributed"], "--distributed: "),
    (["{in}", "--target", "x", "--set", "guidanse=1"], "guidanse"),
    (["{in}", "--target", "x", "--model", "{empty}"], "model_index.json"),
    (["{in}", "--target", "x", "--out", "nosuch://a"], "no such file system"),
    (["{in}", "--target", "x", "--batch", "0"], "--batch"),
    (["{in}", "--target", "x", "--format", "gif"], "cannot write .gif"),
    (["{in}", "--target", "x", "--format", "../../x"], "give a file's suffix"),
]


@pytest.mark.parametrize(("arguments", "message"), FAULTS)
def test_bad_input_is_refused_and_nothing_is_written(
    tmp_path: Path, pictures: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "m.jsonl").write_text("{")
    (tmp_path / "empty").mkdir()
    names = {"in": pictures, "manifest": tmp_path / "m.jsonl", "empty": tmp_path / "empty"}
    result = uam("batch", "--out", tmp_path / "out", *(text.format(**names) for text in arguments))
    assert result.exit_code == 2, result.stderr
    assert message in " ".join(result.stderr.split()).replace("│ ", "")
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("file", "{file} is not a folder"),
        ("file/below", "{file} is not a folder"),
        ("begun", "images is not a folder"),
        ("cached", "{file} is not a folder"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_anything_runs(
    tmp_path: Path, pictures: Path, dry: tuple[str, ...], where: str, message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "images").touch()
    before = sorted(tmp_path.rglob("*"))
    cache = ("--cache", tmp_path / "file") if where == "cached" else ()
    result = uam("batch", pictures, "--target", "x", "--out", tmp_path / where, *cache, *dry)
    assert result.exit_code == 2 and "loading" not in result.stderr
    assert message.format(file=tmp_path / "file") in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "command", [("eval", "scenes"), ("eval", "reconstruction"), ("bench",)], ids=" ".join
)
def test_outputs_of_measurements_are_refused_likewise(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    result = uam(*command, "--out", tmp_path / "file")
    assert result.exit_code == 2 and "loading" not in result.stderr
    assert f"{tmp_path / 'file'} is not a folder" in result.stderr


def test_names_too_long_for_the_results_place_are_refused_first(
    tmp_path: Path, pictures: Path, model: Path
) -> None:
    out = tmp_path / "/".join(["deep" * 50] * 20)
    result = uam(*batch(model, pictures, out, "--dry-run"))
    assert result.exit_code == 2 and "is too long for this file system" in result.stderr


@pytest.mark.long
def test_a_job_without_a_single_result_fails_and_tells_why(
    tmp_path: Path, pictures: Path, model: Path
) -> None:
    for picture in pictures.iterdir():
        picture.write_text("no picture")
    (pictures / "0.png").unlink()
    write_image(pictures / "0.png", np.zeros((8, 8, 3), np.float32))
    (pictures / "0.png").write_bytes((pictures / "0.png").read_bytes()[:50])
    out = tmp_path / "out"
    result = uam(*batch(model, pictures, out))
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert (
        error.startswith("all 6 results failed, 5 of them as 1: ") and "is not a picture" in error
    )
    assert "--retry-failed" in error and (out / "index.html").exists()
    assert uam(*batch(model, pictures, out)).exit_code == 0  # nothing is left to do
    write_image(pictures / "0.png", np.zeros((8, 8, 3), np.float32), overwrite=True)
    assert uam(*batch(model, pictures, out, "--retry-failed")).exit_code == 0


def test_processes_join_before_jax_looks_for_devices(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def configure(**options: object) -> None:
        seen.append(f"configured for {options['device']}")
        raise InputError("enough")

    monkeypatch.setattr(backend, "join_processes", lambda *_: seen.append("joined") or (0, 1))
    monkeypatch.setattr(backend, "configure", configure)
    result = uam("batch", pictures, "--target", "x", "--out", tmp_path / "out", "--distributed",
                 "--device", "gpu")  # fmt: skip
    assert "enough" in result.stderr and seen == ["joined", "configured for gpu"]


def test_a_job_from_beginning_to_end(tmp_path: Path, pictures: Path, model: Path) -> None:
    (pictures / "bad.png").write_text("no picture")
    out = tmp_path / "out"
    described = json.loads(uam(*batch(model, pictures, out, "--dry-run")).stdout)
    assert (described["pictures"], described["results"], len(described["faults"])) == (7, 7, 1)
    assert described["evaluations"] == 6 * described["buckets"][0]["evaluations_per_picture"] > 0
    assert described["estimated_seconds"] > 0 and described["estimated_host_memory_gb"] > 0
    assert not out.exists()

    result = uam(*batch(model, pictures, out))
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    assert (made["ok"], made["failed"], made["missing"]) == (6, 1, 0)
    assert "bad.png is not a picture" in result.stderr and "8x8 (6)" in result.stderr
    assert {path.name for path in (out / "images").iterdir()} == {f"{n}.png" for n in range(6)}
    assert (out / "index.html").exists() and (out / "results.parquet").exists()

    again = json.loads(uam(*batch(model, pictures, out)).stdout)
    assert again["made"] == 0
    changed = uam(*batch(model, pictures, out, "--set", "guidance=9"))
    assert changed.exit_code == 2 and "config was" in changed.stderr
    allowed = json.loads(
        uam(*batch(model, pictures, out, "--set", "guidance=9", "--allow-change")).stdout
    )
    assert allowed["made"] == 0
    merged = json.loads(uam("merge", out, "--json").stdout)
    assert (merged["ok"], merged["missing"]) == (6, 0)
    assert uam("merge", tmp_path).exit_code == 2


@pytest.mark.long
def test_a_job_keeps_the_dtype_that_it_began_with(
    tmp_path: Path, pictures: Path, model: Path
) -> None:
    out = tmp_path / "out"
    assert uam(*batch(model, pictures, out, "--dtype", "bfloat16")).exit_code == 0
    assert json.loads((out / "job.json").read_text())["dtype"] == "bfloat16"
    again = uam(*batch(model, pictures, out))
    assert again.exit_code == 0 and json.loads(again.stdout)["made"] == 0
    other = uam(*batch(model, pictures, out, "--dtype", "float32"))
    assert other.exit_code == 2 and 'dtype was "bfloat16"' in other.stderr


def test_sides_are_multiples_of_both_and_a_narrow_picture_is_a_fault(
    tmp_path: Path, pictures: Path, model: Path
) -> None:
    write_image(pictures / "narrow.png", np.zeros((1, 900, 3), np.float32))
    sizes = ("--size", 24, "--multiple", 6, "--dry-run")  # of the model: 4
    described = json.loads(uam(*batch(model, pictures, tmp_path / "out", *sizes)).stdout)
    assert [each["size"] for each in described["buckets"]] == ["24x24"]
    [fault] = described["faults"]
    assert fault.startswith("narrow: ") and "crop it, or give a larger --size" in fault
    result = uam(*batch(model, pictures, tmp_path / "out", "--size", 8, "--multiple", 6))
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "--size 8 is smaller than 12" in json.loads(result.stdout)["error"]


@pytest.mark.long
def test_a_machine_that_is_taken_away_says_how_to_go_on(
    tmp_path: Path, pictures: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Requested(Stop):
        requested = True

        def __init__(self) -> None: ...

    monkeypatch.setattr(batch_run, "Stop", Requested)
    command = batch(model, pictures, tmp_path / "my out")
    monkeypatch.setattr(sys, "argv", ["uam", *map(str, command)])
    result = uam(*command, "--devices", 1)
    assert result.exit_code == 143
    error = json.loads(result.stdout)["error"]
    assert error.startswith("stopped after 2 of 6; to continue: uam batch ")
    monkeypatch.undo()
    [_, again] = error.split("to continue: uam ")
    assert json.loads(uam(*shlex.split(again), "--devices", 1).stdout)["made"] == 4


def test_two_processes_of_which_one_is_killed(tmp_path: Path, pictures: Path, model: Path) -> None:
    """Each process takes its part; another number of processes finishes the part of the killed one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    out, errors = tmp_path / "out", [tmp_path / f"{index}.log" for index in range(2)]
    # One device each, as a host with one accelerator.
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    processes = []
    for index in range(2):
        command = batch(
            model, pictures, out, "--coordinator", address, "--processes", 2, "--process", index
        )
        with errors[index].open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "uam_jax", *map(str, command)],
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env=environment,
                )
            )
    while processes[1].poll() is None and "editing" not in errors[1].read_text():
        time.sleep(0.1)
    processes[1].kill()
    processes[1].wait()
    while not (out / "results.0-of-2.jsonl").exists() and processes[0].poll() is None:
        time.sleep(0.1)
    processes[0].terminate()  # it may be waiting for the other one
    processes[0].wait()
    assert (out / "results.0-of-2.jsonl").exists(), errors[0].read_text()

    first = json.loads(uam("merge", out, "--json").stdout)
    assert 0 < first["ok"] < 6 and first["missing"] == 6 - first["ok"]
    rest = [
        json.loads(uam(*batch(model, pictures, out, "--shard", f"{i}/3")).stdout) for i in range(3)
    ]
    assert sum(part["made"] for part in rest) == first["missing"]
    last = json.loads(uam("merge", out, "--json").stdout)
    assert (last["ok"], last["missing"], last["failed"]) == (6, 0, 0)
    rows = [json.loads(line)["id"] for line in (out / "results.jsonl").read_text().splitlines()]
    assert rows == [str(number) for number in range(6)]


@pytest.mark.slow
def test_a_real_job_killed_twenty_times(tmp_path: Path, model: Path) -> None:
    """Kills a job at random moments, with another number of devices each time; its files equal those of one run."""
    rng = random.Random(0)
    noise = np.random.default_rng(0)
    for number in range(60):
        path = tmp_path / "in" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        shape = (8, 12, 3) if number % 3 == 0 else (8, 8, 3)
        write_image(path, noise.uniform(-1, 1, shape).astype(np.float32))

    def start(out: Path, devices: int) -> subprocess.Popen[bytes]:
        command = batch(model, tmp_path / "in", out, "--devices", devices)
        command[command.index("--no-cache")] = f"--cache-dir={tmp_path / 'cache'}"
        program = [sys.executable, "-m", "uam_jax", *map(str, command)]
        return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    for devices in (1, 2, 4, 8):  # compiles all programs, so that what follows is mostly the job
        assert start(tmp_path / f"whole-{devices}", devices).wait() == 0
    kills = 0
    while kills < 20:
        process = start(tmp_path / "killed", rng.choice([1, 2, 4, 8]))
        before = time.monotonic()
        while process.poll() is None and not (tmp_path / "killed" / "job.json").exists():
            time.sleep(0.01)
        time.sleep(max(rng.uniform(2, 9) - (time.monotonic() - before), rng.uniform(0, 1)))
        if process.poll() is None:
            process.kill()
            kills += 1
        elif (process.wait(), len(list((tmp_path / "killed/images").iterdir()))) == (0, 60):
            # The job has ended too early: random rows of the ledger are removed, and their results are made again.
            ledger = tmp_path / "killed" / "results.jsonl"
            lines = ledger.read_text().splitlines(keepends=True)
            ledger.write_text("".join(line for line in lines if rng.random() < 0.5))
        process.wait()
    assert start(tmp_path / "killed", 1).wait() == 0

    def made(folder: Path) -> dict[str, bytes]:
        parts = ("images", "masks", "originals", "errors")
        return {f"{p}/{f.name}": f.read_bytes() for p in parts for f in (folder / p).iterdir()}

    whole = made(tmp_path / "whole-1")
    assert len(whole) == 240
    for folder in ("whole-2", "whole-4", "whole-8", "killed"):
        assert made(tmp_path / folder) == whole, folder
    rows = [
        json.loads(line) for line in (tmp_path / "killed/results.jsonl").read_text().splitlines()
    ]
    assert [row["id"] for row in rows] == [f"{number:02d}" for number in range(60)]
    assert all(row["status"] == "ok" for row in rows)
