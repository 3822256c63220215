"""The choice of a weight file in a folder; test_weights.py tests the tensors."""

from pathlib import Path

import pytest

from uam_jax.checkpoints.weight_files import listed, open_safetensors, weight_file
from uam_jax.errors import InputError


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["", "fp16"], ["", "fp16"]),
        (["fp16"], ["fp16", "fp16"]),
        ([""], ["", ""]),
    ],
)
def test_the_preferred_variant_is_taken(names: list[str], chosen: list[str]) -> None:
    def file(variant: str) -> str:
        return f"model{variant and '.'}{variant}.safetensors"

    there = list(map(file, names))
    for variants, variant in zip((("", "fp16"), ("fp16", "")), chosen, strict=True):
        assert weight_file(there, "text_encoder", variants, "here") == file(variant)
    with pytest.raises(InputError, match=r"here: there is no model\.bf16\.safetensors"):
        weight_file(there, "text_encoder", ("bf16",), "here")


def test_both_spellings_of_a_sharded_variant_are_known() -> None:
    for name in ("model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"):
        assert weight_file([name], "text_encoder", ("", "fp16"), "here") == name


@pytest.mark.parametrize("name", ["model.bin", "pytorch_model.fp16.bin", "v1-5.ckpt", "x.pt"])
def test_pickles_are_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(InputError, match=r"^here: only .*safe_serialization=True") as caught:
        weight_file([name, "config.json"], "unet", ("", "fp16"), "here")
    assert name in str(caught.value) and "can run code" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (["diffusion_flax_model.msgpack"], "from_flax=True"),
        (["flax_model-00001-of-00002.msgpack", "flax_model.msgpack.index.json"], "from_flax=True"),
        (["tf_model.h5"], "safetensors"),
        (["model.onnx", "weights.pb"], "safetensors"),
        (["unet.gguf"], "safetensors"),
    ],
)
def test_other_formats_alone_are_refused_with_the_remedy(names: list[str], remedy: str) -> None:
    with pytest.raises(InputError, match=f"here: only {names[0]}.*{remedy}.*save_pretrained"):
        weight_file(["config.json", *names], "unet", ("", "fp16"), "here")


def test_other_formats_beside_safetensors_do_not_hide_them() -> None:
    names = ["model.bin", "flax_model.msgpack", "model.safetensors"]
    assert weight_file(names, "text_encoder", ("", "fp16"), "here") == "model.safetensors"
    with pytest.raises(
        InputError, match=r"no model\.bf16\.safetensors.*the folder has: flax_model"
    ):
        weight_file(names, "text_encoder", ("bf16",), "here")


def test_a_folder_without_weights_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no model\.safetensors .* the folder has: config\.json"):
        open_safetensors(tmp_path, "text_encoder", ("", "fp16"))
    with pytest.raises(InputError, match="the folder has: nothing"):
        open_safetensors(tmp_path / "absent", "text_encoder", ("",))


def test_long_lists_are_cut() -> None:
    assert listed(["b", "a"]) == "a, b"
    assert listed([str(number) for number in range(99)]).endswith(", ...")
