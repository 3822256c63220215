"""`uam plan`: a GPU's plan from beginning to end, a TPU's with an invented compiler, and what is refused."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import pytest
from checkpoint_files import write_checkpoint
from program import uam

from uam_jax import EditConfig, Editor
from uam_jax.engine.parallel import Devices
from uam_jax.evaluation import forecast, tpu_topology
from uam_jax.evaluation.chips import CHIPS
from uam_jax.evaluation.forecast import Target, job_cost, largest_batch
from uam_jax.evaluation.forecast_report import as_files

STEPS = ("--set", "steps=3")
INVERT = (*STEPS, "--task", "invert")
"""The fewest programs."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, scale=1 / 16)
    return folder


def planned(folder: Path, *options: object) -> dict[str, Any]:
    result = uam("plan", "--out", folder, *options)
    assert result.exit_code == 0, result.stderr
    assert "estimated, not measured" in result.stdout
    record = json.loads((folder / "plan.json").read_text())
    assert {*as_files(record)} <= {each.name for each in folder.iterdir()}
    return record


def test_a_gpu_is_planned_by_its_roofline(model: Path, tmp_path: Path) -> None:
    options = ("--for", "h100", "--model", model, *STEPS, "--batch", 2, "--targets", 2)
    record = planned(tmp_path, *options, "--images", 1000, "--price", 3)
    [entry] = record["cases"]
    [row] = entry["rows"]
    assert entry["case"]["dtype"] == "bfloat16" and record["estimated"]
    editor = Editor.load(model)
    config = EditConfig().overridden(["steps=3"])
    assert row["images"] == 4
    assert row["evaluations"] * 2 == editor.evaluations(config, targets=2)
    programs = entry["programs"]
    assert sum(each["calls"] * each["evaluations"] for each in programs) == 4 * row["evaluations"]
    seconds = sum(each["calls"] * sum(each["seconds"].values()) for each in programs)
    assert (
        row["seconds"]
        == pytest.approx(seconds)
        == pytest.approx(sum(row["seconds_by_kind"].values()))
    )
    assert row["images_per_second"] == pytest.approx(4 / seconds)
    assert 0 < row["share_of_peak"] < 1
    assert "memory" not in row and "collectives" not in row  # nothing was compiled
    [job] = record["jobs"]
    assert job["chip_hours"] == pytest.approx(1000 * seconds / 4 / 3600)
    assert job["cost"] == pytest.approx(3 * job["chip_hours"])


@pytest.mark.long
def test_an_older_gpu_is_planned_in_float16_and_is_slower(model: Path, tmp_path: Path) -> None:
    rates = {}
    for name in ("t4", "a100"):
        record = planned(tmp_path / name, "--for", name, "--model", model, *STEPS)
        rates[record["cases"][0]["case"]["dtype"]] = record["cases"][0]["rows"][0][
            "images_per_second"
        ]
    assert rates["float16"] < rates["bfloat16"] / 3


def outcome(cycles: int, temporary: int = 1000) -> dict[str, Any]:
    """An invented result of the TPU's compiler."""
    return {
        "compile_seconds": 1.0,
        "bytes": {
            "argument": 0, "weights": 0, "output": 0, "alias": 0, "temporary": temporary, "code": 0,
        },
        "cycles": {"products": cycles, "copies": cycles},
        "kernels": [],
        "collectives": {},
        "unknown_loops": 0,
    }  # fmt: skip


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs that a stand-in for the TPU's compiler gets, with this machine's devices in place of TPUs."""
    calls: list[Any] = []

    def compile_for(lowered: Any) -> dict[str, Any]:
        calls.append(lowered)
        return outcome(1_000_000, temporary=10**9 * sum(arg.shape[0] for arg in _batched(lowered)))

    monkeypatch.setattr(tpu_topology, "absent_tpus", lambda name: Devices.local(4))
    monkeypatch.setattr(forecast, "compile_for", compile_for)
    return calls


def _batched(lowered: Any) -> list[Any]:
    """The pictures or latents of a program's arguments: those with four sides, but for the weights."""
    arrays, _ = lowered.args_info
    return [leaf for leaf in jax.tree.leaves(arrays[1:]) if len(leaf.shape) == 4][:1]


@pytest.mark.long
def test_tpus_are_planned_by_their_compiler(
    model: Path, tmp_path: Path, compiled: list[Any]
) -> None:
    options = ("--for", "v5e:2x2", "--model", model, *INVERT, "--batch", 1, "--batch", 3)
    record = planned(tmp_path, *options)
    small, large = record["cases"]
    [row] = large["rows"]
    runs = sum(each["calls"] for each in large["programs"])
    clock = CHIPS["v5e"].clock
    assert clock and row["seconds"] == pytest.approx(runs * 2_000_000 / clock)
    assert row["seconds_by_kind"]["products"] == pytest.approx(row["seconds"] / 2)
    assert row["images"] == 12 and large["machine"]["chips"] == 4
    assert row["images_per_second"] == pytest.approx(12 / row["seconds"])
    assert row["images_per_second_per_chip"] == pytest.approx(3 / row["seconds"])
    assert row["collectives"] == {}
    # The largest program holds a gigabyte for each of all devices' pictures here, and a chip has 16.
    assert record["fits"]["batch"] == 3 and "modelled" in record["fits"]["of"]
    assert record["fits"]["bytes_per_picture"] == pytest.approx(4e9)
    count = len(compiled)
    # The null prompt's program is one for all batches.
    assert count == len({each["key"] for each in small["programs"] + large["programs"]}) == 3
    again = planned(tmp_path, *options)
    assert len(compiled) == count and again["cases"] == record["cases"]


