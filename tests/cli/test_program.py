"""The program with its environment and with real models: options, start-up, and edits of files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from PIL import Image
from program import files, picture, pixels, uam

from uam_jax.cli import main
from uam_jax.engine import describe
from uam_jax.runtime import backend


def test_options_reach_the_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    model_named = SimpleNamespace(name="fake")
    pipeline = ModuleType("pipeline")
    pipeline.Editor = SimpleNamespace(
        load=lambda model, *, dtype, variant: seen.append((model, dtype, variant)) or model_named
    )
    monkeypatch.setitem(sys.modules, "uam_jax.editor", pipeline)
    monkeypatch.setattr(backend, "configure", lambda **options: seen.append(options))
    monkeypatch.setattr(describe, "describe_model", lambda editor: {"model": editor.name})
    result = uam("info", "./model", "--dtype", "bfloat16", "--device", "gpu", "--precision", "high",
                 "--cache-dir", tmp_path, "--variant", "fp16")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "model: fake" in uam("info", "--no-cache").stdout
    monkeypatch.setenv("HOME", str(tmp_path))  # of this a shell leaves the ~ as it is
    assert uam("info", "--cache-dir=~/compiled").exit_code == 0
    assert seen == [
        {"device": "gpu", "devices": None, "precision": "high", "cache": tmp_path},
        ("./model", "bfloat16", "fp16"),
        {"device": None, "devices": None, "precision": None, "cache": None},
        ("scenes", "auto", None),
        {"device": None, "devices": None, "precision": None, "cache": tmp_path / "compiled"},
        ("scenes", "auto", None),
    ]


# The backend.


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    for variable, expected in {
        "/cache": Path("/cache/uam_jax/xla"),
        "": Path("/home/someone/.cache/uam_jax/xla"),
        "relative": Path("/home/someone/.cache/uam_jax/xla"),
    }.items():
        monkeypatch.setenv("XDG_CACHE_HOME", variable)
        assert backend.cache_folder() == expected
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/own")
    assert backend.cache_folder() == Path("/own")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/own")
    assert backend.cache_folder() is None  # JAX reads that itself, and can write there


def test_a_user_without_a_home_has_no_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where it finds none
    assert backend.cache_folder() is None


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, because JAX's settings are global and its import must be observed."""
    source = str(Path(main.__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": source, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_settings_reach_jax_and_programs_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = python(f"""
import pathlib, warnings, jax
from uam_jax.runtime import backend
from uam_jax.errors import InputError
folder = pathlib.Path({str(tmp_path)!r})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    backend.configure(cache=folder / "file" / "cache")
assert "without a cache" in str(caught[0].message), caught
backend.configure(device="cpu", precision="highest", cache=folder / "cache")
assert jax.config.jax_default_matmul_precision == "highest"
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
with backend.CompileClock() as clock:
    jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8)))
assert clock.seconds > 0
try:
    backend.configure(device="tpu")
except InputError as error:
    assert "--device tpu" in str(error)
else:
    raise AssertionError("a TPU out of nothing")
""")
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("options", [[], ["--device", "gpu"]])
@pytest.mark.parametrize("platforms", ["cuda", "nonsense"])
def test_platforms_that_are_not_there_are_named(
    platforms: str, options: list[str], tmp_path: Path
) -> None:
    for command in (["info", *options], ["convert", "scenes", str(tmp_path / "new")]):
        done = python(
            f"from uam_jax.cli.main import app; app({command!r})", JAX_PLATFORMS=platforms
        )
        assert done.returncode == 2, done.stderr
        assert f"JAX_PLATFORMS={platforms}" in done.stderr and "unset" in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_version_and_bad_input_come_without_jax() -> None:
    done = python("""
