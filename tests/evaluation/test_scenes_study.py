"""Scenes-Bench on a tiny random model: its scores, its resumption after a stop, and its summary."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_editor
from typer.testing import CliRunner

from uam_jax import EditConfig, Editor, InputError
from uam_jax.cli import main
from uam_jax.cli.eval_methods import read_methods
from uam_jax.cli.eval_report import as_files, as_markdown, best_median_worst
from uam_jax.evaluation import metrics
from uam_jax.evaluation.scenes_bench import Items, draw_items, render_truth
from uam_jax.evaluation.scenes_study import ScenesStudy
from uam_jax.evaluation.scores import score_edits, summarise
from uam_jax.evaluation.study import Chunk
from uam_jax.io.images import read_image
from uam_jax.io.storage import Folder
from uam_jax.jobs.ledger import Row, read_rows
from uam_jax.jobs.runner import Monitor, Progress, Stop

CONFIG = EditConfig().updated({"steps": 2, "mask": {"t_mask": 600}, "control": "none"})
METHODS = {"plain": CONFIG, "auto": CONFIG.updated({"mask": {"rule": "auto"}})}


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    return tiny_editor(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def items() -> Items:
    return draw_items().select(["tune"], 5)


def study(editor: Editor, items: Items, **changes: object) -> ScenesStudy:
    return ScenesStudy(editor, METHODS, items, **{"chunk": 2, **changes})


def close(a: Row, b: Row) -> None:
    assert a.keys() == b.keys()
    for name, value in a["figures"].items():
        other = b["figures"][name]
        assert (value is None) == (other is None), name
        if value is not None:
            np.testing.assert_allclose(value, other, rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.fixture(scope="module")
def finished(editor: Editor, items: Items, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("finished")))
    progress = study(editor, items).run(folder)
    assert (progress.done, progress.failed) == (10, 0)
    return folder


@pytest.mark.long
def test_every_method_has_a_row_for_every_item(
    editor: Editor, items: Items, finished: Folder
) -> None:
    rows = study(editor, items).rows(finished)
    assert [row["id"] for row in rows] == [
        f"{name}/{item}" for name in METHODS for item in items.ids
    ]
    for row in rows:
        assert row["status"] == "ok"
        # The first two of five have the compilation in their time.
        assert row["seconds"] is None if row["item"] in items.ids[:2] else row["seconds"] > 0
        assert row["evaluations"] == editor.evaluations(METHODS[row["method"]])
        assert 0 <= row["confidence"] <= 1 and row["review"]
        for name in ("output", "mask", "preview", "answer"):
            assert Path(finished.path(row[name])).is_file()


@pytest.mark.long
def test_figures_are_those_of_the_pictures(editor: Editor, items: Items, finished: Folder) -> None:
    row = study(editor, items).rows(finished)[0]
    source, made, answer = (
        read_image(Path(finished.path(row[name]))).pixels[None]
        for name in ("preview", "output", "answer")
    )
    where = np.abs(source - answer).max(-1) > 0.04
    # Files have 8 bits; the figures were taken before.
    found = metrics.psnr(made, source, ~where)[0]
    assert row["figures"]["background_psnr"] == pytest.approx(found, abs=0.3)
    assert row["figures"]["answer_psnr"] == pytest.approx(metrics.psnr(made, answer)[0], abs=0.3)


@pytest.mark.long
def test_a_run_that_was_stopped_goes_on(
    editor: Editor, items: Items, finished: Folder, tmp_path: Path
) -> None:
    stop, folder = Stop(), Folder(str(tmp_path))

    def ask(progress: Progress) -> None:
        stop.requested = progress.done >= 2

    first = study(editor, items).run(folder, Monitor(report=ask, stop=stop))
    assert first.done < 10
    second = study(editor, items).run(folder)
    assert first.done + second.done == 10
    assert study(editor, items).run(folder).total == 0
    for a, b in zip(
        study(editor, items).rows(folder),
        study(editor, items).rows(finished),
        strict=True,
    ):
        close(a, b)


def test_more_items_may_follow_but_other_settings_may_not(
    editor: Editor, items: Items, tmp_path: Path
) -> None:
    folder = Folder(str(tmp_path))
    few = dataclasses.replace(study(editor, items.take([0, 1])), methods={"plain": CONFIG})
    few.run(folder)
    before = read_rows(folder)
    assert study(editor, items).run(folder).total == 8
    assert before.items() <= read_rows(folder).items()
    other = {"plain": CONFIG.updated({"guidance": 2.0})}
    with pytest.raises(InputError, match="method plain was"):
        dataclasses.replace(few, methods=other).run(folder)
    with pytest.raises(InputError, match="shared_inversions was false, is true"):
        study(editor, items, share=True).run(folder)


@pytest.mark.long
def test_shared_inversions_change_nothing_but_seconds(
    editor: Editor, items: Items, finished: Folder, tmp_path: Path
) -> None:
    shared = study(editor, items, share=True)
    folder = Folder(str(tmp_path))
    shared.run(folder)
    for a, b in zip(shared.rows(folder), study(editor, items).rows(finished), strict=True):
        assert a["seconds"] is None
        close(a, b)


@pytest.mark.long
def test_the_exact_mask_stands_for_the_users(editor: Editor, items: Items, tmp_path: Path) -> None:
    config = CONFIG.updated({"mask": {"user": "replace", "user_from_start": True}})
    given = ScenesStudy(editor, {"given": config}, items.take([0, 1]), chunk=2)
    folder = Folder(str(tmp_path))
    given.run(folder)
    for row in given.rows(folder):
        mask = read_image(Path(folder.path(row["mask"]))).pixels[..., 0]
        answer, source = (
            read_image(Path(folder.path(row[name]))).pixels for name in ("answer", "preview")
        )
        where = np.abs(source - answer).max(-1) > 0.04
        if where.any():
            assert mask[where].mean() > mask[~where].mean()


def test_chunks_split_and_pad() -> None:
    chunk = Chunk("plain", (4, 5, 6), 5)
    assert chunk.padded == (4, 5, 6, 6, 6)
    assert [(half.rows, half.batch_per_device) for half in chunk.halves()] == [
        ((4, 5), 2),
        ((6,), 3),
    ]
    assert Chunk("plain", (1,), 4).halves()[1].rows == ()


def test_scores_of_the_exact_answer_are_perfect(items: Items) -> None:
    truth = render_truth(items, 32)
    scores = score_edits(truth.answers, truth.region.astype(np.float32), truth)
    changed = truth.region.any((1, 2))
    assert scores["success"].all()
    np.testing.assert_allclose(scores["edit_psnr"][changed], 100)
    assert np.isnan(scores["edit_psnr"][~changed]).all()
    assert (scores["background_psnr"] > 40).all()  # Changes below the threshold remain.
    nothing = score_edits(truth.sources, np.zeros_like(truth.region, np.float32), truth)
    np.testing.assert_allclose(nothing["background_psnr"], 100)
    assert (nothing["success"][changed] == 0).all()
    np.testing.assert_allclose(nothing["mask_iou"][changed], 0)


def rows_of(method: str, count: int) -> list[Row]:
    return [
        {
            "id": f"{method}/{i}", "item": str(i), "method": method, "status": "ok", "reason": None,
            "kind": "colour" if i % 2 else "light", "seconds": None, "evaluations": 220,
            "source": "a", "target": "b", "output": "o.png", "preview": "p.png", "mask": "m.png",
            "figures": {
                "success": float(i >= count // 2), "background_psnr": 20.0 + i,
                "vae_background_psnr": 30.0, "answer_psnr": float(i), "edit_psnr": None,
            },
        }
        for i in range(count)
    ]  # fmt: skip


def test_the_summary_is_means_by_method_and_kind() -> None:
    failed = {
        "id": "a/9",
        "method": "a",
        "kind": "light",
        "status": "failed",
        "reason": "no memory",
    }
    rows = rows_of("a", 8)
    for row, seconds in zip(rows[2:], (1.0, 1.0, 1.0, 1.0, 2.0, 2.0), strict=True):
        row["seconds"] = seconds
    for row, kept in zip(rows, (30.0, 34.0, *[100.0] * 6), strict=True):
        row["figures"]["kept_background_psnr"] = kept
    found = summarise([*rows, failed, *rows_of("b", 4)])
    assert (found["a"]["items"], found["a"]["failed"], found["b"]["items"]) == (9, 1, 4)
    overall = found["a"]["overall"]
    assert overall["background_psnr"][0] == pytest.approx(23.5)
    assert overall["background_gap"][0] == pytest.approx(6.5)
    assert overall["background_gap"][1] < 6.5 < overall["background_gap"][2]
    assert overall["edit_psnr"] == [None] * 3
    # Equal pictures have no PSNR.
    assert overall["kept_background_psnr"] == [32, 30, 34]
    # Of two chunks, whatever they hold; the first was not timed.
    assert overall["seconds"] == [1.5, 1, 2] and found["b"]["overall"]["seconds"] == [None] * 3
    assert found["a"]["kinds"]["colour"]["background_psnr"][0] == pytest.approx(24)


def test_the_files_of_a_summary() -> None:
    rows = [*rows_of("a", 8), *rows_of("b", 8)]
    summary = {"facts": {"benchmark": "Scenes-Bench", "model": "m"}, "methods": summarise(rows)}
    text = as_markdown(summary)
    assert "| a | 50 [" in text and "| colour | 50 / 24.0 | 50 / 24.0 |" in text
    files = as_files(rows, summary)
    assert json.loads(files["summary.json"])["methods"].keys() == {"a", "b"}
    for name in ("success-background.png", "success-by-kind.png", "background-psnr-by-kind.png"):
        assert files[name].startswith(b"\x89PNG")
    assert files["index.html"]


def test_best_median_and_worst_are_told_apart() -> None:
    shown = best_median_worst(rows_of("a", 20))
    names = [row["id"] for row in shown]
    assert names[0] == "a, best 1: 19" and "a, worst 1: 0" in names
    assert [row["item"] for row in shown if "median" in row["id"]] == ["11", "10", "9", "8"]


def test_methods_are_presets_files_and_studies(editor: Editor, tmp_path: Path) -> None:
    table = tmp_path / "study.toml"
    table.write_text(
        '[methods."more steps"]\nset = ["steps=60"]\n[methods.base]\nconfig = "released"\n'
    )
    single = tmp_path / "mine.toml"
    single.write_text("guidance = 2.0\n")
    methods = read_methods(f"released, {table},{single}")
    found = {name: settings.of(editor) for name, settings in methods.items()}
    assert list(found) == ["released", "more steps", "base", "mine"]
    assert found["more steps"].steps == 60 and found["mine"].guidance == 2
    assert found["base"] == EditConfig.load("released")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[methods.a]\nconfg = 'default'\n", r"\[methods.a\] has confg"),
        ("[methods.a]\nset = ['steps=0']\n", "steps is 0"),
        ("[methods.'a/b']\n", "the method's name 'a/b'"),
        ("[methods", "study.toml"),
        ("methods = 3\n", r"study.toml: methods is not a table.*\[methods.NAME\]"),
        ("[methods]\na = 'default'\n", r"write \[methods.NAME\]"),
        ("[methods.a]\nset = 'steps=20'\n", "set a list of texts"),
        ("[methods.a]\nconfig = 3\n", "config must be a text"),
    ],
)
def test_bad_studies_are_named(tmp_path: Path, text: str, says: str) -> None:
    table = tmp_path / "study.toml"
    table.write_text(text)
    with pytest.raises(InputError, match=says):
        read_methods(str(table))
    with pytest.raises(InputError, match="names no method"):
        read_methods(" , ")


def test_two_methods_of_one_name_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "study.toml"
    table.write_text("[methods.released]\n")
    (tmp_path / "default.toml").write_text("guidance = 2.0\n")
    for names in (f"released,{table}", f"default,{tmp_path}/default.toml"):
        with pytest.raises(InputError, match="two methods are called"):
            read_methods(names)


def test_an_edit_that_needs_too_much_memory_is_a_failed_row_of_the_summary(
    editor: Editor, items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(Editor, "edit_prepared", full)
    one = ScenesStudy(editor, {"plain": CONFIG}, items.take([0, 1]), chunk=2)
    folder = Folder(str(tmp_path))
    assert one.run(folder).failed == 2
    summary = {"facts": {"benchmark": "b"}, "methods": summarise(one.rows(folder))}
    assert summary["methods"]["plain"]["failed"] == 2
    assert "index.html" in as_files(one.rows(folder), summary)


def test_a_picture_that_is_not_finite_is_a_failed_row(
    editor: Editor, items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Editor.edit_prepared

    def broken(self: Editor, *args: object, **options: object) -> object:
        result = plain(self, *args, **options)
        return dataclasses.replace(result, images=result.images.at[1].set(np.nan))

    monkeypatch.setattr(Editor, "edit_prepared", broken)
    one = ScenesStudy(editor, {"plain": CONFIG}, items.take([0, 1]), chunk=2)
    folder = Folder(str(tmp_path))
    one.run(folder)
    good, bad = one.rows(folder)
    assert (good["status"], bad["status"]) == ("ok", "failed") and "not finite" in bad["reason"]
    assert best_median_worst([good, bad])[-1]["status"] == "failed"


def test_from_the_command_line(
    editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Editor, "load", lambda *_, **__: editor)
    table = tmp_path / "study.toml"
    table.write_text('[methods.few]\nconfig = "released"\nset = ["steps=2", "control=none"]\n')
    options = ["--methods", table, "--third", "tune", "--n", 2, "--chunk", 2, "--no-cache"]
    arguments = ["eval", "scenes", *options, "--out", tmp_path / "out", "--json"]
    run = CliRunner().invoke(main.app, [str(argument) for argument in arguments])
    assert run.exit_code == 0, run.stderr
    summary = json.loads(run.stdout)
    assert summary["methods"][0]["method"] == "few" and summary["failed"] == 0
    assert {"summary.md", "summary.json", "index.html", "results.jsonl", "success-by-kind.png"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    arguments[arguments.index("tune")] = "test"
    refused = CliRunner().invoke(main.app, [str(argument) for argument in arguments])
    assert refused.exit_code == 2 and "the benchmark has no third" in refused.stderr