@pytest.mark.long
def test_the_largest_batch_is_compiled_if_asked_for(
    model: Path, tmp_path: Path, compiled: list[Any]
) -> None:
    options = ("--for", "v5e:2x2", "--model", model, *INVERT, "--batch", 1, "--batch", 2)
    record = planned(tmp_path, *options, "--verify")
    assert [entry["case"]["batch"] for entry in record["cases"]] == [1, 2, 3]
    assert record["fits"]["batch"] == 3 and record["fits"]["compiled"]
    assert "; compiled: it fits" in (tmp_path / "plan.md").read_text()


def test_what_the_compiler_does_not_say_is_left_out(
    model: Path, tmp_path: Path, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = {key: value for key, value in outcome(1).items() if key not in ("cycles", "bytes")}
    monkeypatch.setattr(forecast, "compile_for", lambda lowered: silent)
    record = planned(tmp_path, "--for", "v6e:2x2", "--model", model, *INVERT)
    [row] = record["cases"][0]["rows"]
    assert {*row} == {"task", "images", "evaluations", "tflop", "tflop_per_image", "collectives"}
    assert "| – |" in (tmp_path / "plan.md").read_text()


def test_a_program_that_does_not_fit_is_told(
    model: Path, tmp_path: Path, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "compile_for", lambda lowered: {"refused": "Ran out of HBM"})
    result = uam("plan", "--for", "v5e:2x2", "--model", model, *INVERT, "--out", tmp_path)
    assert result.exit_code == 2 and "v5e:2x2: " in result.stderr and "out of HBM" in result.stderr
    assert "it does not compile: condition: Ran out of HBM" in (tmp_path / "plan.md").read_text()


def test_an_estimate_is_shown_over_what_was_measured(model: Path, tmp_path: Path) -> None:
    options = ("--for", "h100", "--model", model, *INVERT)
    record = planned(tmp_path / "plan", *options)
    [entry] = record["cases"]
    rate = entry["rows"][0]["images_per_second"]
    measured = {
        "format": 1,
        "cases": [
            {
                "case": entry["case"],
                "machine": entry["machine"],
                "model": entry["model"],
                "rows": [
                    {"task": task, "images_per_second": rate / 4} for task in ("edit", "invert")
                ],
            }
        ],
    }
    (tmp_path / "bench.json").write_text(json.dumps(measured))
    record = planned(tmp_path / "again", *options, "--measured", tmp_path)
    [found] = record["measured"]
    assert found["ratio"] == pytest.approx(4)
    assert "estimate ÷ measured = 4.00" in (tmp_path / "again" / "plan.md").read_text()
    # Beside each other, the plan's column says that it is estimated, and nothing was compiled there.
    compared = uam("bench", "compare", tmp_path, tmp_path / "plan", "--out", tmp_path / "two.md")
    assert compared.exit_code == 0, compared.stderr
    table = (tmp_path / "two.md").read_text()
    assert "2. plan: gpu, bfloat16, estimated" in table and "| 1.00 | 4.00 |" in table
    assert "| – | – |" in table
    # Another size is other work.
    measured["cases"][0]["model"] = entry["model"] | {"size": 640}
    (tmp_path / "bench.json").write_text(json.dumps(measured))
    assert planned(tmp_path / "other", *options, "--measured", tmp_path)["measured"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--for"),
        (("--for", "abacus"), "--for abacus: choose a topology of TPUs such as v5e:2x2"),
        (("--for", "v5e"), "name the topology of the TPUs, such as v5e:2x2"),
        (("--for", "t4", "--dtype", "bfloat16"), "a Tesla T4 does not multiply it: choose auto"),
        (("--for", "h100", "--task", "train"), "--task train: choose invert, edit, batch"),
        (("--for", "h100", "--shape", "sdxl"), "--shape sdxl: choose sd15, sd21"),
        (("--for", "h100", "--shape", "sd15", "--model", "scenes"), "give one of them"),
        (("--for", "h100", "--price", "2"), "give its --images, too"),
        (("--for", "h100", "--set", "guidance=2x"), "guidance"),
        (("--for", "h100", "--measured", "no/where"), "no/where"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = uam("plan", "--out", tmp_path / "out", *options)
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "out" / "plan.json").exists()


def test_without_libtpu_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: None if name == "libtpu" else find(name, *args),
    )
    result = uam("plan", "--for", "v5e:2x2", "--out", tmp_path)
    assert result.exit_code == 2 and "pip install 'uam_jax[tpu-plan]'" in result.stderr


def entry_of(batch: int, gigabytes: float) -> dict[str, Any]:
    return {
        "case": {"batch": batch},
        "rows": [{"memory": {"gigabytes": gigabytes, "weights": 2.5}}],
    }


def test_the_largest_batch_lies_on_a_line() -> None:
    target = Target(CHIPS["v5e"])
    fits = largest_batch([entry_of(2, 4.0), entry_of(6, 6.0)], target)
    assert fits and fits["batch"] == 26 and fits["bytes_per_picture"] == 0.5e9
    one = largest_batch([entry_of(2, 4.0)], target)
    assert one and one["batch"] == 18 and one["bytes_per_picture"] == 0.75e9
    assert "beside the weights" in one["of"]
    assert largest_batch([{"case": {"batch": 2}, "rows": [{}]}], target) is None
    over = largest_batch([entry_of(1, 20.0), entry_of(2, 30.0)], target)
    assert over and over["batch"] == 0


def test_a_job_costs_its_chip_hours() -> None:
    row = {"images_per_second_per_chip": 0.5}
    assert job_cost(row, 3600, None) == {"images": 3600, "chip_hours": 2.0}
    assert job_cost(row, 3600, 1.5)["cost"] == 3.0
