"""Whole checkpoints: folders that load, folders that are refused with the reason, added tokens, and conversion."""

import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import (
    INDEX,
    TEXT,
    assert_same,
    edit_json,
    edit_tensors,
    write_json,
)

from uam_jax.checkpoints import load
from uam_jax.checkpoints.load import convert, load_checkpoint
from uam_jax.checkpoints.weights import save_safetensors
from uam_jax.errors import InputError
from uam_jax.types import Params


def test_a_folder_is_loaded(written: tuple[Path, Params]) -> None:
    folder, params = written
    checkpoint = load_checkpoint(folder)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, params)
    assert checkpoint.path == folder
    assert re.fullmatch(r"[0-9a-f]{16}", checkpoint.weights_hash)
    assert checkpoint.settings == {}
    assert checkpoint.schedule.steps_offset == 1
    assert "params" not in repr(checkpoint)
    ids = jnp.asarray(checkpoint.tokenizer.encode(["a red cube"]))
    states = checkpoint.text_encoder.apply({"params": checkpoint.params["text_encoder"]}, ids)
    assert states.shape == (1, 77, 8)


def test_absent_optional_keys_take_their_defaults(folder: Path) -> None:
    whole = load_checkpoint(folder)
    assert whole.vae.config.scaling_factor == 0.18215
    edit_json(folder / "vae" / "config.json", scaling_factor=0.18215, force_upcast=True)
    edit_json(folder / "unet" / "config.json", in_channels=4, freq_shift=0, norm_eps=1e-5)
    edit_json(folder / "text_encoder" / "config.json", hidden_act="quick_gelu")
    assert_same(load_checkpoint(folder), whole)


@pytest.mark.parametrize("dtype", load.DTYPES)
def test_dtype_is_that_of_params_and_computation(folder: Path, dtype: str) -> None:
    checkpoint = load_checkpoint(folder, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(checkpoint.params)} == {jnp.dtype(dtype)}
    assert checkpoint.unet.dtype == checkpoint.vae.dtype == jnp.dtype(dtype)
    assert checkpoint.weights_hash == load_checkpoint(folder).weights_hash


def test_the_half_variant_is_preferred_for_half_precision_only(folder: Path) -> None:
    params = load_checkpoint(folder).params["vae"]
    other = jax.tree.map(lambda a: np.asarray(a, np.float16) + 1, params)
    save_safetensors(other, folder / "vae", "vae", variant="fp16")

    def bias(**options: str) -> np.ndarray:
        checkpoint = load_checkpoint(folder, **options)
        return np.asarray(checkpoint.params["vae"]["quant_conv"]["bias"], np.float32)

    np.testing.assert_array_equal(bias(), params["quant_conv"]["bias"])
    np.testing.assert_array_equal(bias(dtype="float16"), params["quant_conv"]["bias"] + 1)
    with pytest.raises(InputError, match=r"unet: there is no diffusion_pytorch_model\.fp16"):
        load_checkpoint(folder, variant="fp16")


def test_settings_beside_the_weights_are_read(folder: Path) -> None:
    (folder / "uam.toml").write_text("guidance = 5.0\n[mask]\nradius = 2\n")
    assert load_checkpoint(folder).settings == {"guidance": 5.0, "mask": {"radius": 2}}
    (folder / "uam.toml").write_text("guidance = = 5.0\n")
    with pytest.raises(InputError, match=r"uam\.toml: not TOML"):
        load_checkpoint(folder)