import sys
from typer.testing import CliRunner
from uam_jax.cli import main
run = lambda *args: CliRunner().invoke(main.app, args)
assert run("--help").exit_code == 0
assert run("edit", "--help").exit_code == 0
assert run("--version").stdout.startswith("uam ")
assert "PIL" not in sys.modules
assert run("edit", "/nowhere.png", "--target", "x", "--out", "y").exit_code == 2
assert "jax" not in sys.modules
""")
    assert done.returncode == 0, done.stderr


def test_python_dash_m() -> None:
    done = python("import runpy, sys; sys.argv = ['uam', '--version']; runpy.run_module('uam_jax')")
    assert done.returncode == 0 and done.stdout.startswith("uam "), done.stderr


# Real models.


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_checkpoint(folder)
    assert uam("convert", folder, folder.with_name("converted")).exit_code == 0
    return str(folder.with_name("converted"))


def smooth_picture(path: Path) -> Path:
    rows, columns = np.mgrid[0:96, 0:128]
    array = np.stack([rows * 2, columns * 2, np.full_like(rows, 90), rows + columns], axis=-1)
    Image.fromarray(array.astype(np.uint8)).save(path)
    return path


def test_a_real_edit_keeps_every_bit_outside_its_mask(tmp_path: Path, converted: str) -> None:
    image, mask = smooth_picture(tmp_path / "in.png"), np.zeros((96, 128), np.uint8)
    mask[20:60, 30:90] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    # The model works on 8 pixels by itself, where the smoothing of the mask leaves nothing.
    result = uam(
        "edit", image, "--target", "a red cube", "--target", "a blue ball", "--out", tmp_path,
        "--mask", tmp_path / "mask.png", "--save-mask", "--model", converted, "--json", "--size", 32,
        "--config", "default", "--set", "steps=4", "--set", "mask.t_mask=600", "--set", "mask.user=replace",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert f"{summary['evaluations']} network evaluations" in result.stderr
    before = pixels(image)
    for row, number in zip(summary["pictures"], (1, 2), strict=True):
        after = pixels(tmp_path / f"in-{number}.png")
        used = pixels(tmp_path / f"in-{number}-mask.png")
        assert not used[mask == 0].any()
        np.testing.assert_array_equal(after[used == 0], before[used == 0])
        np.testing.assert_array_equal(after[..., 3], before[..., 3])
        assert row["mask_share"] == pytest.approx(used.mean() / 255, abs=0.01)
    assert (pixels(tmp_path / "in-1.png") != before).any()


def test_a_real_reconstruction(tmp_path: Path, converted: str) -> None:
    image = smooth_picture(tmp_path / "in.png")
    result = uam("reconstruct", image, "--out", tmp_path / "out.png", "--steps", 4,
                 "--model", converted, "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    [row] = summary["pictures"]
    assert pixels(tmp_path / "out.png").shape == (96, 128, 4)
    assert row["psnr"] <= row["psnr_of_vae"] + 3
    assert summary["seconds"].keys() == {"compile", "run"}


@pytest.mark.parametrize(
    "command",
    [
        ("edit", "{image}", "--target", "a", "--out", "{out}", "--model", "{model}"),
        ("reconstruct", "{image}", "--out", "{out}", "--model", "{model}"),
        ("batch", "{folder}", "--target", "a", "--out", "{out}", "--model", "{model}"),
        ("convert", "{model}", "{out}"),
        ("info", "{model}"),
        ("eval", "scenes", "--out", "{out}", "--model", "{model}"),
        ("eval", "reconstruction", "--out", "{out}", "--model", "{model}"),
    ],
    ids=lambda command: " ".join(word for word in command[:2] if "{" not in word),
)
def test_a_variant_is_asked_for_by_every_command_that_loads(
    command: tuple[str, ...], tmp_path: Path, converted: str
) -> None:
    """The model has only plain files, so that a variant must be an error that names the missing file."""
    places = {
        "image": smooth_picture(tmp_path / "in.png"),
        "folder": tmp_path,
        "out": tmp_path / "out.png",
        "model": Path(converted).with_name("tiny"),
    }
    result = uam(*(word.format(**places) for word in command), "--variant", "fp16")
    assert result.exit_code == 2, result.stderr
    assert "diffusion_pytorch_model.fp16.safetensors" in result.stderr


@pytest.mark.parametrize("model", ["converted", pytest.param("scenes", marks=pytest.mark.long)])
def test_a_real_model_is_described(model: str, converted: str) -> None:
    model = converted if model == "converted" else model
    summary = json.loads(uam("info", model, "--no-cache", "--json").stdout)
    assert set(summary["parameters"]) == {"unet", "vae", "text_encoder"}
    flops = summary["gflop_per_evaluation"]
    assert 0 < flops["uniform"] < flops["text"]
    assert len(summary["weights"]) == 16 and summary["device"].startswith("cpu")
    assert summary["versions"]["jax"]


def test_no_model_is_bad_input(tmp_path: Path) -> None:
    image = picture(tmp_path / "in" / "photo.png")
    before = files(tmp_path)
    result = uam("edit", image, "--target", "x", "--out", tmp_path / "o.png", "--no-cache",
                 "--model", tmp_path)  # fmt: skip
    assert result.exit_code == 2
    assert "model_index.json" in result.stderr
    assert files(tmp_path) == before
