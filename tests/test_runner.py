"""The engine: exactly once through kills, out of memory, failures and requests to stop."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import job_stand_in
import pytest
from job_stand_in import Numbers, Squares, numbers

from uam_jax.ledger import Ledger, read_rows
from uam_jax.runner import Progress, Stop, TooManyFailures, run
from uam_jax.storage import Folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


def lines(folder: Path) -> list[str]:
    return [
        line for path in folder.glob("results*.jsonl") for line in path.read_text().splitlines()
    ]


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, job_stand_in.__file__, str(folder), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


def end(process: subprocess.Popen[str]) -> str:
    """Waits for a process that ends well, and returns what it said."""
    with process:
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0 and output.startswith("made ")
    return output


def test_every_result_is_written_and_entered(tmp_path: Path) -> None:
    seen: list[Progress] = []
    folder = Folder(str(tmp_path))
    progress = run(
        numbers(22), Squares(), folder, Ledger(folder), total=22,
        report=lambda progress: seen.append(Progress(**vars(progress))),
    )  # fmt: skip
    assert (progress.done, progress.failed) == (22, 2) and len(seen) == 6
    assert progress.left == 0 and seen[0].left
    assert contents(tmp_path)["007.txt"] == b"49" * 1000 and "009.txt" not in contents(tmp_path)
    assert read_rows(folder)["009"]["reason"] == "ends with 9"


def test_memory_that_does_not_suffice_halves_a_bucket_once(tmp_path: Path) -> None:
    said: list[str] = []
    folder = Folder(str(tmp_path))
    worker = Squares(fits=3)
    run(numbers(24, 8), worker, folder, Ledger(folder), total=24, say=said.append)
    assert len(read_rows(folder)) == 24
    assert [message.split(":")[0] for message in said] == [
        "out of memory with 8 pictures of numbers per device",
        "out of memory with 4 pictures of numbers per device",
    ]
    assert {row["batch"] for row in read_rows(folder).values() if row["status"] == "ok"} == {2}


def test_an_odd_batch_is_cut_until_it_fits(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    run(numbers(7, 7), Squares(fits=1), folder, Ledger(folder), total=7)
    assert {row["status"] for row in read_rows(folder).values()} == {"ok"}


def test_a_picture_too_large_alone_fails(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    run(numbers(4, 2), Squares(fits=0), folder, Ledger(folder), total=4)
    rows = read_rows(folder).values()
    assert len(rows) == 4 and all("out of memory at numbers" in row["reason"] for row in rows)


def test_other_errors_are_not_swallowed(tmp_path: Path) -> None:
    class Broken(Squares):
        def outcome(self, value: int, micro: int):
            raise ZeroDivisionError(value)

    folder = Folder(str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        run(numbers(8), Broken(), folder, Ledger(folder), total=8)
    assert not read_rows(folder)


def test_too_many_failures_stop_the_job_and_lose_nothing(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with pytest.raises(TooManyFailures, match="2 results failed, 1 may; the last: 019"):
        run(numbers(100), Squares(), folder, Ledger(folder), total=100, max_failures=1)
    rows = read_rows(folder)
    assert 20 <= len(rows) <= 28
    assert sorted(f"{name}.txt" for name, row in rows.items() if row["status"] == "ok") == list(
        contents(tmp_path)
    )


def test_a_request_to_stop_finishes_the_batch_in_hand(tmp_path: Path) -> None:
    folder, stop = Folder(str(tmp_path)), Stop()

    class Stopping(Squares):
        def compute(self, batch: Numbers):
            stop.requested = batch.values[0] == 8
            return super().compute(batch)

    progress = run(numbers(40), Stopping(), folder, Ledger(folder), total=40, stop=stop)
    assert progress.done == 12 == len(read_rows(folder))


def test_sigterm_is_a_request_to_stop(tmp_path: Path) -> None:
    process = start(tmp_path, 400)
    while not (tmp_path / "results.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output = end(process)
    assert int(output.split()[1]) == len(lines(tmp_path)) < 400


def kill_until_done(folder: Path, count: int, kills: int, seed: int) -> None:
    """Kills -9 at random moments, goes on with changing shards, and lets the last run end."""
    rng = random.Random(seed)
    for _ in range(kills):
        shards = rng.choice([1, 2, 3])
        process = start(folder, count, rng.randrange(shards), shards)
        time.sleep(rng.uniform(0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    end(start(folder, count))


def test_killed_anywhere_each_result_is_there_once(tmp_path: Path) -> None:
    count = 120
    job_stand_in.main(str(tmp_path / "whole"), count, pause=0)
    kill_until_done(tmp_path / "killed", count, kills=6, seed=0)
    ids = [line.split('"')[3] for line in lines(tmp_path / "killed")]
    assert sorted(ids) == [f"{value:03d}" for value in range(count)]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