def test_an_embedded_model_is_found_by_name(
    written: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(load.EMBEDDED, "tiny", written[0])
    assert load_checkpoint("tiny").name == "tiny"


# ---- sources that are not a model ----


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("scnes", r"unknown model 'scnes' \(embedded models: scenes, scenes-128;"),
        ("./scenes2", r"there is no folder \./scenes2 \(embedded models: scenes, scenes-128;"),
        ("/no/where", "there is no folder /no/where"),
        ("~/no/where", "there is no folder ~/no/where"),
        ("~nobody/model", "there is no folder ~nobody/model"),
        ("a/b/c", "there is no folder a/b/c"),
        ("..", "is not a model: it has no model_index.json"),
        ("", "is not a model"),
        ("\0", "unknown model"),
        ("x" * 5000, "unknown model"),
    ],
)
def test_a_source_that_is_nothing_is_named(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_checkpoint(source)


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path))} is not a model"):
        load_checkpoint(tmp_path)


def test_a_single_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "v1-5.safetensors").touch()
    with pytest.raises(InputError, match="from_single_file"):
        load_checkpoint(tmp_path / "v1-5.safetensors")


@pytest.mark.parametrize("dtype", ["float64", "int8", "half", ""])
def test_an_unsupported_dtype_is_named(folder: Path, dtype: str) -> None:
    with pytest.raises(InputError, match="float32, bfloat16, float16"):
        load_checkpoint(folder, dtype=dtype)


def test_a_revision_of_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="needs a hub id"):
        load_checkpoint(folder, revision="main")


TEXT_ENCODER_2 = ["transformers", "CLIPTextModelWithProjection"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_encoder_2": TEXT_ENCODER_2}, "also has text_encoder_2"),
        ({"unet": None, "transformer": ["diffusers", "X"]}, "lacks unet; it also has transformer"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "its vae is a AutoencoderTiny, not"),
        ({"text_encoder": ["x", "RobertaModel"]}, "its text_encoder is a RobertaModel, not"),
        ({"scheduler": [None, None]}, "lacks scheduler"),
    ],
)
def test_other_pipelines_are_refused(folder: Path, change: dict, message: str) -> None:
    write_json(folder / "model_index.json", INDEX | change)
    with pytest.raises(InputError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "vae/config.json"])
@pytest.mark.parametrize("text", ["{", "[1]", "\xff\xfe"])
def test_json_that_does_not_parse_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=re.escape(str(folder / name))):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "text_encoder"],
)
def test_a_missing_part_is_named(folder: Path, name: str) -> None:
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(
        InputError, match=re.escape(str(path.parent if path.suffix == ".txt" else path))
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"cross_attention_dim": 12}, "8 wide, the U-Net expects 12"),
        ("vae/config.json", {"latent_channels": 16}, "latents have 16 channels"),
        ("vae/config.json", {"in_channels": 6, "out_channels": 6}, "of 6 channels.*RGB"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 99}, "99 ids"),
        ("text_encoder/config.json", {"vocab_size": 300}, "embeddings for ids below 300"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    folder: Path, file: str, change: dict, message: str
) -> None:
    edit_json(folder / file, **change)
    with pytest.raises(InputError, match=message):
        load_checkpoint(folder)


# ---- tokens that a checkpoint added ----


def add_embedding(folder: Path, count: int = 1) -> int:
    """Adds embeddings to the text encoder, as textual inversion does, and returns the id of the first."""
    rows = TEXT["vocab_size"]
    name = "text_model.embeddings.token_embedding.weight"
    edit_tensors(
        folder / "text_encoder" / "model.safetensors",
        lambda t: t | {name: np.concatenate([t[name], t[name][:count] + 1])},
    )
    edit_json(folder / "text_encoder" / "config.json", vocab_size=rows + count)
    return rows


def test_a_placeholder_token_reaches_its_embedding(folder: Path) -> None:
    number = add_embedding(folder)
    write_json(folder / "tokenizer" / "added_tokens.json", {"<my-cat>": number})
    checkpoint = load_checkpoint(folder)
    (ids,) = checkpoint.tokenizer.encode(["a red <my-cat>"])
    assert ids[3] == number
    states = [
        checkpoint.text_encoder.apply(
            {"params": checkpoint.params["text_encoder"]},
            jnp.asarray(checkpoint.tokenizer.encode([text])),
        )
        for text in ("a red <my-cat>", "a red cube")
    ]
    assert np.abs(states[0][0, 3] - states[1][0, 3]).max() > 0.01


