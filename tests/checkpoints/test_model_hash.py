"""The hash of a model: changes that it depends on, and changes that it does not depend on."""

import json
from pathlib import Path

import pytest
from checkpoint_files import assert_same, edit_json, edit_tensors, write_json

from uam_jax.checkpoints.load import convert, load_checkpoint
from uam_jax.checkpoints.model_hash import differences


def test_the_models_hash_does_not_depend_on_how_it_is_written(folder: Path, tmp_path: Path) -> None:
    plain = load_checkpoint(folder)
    assert plain.model_hash.startswith(f"{plain.weights_hash}-")
    converted = load_checkpoint(convert(folder, tmp_path / "elsewhere"), dtype="bfloat16")
    edit_json(folder / "unet" / "config.json", _name_or_path="x", freq_shift=0, sample_size=[4, 4])
    edit_json(folder / "vae" / "config.json", sample_size=16, scaling_factor=0.18215)
    edit_json(folder / "text_encoder" / "config.json", torch_dtype="float16", layer_norm_eps=1e-5)
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler")
    edit_json(folder / "model_index.json", _diffusers_version="0.1")
    rewritten = load_checkpoint(str(folder) + "/")
    assert converted.model_hash == rewritten.model_hash == plain.model_hash


def as_one_file(folder: Path) -> None:
    """Writes a tokenizer as transformers 5 does, in place of its own files."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    model = {"end_of_word_suffix": "</w>", "vocab": vocabulary, "merges": merges}
    write_json(folder / "tokenizer.json", {"model": model})
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink()


def test_the_models_hash_does_not_depend_on_the_tokenizers_files(folder: Path) -> None:
    plain = load_checkpoint(folder)
    as_one_file(folder / "tokenizer")
    assert_same(load_checkpoint(folder), plain)


def swap_two_merges(folder: Path) -> None:
    file = folder / "tokenizer" / "merges.txt"
    version, first, second, *others = file.read_text().splitlines()
    file.write_text("\n".join([version, second, first, *others]))


CHANGES = {
    "scheduler/scheduler_config.json": [
        {"prediction_type": "v_prediction"},
        {"beta_end": 0.013},
        {"beta_start": 0.0009},
        {"beta_schedule": "linear"},
        {"timestep_spacing": "trailing"},
        {"steps_offset": 0},
        {"set_alpha_to_one": True},
        {"num_train_timesteps": 999},
    ],
    "vae/config.json": [{"scaling_factor": 0.2}, {"norm_num_groups": 2}],
    "unet/config.json": [
        {"norm_eps": 1e-6},
        {"attention_head_dim": 4},
        {"flip_sin_to_cos": False},
        {"freq_shift": 1},
    ],
    "text_encoder/config.json": [{"hidden_act": "gelu"}, {"num_attention_heads": 4}],
    "tokenizer/tokenizer_config.json": [{"model_max_length": 40}, {"pad_token": "!"}],
}


@pytest.mark.parametrize(
    ("file", "change"),
    [(file, change) for file, changes in CHANGES.items() for change in changes],
    ids=str,
)
def test_all_that_changes_a_result_changes_the_models_hash(
    folder: Path, file: str, change: dict
) -> None:
    plain = load_checkpoint(folder)
    if "pad_token" in change:
        (folder / "tokenizer" / "special_tokens_map.json").unlink()
    edit_json(folder / file, **change)
    changed = load_checkpoint(folder)
    assert changed.weights_hash == plain.weights_hash
    part = {"scheduler": "scheduler", "tokenizer": "tokenizer"}.get(file.split("/")[0])
    assert differences(changed.model_hash, plain.model_hash) == (part or "networks' configs")


def test_weights_and_merges_change_the_models_hash(folder: Path) -> None:
    plain = load_checkpoint(folder).model_hash
    swap_two_merges(folder)
    merged = load_checkpoint(folder).model_hash
    assert differences(merged, plain) == "tokenizer"
    edit_tensors(
        folder / "vae" / "diffusion_pytorch_model.safetensors",
        lambda t: t | {"quant_conv.bias": t["quant_conv.bias"] + 1},
    )
    assert differences(load_checkpoint(folder).model_hash, plain) == "weights, tokenizer"
    assert differences(plain, plain) == ""
