"""The program from outside, with an editor in closed form: exit codes, streams and files."""

import errno
import json
import sys
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from program import files, picture, pixels, uam

from uam_jax.cli.options import Compute
from uam_jax.engine.delivery import EditResult
from uam_jax.errors import InputError
from uam_jax.io import outputs
from uam_jax.method.confidence import Calibration
from uam_jax.method.config import EditConfig
from uam_jax.runtime import backend


@dataclass
class FakeEditor:
    """Inverts the left half, which is all that it says was free, and fades the rest, as a VAE might."""

    name: str = "fake"
    weights_hash: str = "0123456789abcdef"
    native_size: int = 64
    size_multiple: int = 8
    default_config: EditConfig = field(default_factory=lambda: EditConfig(steps=20))
    calls: list[dict[str, Any]] = field(default_factory=list)
    calibration: Calibration = field(default_factory=lambda: Calibration(bias=0.0))

    def evaluations(self, config: EditConfig, *, targets: int = 1, user_mask: bool = False) -> int:
        return config.steps * (2 + targets)

    def edit_latents(
        self, latents: np.ndarray, target: Any, source: Any, **options: Any
    ) -> EditResult:
        self.calls.append({"target": target, "source": source, **options})
        images = options["images"]
        np.testing.assert_array_equal(latents, images)  # as `encode` made them
        [targets] = target
        left = np.arange(images.shape[2]) < images.shape[2] // 2
        edited = np.where(left[:, None], -images[0], images[0] * np.float32(0.9))
        free = np.broadcast_to(left, images.shape[1:3]).astype(np.float32)
        if options["masks"] is not None:
            free = free * options["masks"][0]
        count = len(targets)
        # At 19 dB of 22, half of a picture is familiar.
        signals = {"reconstruction": 19.0, "noise": 1.0, "changed": 1.0, "opacity": 1.0}
        return EditResult(
            images=jnp.asarray(np.stack([edited] * count)),
            latents=jnp.zeros((count, 1, 1, 4)),
            source_latents=None,
            auxiliary_latents=None,
            masks=jnp.asarray(np.stack([free] * count)),
            evaluations=0,
            source_index=np.zeros(count, int),
            error_map=jnp.zeros(images.shape[:3]),
            signals={name: jnp.full(count, value) for name, value in signals.items()},
            confidence=np.full(count, 0.25),
            review=["of the model's own picture"] * count,
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        return images

    def decode(self, latent: np.ndarray) -> np.ndarray:
        return latent

    def invert(self, latent: np.ndarray, **options: Any) -> np.ndarray:
        self.calls.append(options)
        return latent

    def reconstruct(self, inversion: np.ndarray) -> np.ndarray:
        return inversion * np.float32(0.5)


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch) -> FakeEditor:
    fake = FakeEditor()
    monkeypatch.setattr(Compute, "load_editor", lambda compute, model, console: fake)
    return fake


@pytest.fixture
def no_editor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        pytest.fail("the model was loaded before the input was checked")

    monkeypatch.setattr(Compute, "load_editor", fail)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return picture(tmp_path / "in.png")