def test_embeddings_that_no_token_reaches_are_reported(folder: Path) -> None:
    number = add_embedding(folder, 3)
    with pytest.warns(UserWarning, match=rf"3 of the text encoder's 533 .* id {number} on"):
        load_checkpoint(folder)
    write_json(folder / "tokenizer" / "added_tokens.json", {"<my-cat>": number + 1})
    with pytest.warns(UserWarning, match=rf"2 of the text encoder's .* id {number} on.*<my-cat>"):
        load_checkpoint(folder)


def test_a_token_that_no_merge_makes_reaches_nothing(folder: Path) -> None:
    """The token is only in the vocabulary, where transformers does not find it either."""
    number = add_embedding(folder)
    edit_json(folder / "tokenizer" / "vocab.json", **{"<my-cat>": number})
    with pytest.warns(UserWarning, match=f"1 of the text encoder's .* id {number} on"):
        load_checkpoint(folder)


def test_a_token_without_an_embedding_is_named(folder: Path) -> None:
    rows = TEXT["vocab_size"]
    write_json(folder / "tokenizer" / "added_tokens.json", {"<my-cat>": rows})
    with pytest.raises(InputError, match=rf"ids below {rows}.*1 tokens, such as '<my-cat>'"):
        load_checkpoint(folder)


def test_marks_at_the_head_of_files_do_not_matter(folder: Path) -> None:
    (folder / "uam.toml").write_text("guidance = 5.0\n")
    plain = load_checkpoint(folder)
    for file in (*folder.rglob("*.json"), *folder.rglob("*.txt"), folder / "uam.toml"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert_same(load_checkpoint(folder), plain)


# ---- convert ----


def test_a_converted_checkpoint_is_the_same(folder: Path, tmp_path: Path) -> None:
    (folder / "uam.toml").write_text("guidance = 5.0\n")
    edit_tensors(
        folder / "unet" / "diffusion_pytorch_model.safetensors",
        lambda tensors: {name: tensor.astype(np.float16) for name, tensor in tensors.items()},
    )
    original = load_checkpoint(folder)
    first = convert(folder, tmp_path / "new" / "first")
    assert not list(first.rglob("*.safetensors"))
    assert [path.name for path in first.parent.iterdir()] == ["first"]
    assert_same(load_checkpoint(first), original)

    (tmp_path / "empty").mkdir()
    second = load_checkpoint(convert(first, tmp_path / "empty"), dtype=None)
    assert_same(second, original)
    assert second.params["unet"]["conv_in"]["bias"].dtype == jnp.float16  # the stored precision
    assert second.params["vae"]["quant_conv"]["bias"].dtype == jnp.float32


def test_a_converted_checkpoint_has_no_variants(folder: Path, tmp_path: Path) -> None:
    converted = convert(folder, tmp_path / "converted")
    with pytest.raises(InputError, match="is a converted model, which has no variants.*'fp16'"):
        load_checkpoint(converted, variant="fp16")


def test_a_url_is_no_destination(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="gs://bucket/model is a URL"):
        convert(folder, "gs://bucket/model")
    assert not (tmp_path / "gs:").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_destination_that_holds_something_is_refused(folder: Path, tmp_path: Path, kind) -> None:
    destination = tmp_path / "taken"
    if kind == "folder":
        destination.mkdir()
        (destination / "note").touch()
    else:
        destination.touch()
    with pytest.raises(InputError, match="taken exists already"):
        convert(folder, destination)
    assert destination.is_file() or [path.name for path in destination.iterdir()] == ["note"]


def test_a_failed_conversion_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(params: Params, folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load, "save_orbax", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"can't be written: .*No space left"):
        convert(folder, tmp_path / "converted")
    assert sorted(tmp_path.iterdir()) == before
