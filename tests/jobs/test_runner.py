"""The engine: exactly once through kills, out of memory, failures and requests to stop."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import job_stand_in
import pytest
from job_stand_in import Numbers, Squares, numbers

from uam_jax.errors import InputError
from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import Ledger, read_rows
from uam_jax.jobs.runner import (
    Monitor,
    NothingWorks,
    Outcome,
    Progress,
    Stop,
    TooManyFailures,
    run,
)


def contents(folder: Path) -> dict[str, bytes]:
    """The results; what a killed process had begun to write is left for an hour."""
    return {path.name: path.read_bytes() for path in sorted((folder / "images").glob("[0-9]*"))}


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
        numbers(22), Squares(), Ledger(folder), total=22,
        monitor=Monitor(report=lambda progress: seen.append(Progress(**vars(progress)))),
    )  # fmt: skip
    assert (progress.done, progress.failed) == (22, 2) and len(seen) == 6
    assert progress.left == 0 and seen[0].left
    assert contents(tmp_path)["007.txt"] == b"49" * 1000 and "009.txt" not in contents(tmp_path)
    assert read_rows(folder)["009"]["reason"] == "ends with 9"


def test_memory_that_does_not_suffice_halves_a_bucket_once(tmp_path: Path) -> None:
    said: list[str] = []
    folder = Folder(str(tmp_path))
    worker = Squares(fits=3)
    run(numbers(24, 8), worker, Ledger(folder), total=24, monitor=Monitor(say=said.append))
    assert len(read_rows(folder)) == 24
    assert [message.split(":")[0] for message in said] == [
        "out of memory with 8 pictures of numbers per device",
        "out of memory with 4 pictures of numbers per device",
    ]
    assert {row["batch"] for row in read_rows(folder).values() if row["status"] == "ok"} == {2}


def test_an_odd_batch_is_cut_until_it_fits(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    run(numbers(7, 7), Squares(fits=1), Ledger(folder), total=7)
    assert {row["status"] for row in read_rows(folder).values()} == {"ok"}


def test_a_picture_too_large_alone_fails(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    run(numbers(4, 2), Squares(fits=0), Ledger(folder), total=4)
    rows = read_rows(folder).values()
    assert len(rows) == 4 and all("out of memory at numbers" in row["reason"] for row in rows)


@dataclass
class Faulty(Squares):
    """Raises at some numbers, when it computes or on the host."""

    bad: frozenset[int] = frozenset()
    on_host: bool = False
    error: type[Exception] = ZeroDivisionError
    computed: list[tuple[int | None, ...]] = field(default_factory=list)

    def compute(self, batch: Numbers) -> Callable[[], list[Outcome]]:
        self.computed.append(batch.values)
        finish = super().compute(batch)

        def fail() -> list[Outcome]:
            raise self.error(f"{batch.values}\nmore")

        if not self.bad & set(batch.values):
            return finish
        return fail if self.on_host else fail()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("error", [ZeroDivisionError, InputError])
def test_an_error_fails_its_own_picture_alone(
    tmp_path: Path, on_host: bool, error: type[Exception]
) -> None:
    folder, said = Folder(str(tmp_path)), []
    worker = Faulty(bad=frozenset({1, 6}), on_host=on_host, error=error)
    progress = run(numbers(8), worker, Ledger(folder), total=8, monitor=Monitor(say=said.append))
    rows = read_rows(folder)
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {"001", "006"}
    assert len(rows) == 8 and (progress.done, progress.failed) == (8, 2)
    own = "(None, 1, None, None)"
    message = f"{own}\nmore" if error is InputError else f"ZeroDivisionError: {own}"
    assert rows["001"]["reason"] == message
    # Every picture stays in its slot of a batch of the same size, so that nothing new compiles.
    assert (None, None, None, 3) in worker.computed and {len(v) for v in worker.computed} == {4}
    assert len(said) == 2 and "tried one by one" in said[0]
    assert len(lines(tmp_path)) == 8


@pytest.mark.parametrize("on_host", [False, True])
def test_three_batches_that_fail_at_every_picture_stop_the_job_and_have_no_rows(
    tmp_path: Path, on_host: bool
) -> None:
    folder = Folder(str(tmp_path))
    broken = Faulty(bad=frozenset(range(4, 40)), on_host=on_host)
    with pytest.raises(NothingWorks, match="3 batches in a row .* ZeroDivisionError.*same command"):
        run(numbers(40), broken, Ledger(folder), total=40)
    assert sorted(read_rows(folder)) == ["000", "001", "002", "003"]
    job_stand_in.main(str(tmp_path), 40, pause=0)
    assert len(read_rows(folder)) == 40 == len(lines(tmp_path))


def test_two_such_batches_are_their_pictures_fault(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    worker = Faulty(bad=frozenset({*range(8), *range(12, 20)}))
    progress = run(numbers(20), worker, Ledger(folder), total=20)
    assert (progress.done, progress.failed) == (20, 17)
    assert [row["status"] for row in read_rows(folder).values()].count("ok") == 3


def test_faults_of_the_input_never_stop_a_job(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    worker = Faulty(bad=frozenset(range(40)), error=InputError)
    progress = run(numbers(40), worker, Ledger(folder), total=40)
    assert progress.failed == 40 == len(read_rows(folder))


def test_a_stop_leaves_what_may_work_later(tmp_path: Path) -> None:
    folder, stop = Folder(str(tmp_path)), Stop()
    stop.requested = True
    run(
        numbers(8),
        Faulty(bad=frozenset(range(8))),
        Ledger(folder),
        total=8,
        monitor=Monitor(stop=stop),
    )
    assert not read_rows(folder)


def test_results_of_earlier_runs_are_not_computed_again_one_by_one(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    worker = Faulty(bad=frozenset({1}), wanted=frozenset({"000", "001"}))
    run(numbers(4), worker, Ledger(folder), total=2)
    assert sorted(read_rows(folder)) == ["000", "001"] and len(worker.computed) == 3


def test_memory_may_run_out_when_pictures_are_tried_one_by_one(tmp_path: Path) -> None:
    @dataclass
    class Tight(Faulty):
        def compute(self, batch: Numbers) -> Callable[[], list[Outcome]]:
            self.fits = 1000 if len(self.computed) < 1 else 2
            return super().compute(batch)

    folder = Folder(str(tmp_path))
    run(numbers(8), Tight(bad=frozenset({1})), Ledger(folder), total=8)
    rows = read_rows(folder)
    assert len(rows) == 8 and [k for k, row in rows.items() if row["status"] != "ok"] == ["001"]


def test_errors_of_the_folder_are_no_pictures_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))

    def fail(name: str, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write", fail)
    with pytest.raises(OSError, match="No space"):
        run(numbers(8), Squares(), Ledger(folder), total=8)
    assert not read_rows(folder)


def test_too_many_failures_stop_the_job_and_lose_nothing(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with pytest.raises(TooManyFailures, match="2 results failed, 1 may; the last: 019"):
        run(numbers(100), Squares(), Ledger(folder), total=100, monitor=Monitor(max_failures=1))
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

    progress = run(numbers(40), Stopping(), Ledger(folder), total=40, monitor=Monitor(stop=stop))
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