# What an edit does.


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((48, 80, 3), np.uint8), ((48, 80, 4), np.uint8), ((48, 80), np.uint16), ((64, 64), np.uint8)],
)
def test_an_edit_changes_what_it_may_and_nothing_else(
    tmp_path: Path, editor: FakeEditor, shape: tuple[int, ...], dtype: type
) -> None:
    image = picture(tmp_path / "in.png", *shape, dtype=dtype)
    assert uam("edit", image, "--target", "a cube", "--out", tmp_path / "out.png").exit_code == 0
    before, after = pixels(image), pixels(tmp_path / "out.png")
    assert after.shape == before.shape and after.dtype == before.dtype
    kept = int(shape[1] * 0.75)
    np.testing.assert_array_equal(after[:, kept:], before[:, kept:])
    assert (after[:, : kept // 3] != before[:, : kept // 3]).mean() > 0.5


def test_in_latent_mode_the_whole_picture_is_the_models(
    tmp_path: Path, editor: FakeEditor, image: Path
) -> None:
    out = tmp_path / "out.png"
    result = uam("edit", image, "--target", "x", "--out", out, "--config", "default",
                 "--set", "preserve=latent")  # fmt: skip
    assert result.exit_code == 0
    assert (pixels(out)[:, 60:] != pixels(image)[:, 60:]).any()


def test_the_editor_gets_what_was_asked(tmp_path: Path, editor: FakeEditor, image: Path) -> None:
    mask = np.zeros((48, 80), np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    result = uam(
        "edit", image, "--target", "a", "--target", "b", "--source", "c", "--out", tmp_path / "out",
        "--mask", tmp_path / "mask.png", "--size", 128, "--config", "default",
        "--set", "steps=7", "--set", "source.condition=prompt", "--save-mask",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "28 network evaluations per picture" in result.stderr
    [call] = editor.calls
    assert call["target"] == [["a", "b"]] and call["source"] == "c"
    assert call["config"].steps == 7
    assert call["images"].shape == (1, 96, 168, 3)
    assert call["masks"].shape == (1, 96, 168)
    np.testing.assert_allclose(call["masks"].mean(), 0.25, atol=0.02)
    assert files(tmp_path / "out") == {"in-1.png", "in-2.png", "in-1-mask.png", "in-2-mask.png"}
    used = pixels(tmp_path / "out" / "in-1-mask.png")
    assert used[:, :10].min() > 200 and not used[:, 20:].any()
    np.testing.assert_array_equal(
        pixels(tmp_path / "out" / "in-1.png")[:, 20:], pixels(image)[:, 20:]
    )


def test_without_a_config_the_models_own_settings_count(
    tmp_path: Path, editor: FakeEditor, image: Path
) -> None:
    out = ("--target", "x", "--out", tmp_path / "out.png")
    assert uam("edit", image, *out, "--set", "guidance=3").exit_code == 0
    assert uam("edit", image, *out, "--config", "default").exit_code == 0
    own, preset = (call["config"] for call in editor.calls)
    assert (own.steps, own.guidance) == (20, 3.0)
    assert preset.steps == EditConfig.load("default").steps


def test_several_pictures_keep_their_names(tmp_path: Path, editor: FakeEditor) -> None:
    images = [picture(tmp_path / name) for name in ("a.png", "b.webp", "c.gif")]
    result = uam("edit", *images, "--target", "x", "--out", tmp_path / "new" / "folder")
    assert result.exit_code == 0, result.stderr
    assert files(tmp_path / "new") == {"folder/a.png", "folder/b.webp", "folder/c.png"}
    assert "GIF cannot hold the result" in result.stderr


def test_what_a_format_cannot_hold_is_said_once(tmp_path: Path, editor: FakeEditor) -> None:
    deep = picture(tmp_path / "deep.png", 48, 80, dtype=np.uint16)
    targets = [part for text in "abc" for part in ("--target", text)]
    result = uam("edit", deep, *targets, "--out", tmp_path / "out.jpg", "--json")
    assert result.exit_code == 0, result.stderr
    [told] = json.loads(result.stdout)["warnings"]
    assert "JPEG holds 8 bits of the original's 16" in told


def test_an_input_is_replaced_only_on_demand(
    tmp_path: Path, editor: FakeEditor, image: Path
) -> None:
    before = image.read_bytes()
    link = tmp_path / "link.png"
    link.symlink_to(image)
    for out in (image, tmp_path, link):
        result = uam("edit", image, "--target", "x", "--out", out)
        assert result.exit_code == 2 and "--overwrite" in result.stderr
        assert image.read_bytes() == before
    assert uam("edit", image, "--target", "x", "--out", image, "--overwrite").exit_code == 0
    assert image.read_bytes() != before


def test_reconstruct(tmp_path: Path, editor: FakeEditor, image: Path) -> None:
    result = uam("reconstruct", image, "--out", tmp_path / "out.png", "--prompt", "a cube",
                 "--uniformity", 0.5, "--guidance", 2, "--steps", 9, "--spacing", "trailing", "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    told = {"prompts": "a cube", "uniformity": 0.5, "guidance": 2.0}
    assert editor.calls == [told | {"steps": 9, "spacing": "trailing"}]
    [row] = json.loads(result.stdout)["pictures"]
    assert 0 < row["psnr"] < 30 and row["psnr_of_vae"] is None  # infinite, which JSON can't say
    assert pixels(tmp_path / "out.png").shape == (48, 80, 3)


def test_convert_and_demo_are_passed_on(
    tmp_path: Path, editor: FakeEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    checkpoints, world = ModuleType("checkpoints"), ModuleType("demo")
    checkpoints.convert = lambda source, destination, variant: calls.append(source) or destination
    world.run_demo = lambda *call: (
        calls.append(call[:3]) or {"rows": [{"method": "a", "psnr": 1.5}]}
    )
    monkeypatch.setitem(sys.modules, "uam_jax.checkpoints.load", checkpoints)
    monkeypatch.setattr("uam_jax.checkpoints.load", checkpoints, raising=False)
    monkeypatch.setitem(sys.modules, "uam_jax.evaluation.demo", world)
    result = uam("convert", "some/model", tmp_path / "new", "--json")
    assert json.loads(result.stdout)["model"] == str(tmp_path / "new")
    result = uam("demo", "--out", tmp_path, "--seed", 3)
    assert result.exit_code == 0 and "method" in result.stdout and "1.5" in result.stdout
    assert calls == ["some/model", (editor, tmp_path, 3)]


def test_the_page_has_copies_of_what_browsers_do_not_show(
    tmp_path: Path, editor: FakeEditor
) -> None:
    images = [picture(tmp_path / name) for name in ("a.tif", "b.png", "c.ppm")]
    result = uam(
        "edit", *images, "--target", "x", "--target", "y", "--out", tmp_path / "out", "--report"
    )
    assert result.exit_code == 0, result.stderr
    gallery = tmp_path / "out" / "gallery"
    assert {path.name for path in gallery.glob("*.jpg")} == {
        "a.tif.jpg", "b.png.jpg", "c.ppm.jpg", "a-1.tif-shown.jpg", "a-2.tif-shown.jpg",
        "c-1.ppm-shown.jpg", "c-2.ppm-shown.jpg",
    }  # fmt: skip
    script = (gallery / "rows-0.js").read_text()
    columns = json.loads(script[len("addRows(") : -len(");\n")])["columns"]
    assert columns["output"][0] == "a-1.tif"
    assert columns["size"] == {"words": ["80x48"], "at": [0] * 6}  # or the page would show squares
    assert columns["shown"] == [
        "gallery/a-1.tif-shown.jpg", "gallery/a-2.tif-shown.jpg", None, None,
        "gallery/c-1.ppm-shown.jpg", "gallery/c-2.ppm-shown.jpg",
    ]  # fmt: skip
    np.testing.assert_allclose(
        pixels(gallery / "a-1.tif-shown.jpg"), pixels(tmp_path / "out" / "a-1.tif"), atol=60
    )


# Streams.


def test_json_is_one_document_and_nothing_else_is_on_stdout(
    tmp_path: Path, editor: FakeEditor, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = editor.edit_latents

    def noisy(*args: Any, **options: Any) -> Any:
        print("a library's chatter")
        warnings.warn("seen\nonce", UserWarning, stacklevel=1)
        warnings.warn("not for the user", DeprecationWarning, stacklevel=1)
        return original(*args, **options)

    editor.edit_latents = noisy
    second = picture(tmp_path / "second.png")
    result = uam("edit", image, second, "--target", "x", "--out", tmp_path / "o", "--json")
    summary = json.loads(result.stdout)
    assert summary["ok"] and summary["command"] == "edit"
    assert [row["output"] for row in summary["pictures"]] == [
        str(tmp_path / "o" / name) for name in ("in.png", "second.png")
    ]
    assert all(0.3 < row["mask_share"] < 0.7 for row in summary["pictures"])
    assert all(row["confidence"] == 0.25 for row in summary["pictures"])
    assert all("cannot reproduce" in row["review"] for row in summary["pictures"])
    assert summary["evaluations"] == 2 * 60
    assert summary["config"] == editor.default_config.fingerprint()
    assert summary["weights"] == editor.weights_hash
    assert summary["seconds"].keys() == {"compile", "run"}
    assert summary["warnings"] == ["seen once"]
    assert result.stderr.count("seen once") == 1
    assert "chatter" in result.stderr and "(2 of 2)" in result.stderr
    assert "not for the user" not in result.stderr


def test_a_summary_for_people_names_the_result(
    tmp_path: Path, editor: FakeEditor, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # a table folds long paths
    result = uam("edit", image, "--target", "[b]x", "--out", tmp_path / "out.png")
    assert "out.png" in result.stdout.replace("\n", "") and "[b]x" in result.stdout
    assert "weights: 0123456789abcdef" in result.stdout


# Failures.


@pytest.mark.usefixtures("no_editor")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{in}", "--target", " ", "--out", "{new}.png"], "--target is empty"),
        (["{in}", "--target", "x", "--out", "{new}.xyz"], "cannot write .xyz files"),
        (["{in}", "{in}", "--target", "x", "--out", "{new}.png"], "one file for 2 pictures"),
        (["{in}", "{other}/in.png", "--target", "x", "--out", "{new}"], "both be written"),
        (["{in}", "{text}", "--target", "x", "--out", "{new}"], "convert it to PNG"),
        (["{missing}", "--target", "x", "--out", "{new}"], "no such file"),
        (["{other}", "--target", "x", "--out", "{new}"], "is a folder"),
        (["{in}", "--target", "x", "--out", "{text}/new"], "is a file"),
        (["{in}", "--target", "x", "--out", "{dir}.png/"], "is a folder, so"),
        (
            ["{in}", "--target", "x", "--out", "{new}", "--mask", "{small}"],
            "must have the same size",
        ),
        (["{in}", "--target", "x", "--out", "{new}", "--mask", "{missing}"], "no such file"),
        (["{in}", "--target", "x", "--out", "{long}.png"], "File name too long): choose"),
        (["{in}", "--target", "x", "--out", "{long}/x.png"], "File name too long): choose"),
        (["{in}", "--target", "x", "--out", "{fits}.png", "--save-mask"], "-mask.png cannot be"),
        (["{in}", "--target", "x", "--target", "y", "--out", "{fits}.png"], "-1.png cannot be"),
        (["{tall}", "--target", "x", "--out", "{new}", "--report"], "-error.png cannot be"),
        (["{in}", "--target", "x", "--out", "{paged}/", "--report"], "index.html is a folder"),
        (["{in}", "--target", "x", "--out", "{halls}/", "--report"], "gallery is a file"),
        (
            [
                "{in}",
                "{in1}",
                "--target",
                "x",
                "--target",
                "y",
                "--out",
                "{other}/..",
                "--overwrite",
            ],
            "in-1.png would be replaced by an edit of",
        ),
        (["{in}", "--target", "x", "--out", "{new}", "--set", "maks.radius=1"], "maks"),
        (["{in}", "--target", "x", "--out", "{new}", "--config", "nothing"], "nothing"),
        (["{in}", "--target", "x", "--out", "{new}", "--size", "0"], "--size"),
        (["{in}", "--target", "x", "--out", "{new}", "--dtype", "int8"], "--dtype"),
        (["{in}", "--out", "{new}"], "--target"),
    ],
)
def test_bad_input_is_told_before_anything_happens(
    tmp_path: Path, image: Path, arguments: list[str], message: str
) -> None:
    names = {"in": image, "new": tmp_path / "new", "missing": tmp_path / "missing.png"}
    names["other"] = picture(tmp_path / "other" / "in.png").parent
    names["small"] = picture(tmp_path / "small.png", 8, 8)
    names["text"] = tmp_path / "text.png"
    names["text"].write_text("not a picture")
    names["dir"] = tmp_path / "dir"
    (tmp_path / "dir.png" / "in.png").mkdir(parents=True)
    names["long"], names["fits"] = tmp_path / ("x" * 260), tmp_path / ("x" * 251)
    names["tall"] = picture(tmp_path / f"{'y' * 245}.png")
    names["in1"] = picture(tmp_path / "in-1.png")
    names["paged"], names["halls"] = tmp_path / "paged", tmp_path / "halls"
    (tmp_path / "paged" / "index.html").mkdir(parents=True)
    names["halls"].mkdir()
    (tmp_path / "halls" / "gallery").touch()
    before = files(tmp_path)
    result = uam("edit", *(argument.format(**names) for argument in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split()).replace("│ ", "")
    assert "Traceback" not in result.stderr and not result.stdout
    assert files(tmp_path) == before


@pytest.mark.usefixtures("no_editor")
@pytest.mark.parametrize(
    "arguments",
    [
        ["edit", "{in}", "--target", "x", "--out", "{url}"],
        ["edit", "{url}", "--target", "x", "--out", "new"],
        ["edit", "{in}", "--target", "x", "--out", "new", "--mask", "{url}"],
        ["edit", "{in}", "--target", "x", "--out", "new", "--config", "{url}"],
        ["edit", "{in}", "--target", "x", "--out", "new", "--model", "{url}"],
        ["edit", "{in}", "--target", "x", "--out", "new", "--cache-dir", "{url}"],
        ["reconstruct", "{in}", "--out", "{url}"],
        ["reconstruct", "{in}", "{url}", "--out", "new"],
        ["demo", "--out", "{url}"],
        ["info", "--cache-dir", "{url}"],
        ["info", "{url}"],
        ["convert", "scenes", "{url}"],
        ["convert", "{url}", "new"],
        ["batch", "{dir}", "--target", "x", "--out", "new", "--cache", "{url}"],
        ["batch", "{dir}", "--target", "x", "--out", "new", "--config", "{url}"],
        ["batch", "{dir}", "--target", "x", "--out", "new", "--model", "{url}"],
        ["eval", "scenes", "--out", "new", "--methods", "{url}"],
        ["eval", "scenes", "--out", "new", "--model", "{url}"],
        ["eval", "reconstruction", "--out", "new", "--cache-dir", "{url}"],
        ["bench", "--out", "new", "--model", "{url}"],
        ["bench", "--out", "new", "--shape", "sd15", "--config", "{url}"],
        ["bench", "compare", "{url}", "{url}"],
    ],
    ids=" ".join,
)
def test_a_url_is_refused_where_a_path_is_expected(
    tmp_path: Path, image: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    url = "gs://bucket/a//b.png"
    names = {"in": image, "dir": tmp_path, "url": url}
    result = uam(*(argument.format(**names) for argument in arguments), "--json")
    assert result.exit_code == 2, result.stderr
    error = json.loads(result.stdout)["error"]
    assert url in error and "URL" in error and "local" in error
    assert files(tmp_path) == before and not (tmp_path / "new").exists()


def test_a_path_below_the_home_folder_is_there(
    tmp_path: Path, editor: FakeEditor, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    result = uam("edit", str(image), "--target", "x", "--out=~/out/")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "home" / "out" / image.name).exists() and not (tmp_path / "~").exists()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "~/cache")
    assert backend.cache_folder() == tmp_path / "home" / "cache"


@pytest.mark.parametrize(
    "arguments",
    [
        ["edit", "{in}", "--target", "x", "--out", ""],
        ["batch", "", "--target", "x", "--out", "new"],
    ],
)
def test_an_empty_path_is_told(
    tmp_path: Path, image: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = uam(*(argument.format(**{"in": image}) for argument in arguments))
    assert result.exit_code == 2 and "is empty" in result.stderr


def test_a_local_url_is_a_path(tmp_path: Path, editor: FakeEditor, image: Path) -> None:
    out = tmp_path / "a b.png"
    result = uam(
        "edit", f"file://{image}", "--target", "x", "--out", f"file://{tmp_path}/a%20b.png"
    )
    assert result.exit_code == 0, result.stderr
    assert pixels(out).shape == pixels(image).shape


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no model there"), 2, "error: no model there"),
        (RuntimeError("broken\ndetails"), 1, "error: RuntimeError: broken (--debug"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), 1, "out of memory: try a smaller --size"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_a_failure_on_the_way_keeps_what_is_done(
    tmp_path: Path,
    editor: FakeEditor,
    image: Path,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    original = editor.edit_latents

    def fail_second(*args: Any, **options: Any) -> Any:
        if editor.calls:
            raise error
        return original(*args, **options)

    editor.edit_latents = fail_second
    second, third = (picture(tmp_path / f"{name}.png") for name in ("second", "third"))
    before = files(tmp_path)
    command = ("edit", image, second, third, "--target", "x", "--out", tmp_path / "out")
    result = uam(*command)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr and "details" not in result.stderr
    assert not result.stdout
    assert files(tmp_path) == before | {"out/in.png"}
    told = f"1 of 3 pictures are done and written, up to {image}; left are {second}, {third}"
    assert told in result.stderr
    assert "Traceback" in uam(*command, "--debug").stderr
    editor.calls.clear()
    failed = json.loads(uam(*command, "--json").stdout)
    assert failed["ok"] is False and failed["error"] and failed["warnings"] == [told]


@pytest.mark.parametrize("verb", ["edit", "reconstruct"])
def test_results_are_written_one_by_one_and_stay_when_the_disk_is_full(
    tmp_path: Path, editor: FakeEditor, image: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    second = picture(tmp_path / "second.png")
    written: list[str] = []

    write = outputs._write

    def write_once(path: Path, data: bytes) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr(outputs, "_write", write_once)
    said = ("--target", "x") if verb == "edit" else ()
    result = uam(verb, image, second, "--out", tmp_path / "out", *said)
    assert result.exit_code == 2 and len(written) == 1
    full = "cannot be written (second.png: No space left on device)"
    assert f"{tmp_path / 'out'} {full}" in result.stderr
    assert "make room there" in result.stderr and f"left are {second}" in result.stderr
    assert files(tmp_path / "out") == {"in.png"}


def test_the_demo_checks_its_folder_before_it_computes(tmp_path: Path, no_editor: None) -> None:
    (tmp_path / "grid.png").mkdir()
    result = uam("demo", "--out", tmp_path)
    assert result.exit_code == 2 and "grid.png is a folder" in result.stderr


@pytest.mark.parametrize("verb", ["edit", "reconstruct"])
def test_an_overflow_is_told_and_nothing_written(
    tmp_path: Path, editor: FakeEditor, image: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_latents = editor.edit_latents

    def overflow(*arguments: Any, **options: Any) -> EditResult:
        result = edit_latents(*arguments, **options)
        return replace(result, images=result.images.at[0, 3, 4].set(np.nan))

    monkeypatch.setattr(editor, "edit_latents", overflow)
    monkeypatch.setattr(editor, "reconstruct", lambda inversion: inversion * np.float32(np.inf))
    said = ("--target", "a cube") if verb == "edit" else ()
    result = uam(verb, image, "--out", tmp_path / "out.png", *said)
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert "in.png: the network gave numbers that are not finite: try --dtype float32" in told
    assert not (tmp_path / "out.png").exists()
