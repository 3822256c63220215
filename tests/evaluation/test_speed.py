"""`uam bench`: its cases and refusals, one real measurement, peak rates and shapes."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from bench_records import measured
from checkpoint_files import SCHEDULER, TEXT, UNET, VAE, write_checkpoint
from tiny import tiny_editor
from typer.testing import CliRunner, Result

from uam_jax import EditConfig, Editor, InputError, models
from uam_jax.checkpoints import random
from uam_jax.cli import bench_run, main
from uam_jax.cli.bench import BenchOptions
from uam_jax.cli.bench_run import run_bench
from uam_jax.cli.bench_tables import RESULT
from uam_jax.cli.console import Console
from uam_jax.evaluation import speed
from uam_jax.evaluation.kept_edits import KeptEdits
from uam_jax.evaluation.peaks import peak_flops
from uam_jax.evaluation.speed import Case, evaluations_by_maps
from uam_jax.method.schedule import Schedule
from uam_jax.models.configs import PUBLISHED


def uam(*arguments: object) -> Result:
    return CliRunner().invoke(main.app, [str(argument) for argument in arguments])


# Cases.


def test_all_combinations_are_measured_and_the_batch_varies_fastest() -> None:
    options = BenchOptions(out="x", dtype=("float32", "bfloat16"), batch=(1, 4), targets=(1, 3))
    cases = options.cases()
    assert len(cases) == 8 and [case.batch for case in cases[:3]] == [1, 4, 1]
    assert {case.dtype for case in cases[:4]} == {"float32"}
    assert Case.from_json(json.dumps(asdict(cases[-1]))) == cases[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dtype", "float64"), "--dtype float64: choose auto, float32, bfloat16, float16"),
        (("--attention", "splash"), "--attention splash: choose auto, xla"),
        (("--device", "npu"), "--device npu: choose cpu, gpu, tpu"),
        (("--task", "train"), "--task train: choose invert, edit, batch"),
        (("--shape", "sdxl"), "--shape sdxl: choose sd15, sd21"),
        (("--shape", "sd15", "--model", "scenes"), "give one"),
        (("--set", "guidence=2"), "guidence"),
    ],
)
def test_an_impossible_case_is_refused_before_anything_runs(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = uam("bench", "--out", tmp_path / "out", *options)
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_variant_is_that_of_the_models_files(monkeypatch: pytest.MonkeyPatch) -> None:
    [case] = BenchOptions(out="x", model="m", variant="fp16", batch=(1,)).cases()
    asked, loaded = {}, SimpleNamespace(preset=EditConfig.load)
    monkeypatch.setattr(
        Editor, "load", lambda model, **how: asked.update(how, model=model) or loaded
    )
    assert speed.load(case) == (loaded, EditConfig())
    assert asked == {"model": "m", "dtype": "auto", "variant": "fp16"}
    with pytest.raises(InputError, match="--variant chooses among a model's files"):
        BenchOptions(out="x", shape="sd15", variant="fp16").cases()


# One measurement, in a process of its own.


@pytest.mark.long
def test_a_real_measurement_with_one_case_that_fails(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    write_checkpoint(model, scale=1 / 16)
    result = uam(
        "bench", "--model", model, "--out", out, "--device", "cpu", "--devices", 2, "--batch", 1,
        "--steps", 2, "--repeats", 2, "--peak", 0.5, "--size", 16, "--set", "mask.t_mask=600",
        "--set", "auxiliary.latents=original", "--set", "control=none",
        "--attention", "auto", "--attention", "cudnn", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["failed"] == 1
    record = json.loads((out / RESULT).read_text())
    good, bad = record["cases"]
    assert "cuDNN" in bad["refused"] or "cudnn" in bad["refused"].lower()
    assert good["machine"]["device"].startswith("cpu") and good["machine"]["peak_tflops"] == 0.5
    assert good["machine"]["product_tflops"] > 0 and good["model"]["steps"] == 2
    assert good["case"]["dtype"] == "float32" and bad["case"]["dtype"] == "auto"
    invert, edit, batch = good["rows"]
    assert [row["task"] for row in good["rows"]] == ["invert", "edit", "batch"]
    assert invert["images"] == edit["images"] == 2 and batch["images"] == 8
    # Two steps of inversion with the null prompt; source and guided target in both steps.
    assert edit["evaluations"] == batch["evaluations"] == 2 + 2 * (1 + 2)
    assert invert["evaluations"] == 2
    cost = invert["gflop_per_evaluation"]
    assert 0 < cost["uniform"] < cost["text"]
    assert invert["tflop"] == pytest.approx(2 * 2 * cost["uniform"] / 1e3)
    for row in (edit, batch):
        assert row["tflop"] == pytest.approx(row["images"] * 8 * cost["text"] / 1e3)
    for row in good["rows"]:
        assert len(row["seconds"]["all"]) == 2 and row["memory"]["gigabytes"] > 0
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert row["images_per_second"] == row["images"] / row["seconds"]["median"]
        # The two devices are parts of one processor, whose peak was given.
        assert row["tflops_per_device"] == pytest.approx(row["tflop"] / row["seconds"]["median"])
        assert row["share_of_peak"] == pytest.approx(row["tflops_per_device"] / 0.5)
    assert invert["compile_seconds"] > 0
    kept = KeptEdits.read(out / good["edits"])
    assert kept.images.shape == (2, 16, 16, 3) and np.isfinite(kept.images).all()
    assert kept.prompts.tolist() == ["", speed.TARGETS[0]] and kept.images.std() > 0
    assert kept.agreement(kept) == (100, 1)
    table = (out / "bench.md").read_text()
    assert table.count("\n| ") == 2 + 3 and "Not measured: default" not in table
    assert "Not measured: cpu, auto, 2 devices, attention cudnn" in table


@pytest.mark.parametrize("answer", [NotImplementedError, None, {}, {"flops": 0.0}])
def test_a_compiler_that_counts_nothing(
    answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = tiny_editor(tmp_path)

    def cost_analysis(lowered: Any) -> Any:
        if answer is NotImplementedError:
            raise answer
        return answer

    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", cost_analysis)
    assert speed._flops_per_evaluation(editor, None) == {}


def test_nothing_measured_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "_measure_apart", lambda *_: {"refused": "no such model"})
    with pytest.raises(InputError, match="no case could be measured: no such model"):
        run_bench(BenchOptions(out=str(tmp_path)), Console())


def test_throughput_is_drawn_against_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = measured(tmp_path, monkeypatch, 0.5, batch=(1, 2, 8))
    assert {path.name for path in folder.iterdir()} == {
        RESULT, "bench.md", "invert.png", "edit.png", "batch.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "changes", "uniform", "text"),
    [
        ("default", {}, 20, 50 + 150),
        ("released", {}, 100, 50 + 150),
        ("default", {"inversion": {"uniformity": 1.0}}, 50 + 10, 150),
        ("default", {"auxiliary": {"uniformity": 0.0}}, 0, 50 + 10 + 150),
        ("default", {"auxiliary": {"latents": "original"}}, 0, 50 + 150),
    ],
)
def test_evaluations_are_told_apart_by_their_maps(
    preset: str, changes: dict[str, Any], uniform: int, text: int
) -> None:
    config = EditConfig.load(preset).updated(changes)
    plan = config.plan(Schedule.from_config(SCHEDULER).timesteps(config.steps))
    assert evaluations_by_maps(config, plan) == {"uniform": uniform, "text": text}
    shared = evaluations_by_maps(config, plan, targets=3)
    assert sum(shared.values()) == plan.evaluations(3) and shared["uniform"] == uniform


# Peaks and shapes.


@pytest.mark.parametrize(
    ("kind", "dtype", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", "default", 989.4),
        ("NVIDIA H100 80GB HBM3", "float32", "default", 494.7),
        ("NVIDIA H100 80GB HBM3", "float32", "highest", 66.9),
        ("NVIDIA H100 PCIe", "bfloat16", "default", 756),
        ("NVIDIA H100 NVL", "bfloat16", "default", None),
        ("NVIDIA GH200 480GB", "bfloat16", "default", 989.4),
        ("NVIDIA B200", "bfloat16", "default", 2250),
        ("NVIDIA GB200", "bfloat16", "default", None),
        ("NVIDIA GeForce RTX 4090", "bfloat16", "default", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", "default", None),
        ("NVIDIA A100-SXM4-40GB", "float32", "high", 156),
        ("NVIDIA A10", "bfloat16", "default", 125),
        ("NVIDIA A10G", "bfloat16", "default", None),
        ("Tesla T4", "float32", "default", 8.1),
        ("Tesla T4", "bfloat16", "default", None),
        ("NVIDIA L40S", "float16", "default", 362),
        ("NVIDIA L4", "float16", "default", 121),
        ("TPU v5 lite", "bfloat16", "default", 197),
        ("TPU v4", "float32", "highest", 275 / 6),
        ("cpu", "float32", "default", None),
    ],
)
def test_peaks(kind: str, dtype: str, precision: str, tera: float | None) -> None:
    found = peak_flops(kind, dtype, precision)
    assert found == (None if tera is None else pytest.approx(tera * 1e12))


@pytest.mark.parametrize(
    ("shape", "unet", "text"),
    [("sd15", 859_520_964, 123_060_480), ("sd21", 865_910_724, 340_387_840)],
)
def test_shapes_are_those_of_the_published_models(shape: str, unet: int, text: int) -> None:
    # The counts are those of runwayml's and stabilityai's files.
    own = PUBLISHED[shape]
    networks = (
        (models.UNet(models.UNetConfig.from_dict(own["unet"])), unet),
        (models.TextEncoder(models.TextConfig.from_dict(own["text_encoder"])), text),
        (models.VAE(models.VAEConfig.from_dict(own["vae"])), 83_653_863),
    )
    for network, count in networks:
        leaves = jax.tree.leaves(models.expected_params(network))
        assert sum(leaf.size for leaf in leaves) == count


def test_random_weights_make_an_editor_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(config: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config.items() if key[0] != "_"}

    text = {**TEXT, "vocab_size": 700}
    small = {"unet": plain(UNET), "text_encoder": text, "vae": plain(VAE)}
    monkeypatch.setattr(random, "PUBLISHED", {"small": small})
    monkeypatch.setattr(random, "SCHEDULES", {"small": {"prediction_type": "v_prediction"}})
    checkpoint = random.random_checkpoint("small", dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(checkpoint.params)} == {"bfloat16"}
    editor = Editor(checkpoint)
    z0 = editor.encode(np.zeros((1, 8, 8, 3), np.float32))
    noisy = np.asarray(editor.invert(z0, steps=2).at(2))
    assert np.isfinite(noisy).all() and noisy.std() > 0
    with pytest.raises(InputError, match="shape 'sd15' is not known; choose one of small"):
        random.random_checkpoint("sd15")
    with pytest.raises(InputError, match="dtype 'int8' is not supported"):
        random.random_checkpoint("small", dtype="int8")
