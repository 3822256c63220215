"""A job that goes on: other settings, prompts and versions are refused, and merging tells what is missing."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet
import pytest
from tiny_job import CONFIG, plan_tiny, run_tiny

from uam_jax import EditConfig, Editor, InputError
from uam_jax.io.storage import Folder
from uam_jax.jobs.job import finish_job
from uam_jax.jobs.job_folder import JobFolder
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.plan import JobPlan, JobSettings, plan_job
from uam_jax.method.section import code


def test_other_prompts_under_the_same_ids_are_refused(
    editor: Editor, items: list[Item], tmp_path: Path
) -> None:
    run_tiny(editor, items[:2], tmp_path)
    folder = JobFolder(Folder(str(tmp_path)))

    def plan(items: list[Item]) -> JobPlan:
        settings = JobSettings("tiny", "w", "h", "float32", CONFIG.to_dict(), 8, 4, 2)
        return plan_job(items, [(12, 12)] * len(items), CONFIG, settings)

    folder.refuse_changed(plan(items))
    folder.refuse_changed(plan([replace(items[0], image="moved/0.png")]))
    for key, change in {
        "target": {"targets": ("a red ball",)},
        "given_mask": {"mask": "m.png"},
        "config": {"settings": ("guidance=4",)},
        "image": {"image": "set/other.png"},
    }.items():
        with pytest.raises(InputError, match=f"holds set/1 with {key} .*--allow"):
            folder.refuse_changed(plan([items[0], replace(items[1], **change)]))
    with pytest.warns(UserWarning, match="source prompt is ignored"):
        other = plan([items[0], replace(items[1], source="a cube")])
    with pytest.raises(InputError, match=r"holds set/1 with source .*--allow"):
        folder.refuse_changed(other)


def test_merging_tells_what_is_missing(editor: Editor, items: list[Item], tmp_path: Path) -> None:
    folder = JobFolder(Folder(str(tmp_path)))
    run_tiny(editor, items, tmp_path, shard=(0, 2))
    summary = finish_job(folder)
    assert summary["missing"] == 8 - summary["ok"] - summary["failed"] > 0
    assert summary["first_missing"][0].startswith("set/")
    run_tiny(editor, items, tmp_path, shard=(1, 2))
    assert finish_job(folder)["missing"] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("results.*")}
    finish_job(folder)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("results.*")}
    order = pyarrow.parquet.read_table(tmp_path / "results.parquet").column("id").to_pylist()
    assert order == [name for item in items for name in item.results]
    with pytest.raises(InputError, match="holds no job"):
        finish_job(JobFolder(Folder(str(tmp_path / "images"))))


def test_other_settings_are_refused(editor: Editor, items: list[Item], tmp_path: Path) -> None:
    folder = JobFolder(Folder(str(tmp_path)))
    other = JobSettings("tiny", "weights", "hash", "float32", CONFIG.to_dict(), 8, 4, 2)
    folder.refuse_other(other)  # a new job
    run_tiny(editor, items[:1], tmp_path)
    with pytest.raises(InputError, match=r"weights was \"tiny\", is \"weights\".*--out, or wait"):
        folder.refuse_other(other, ", or wait")


def test_a_job_does_not_go_on_with_other_code_of_the_users(
    editor: Editor, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.updated({"control": "my_module:MyControl"})
    folder = JobFolder(Folder(str(tmp_path)))
    run_tiny(editor, items[:1], tmp_path, config=config)
    before = plan_tiny(editor, items[:2], config)
    assert before.settings.code == {"my_module": code(config)["my_module"]}
    folder.refuse_other(before.settings)
    folder.refuse_changed(before)
    monkeypatch.setattr(type(config.control), "_files", {"my_module": "0123456789abcdef"})
    with pytest.raises(InputError, match=r"code was .*0123.*, with other my_module.*another --out"):
        run_tiny(editor, items[:2], tmp_path, config=config)
    # The rows say it too, of a job whose settings do not.
    with pytest.raises(InputError, match="holds set/0 with config"):
        folder.refuse_changed(plan_tiny(editor, items[:2], config))


def test_a_job_goes_on_by_the_model_not_by_its_name(editor: Editor, tmp_path: Path) -> None:
    config = CONFIG.to_dict()
    folder = JobFolder(Folder(str(tmp_path)))

    def settings(name: str, model_hash: str) -> JobSettings:
        return JobSettings(name, "tiny", model_hash, "float32", config, 8, 4, 2)

    begun = settings("m", "tiny-aaaaaa-bbbbbb-cccccc")
    folder.add_settings(asdict(begun))
    for name in ("./m", "m/", "/somewhere/m"):
        folder.refuse_other(settings(name, begun.model_hash))
    with pytest.raises(InputError, match=r"model_hash was .*, with other scheduler[);]"):
        folder.refuse_other(settings("m", "tiny-aaaaaa-dddddd-cccccc"))
    assert folder.settings["model"] == "m"


def test_the_job_says_what_it_was_begun_with(whole: Path, items: list[Item]) -> None:
    message = json.loads((whole / "job.json").read_text())
    assert EditConfig().updated(message["config"]) == CONFIG and message["batch_per_device"] == 2
    assert [json.loads(line) for line in (whole / "expected.txt").read_text().splitlines()] == [
        name for item in items for name in item.results
    ]


OLD_JOB = """{
 "model": "scenes",
 "weights": "bae3db66225b5b2c",
 "model_hash": "bae3db66225b5b2c-813775-aff2e2-0ec0c3",
 "dtype": "float32",
 "config": {
  "steps": 2,
  "guidance": 2.0,
  "source_context": "null",
  "source": "anchored",
  "auxiliary": "anchored",
  "auxiliary_uniformity": 1.0,
  "preserve": "pixels",
  "inversion": {"uniformity": 0.0, "guidance": 1.0},
  "mask": {
   "rule": "auto", "quantile": 0.5, "t_mask": 21, "radius": 0, "threshold": 0.5,
   "source_line": true, "user": "intersect", "user_from_start": false
  },
  "region": {"inversion": 0.0, "target": 0.0},
  "control": {
   "kind": "none", "step_start": 4, "step_end": 1000, "block_start": 10, "block_end": 1000
  }
 },
 "side": 64,
 "multiple": 64,
 "micro": 4,
 "suffix": null,
 "precision": null
}"""
"""`job.json` as uam_jax 0.1.0 wrote it."""


@pytest.mark.parametrize(
    ("record", "version"),
    [
        (
            json.loads(OLD_JOB),
            r"0\.1 began \(its job.json has format 1, this version reads format 2",
        ),
        (
            {"format": 3, "version": "0.9", "model": "scenes"},
            r"0\.9 began \(its job.json has format 3",
        ),
    ],
)
def test_a_job_of_another_version_is_refused_in_one_sentence_and_stays_as_it_is(
    items: list[Item], tmp_path: Path, record: dict[str, object], version: str
) -> None:
    files = {
        "job.json": json.dumps(record),
        "expected.txt": '"0"\n',
        "sizes.json": '{"0": [64, 64]}',
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    folder = JobFolder(Folder(str(tmp_path)))
    settings = JobSettings("scenes", "w", "h", "float32", CONFIG.to_dict(), 64, 64, 4)
    plan = plan_job(items[:1], [(12, 12)], CONFIG, settings)
    for refuse in (
        folder.check,
        lambda: folder.begin(plan),
        lambda: folder.begin(plan, allow_change=True),
        lambda: folder.add_settings({"chunk": 16}),
        lambda: finish_job(folder),
    ):
        with pytest.raises(InputError, match=f"holds a job that uam_jax {version}") as refused:
            refuse()
        message = str(refused.value)
        assert (
            message.startswith(f"{tmp_path} ")
            and "finish it with that version, or begin" in message
        )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files
