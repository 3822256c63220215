"""Weights of one network: layouts, precisions, hashes, and differences that are named."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import (
    MODULES,
    Tensors,
    edit_tensors,
    random_params,
    renamed,
    reshaped,
)
from safetensors.numpy import load_file

from uam_jax import models
from uam_jax.checkpoints.weights import load_params, save_orbax, save_safetensors, torch_name
from uam_jax.errors import InputError
from uam_jax.types import Params

FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
PARAMS = random_params()
EXPECTED = {name: models.expected_params(module) for name, module in MODULES.items()}


def load(folder: Path, component: str, dtype: str | None = "float32", variants=("", "fp16")):
    return load_params(EXPECTED[component], folder, component, dtype=dtype, variants=variants)


def save(folder: Path, component: str, **options) -> Path:
    save_safetensors(PARAMS[component], folder, component, **options)
    return folder / FILES[component]


def assert_equal(params: Params, component: str) -> None:
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS[component])
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS[component])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("down_blocks_0/attentions_1/norm/scale", "down_blocks.0.attentions.1.norm.weight"),
        ("time_embedding/linear_1/kernel", "time_embedding.linear_1.weight"),
        ("ff/net_0/proj/bias", "ff.net.0.proj.bias"),
        ("attn2/to_out_0/kernel", "attn2.to_out.0.weight"),
        (
            "text_model/embeddings/token_embedding/embedding",
            "text_model.embeddings.token_embedding.weight",
        ),
        ("encoder/layers_11/mlp/fc1/kernel", "encoder.layers.11.mlp.fc1.weight"),
    ],
)
def test_names_follow_one_rule(path: str, name: str) -> None:
    assert torch_name(path.split("/")) == name


def test_only_kernels_change_their_axes(tmp_path: Path) -> None:
    text, vae = (
        load_file(save(tmp_path / "t", "text_encoder")),
        load_file(save(tmp_path / "v", "vae")),
    )
    linear = PARAMS["text_encoder"]["text_model"]["encoder"]["layers_0"]["mlp"]["fc1"]["kernel"]
    table = PARAMS["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    convolution = PARAMS["vae"]["encoder"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(
        text["text_model.encoder.layers.0.mlp.fc1.weight"], np.einsum("io->oi", linear)
    )
    np.testing.assert_array_equal(text["text_model.embeddings.token_embedding.weight"], table)
    np.testing.assert_array_equal(
        vae["encoder.conv_in.weight"], np.einsum("hwio->oihw", convolution)
    )


@pytest.mark.parametrize("component", list(FILES))
def test_what_is_saved_is_loaded(tmp_path: Path, component: str) -> None:
    save(tmp_path, component)
    assert_equal(load(tmp_path, component)[0], component)


OLD_VAE_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_vae_name(name: str) -> str:
    for new, old in OLD_VAE_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def with_position_ids(tensors: Tensors) -> Tensors:
    return tensors | {"text_model.embeddings.position_ids": np.arange(77)[None]}


def with_pictures_half(tensors: Tensors) -> Tensors:
    """A whole CLIPModel, with the parts that the text encoder does not use."""
    rng = np.random.default_rng(0)
    surplus = {
        "logit_scale": (),
        "text_projection.weight": (8, 8),
        "visual_projection.weight": (8, 12),
        "vision_model.embeddings.class_embedding": (12,),
        "vision_model.embeddings.patch_embedding.weight": (12, 3, 4, 4),
        "vision_model.encoder.layers.0.self_attn.q_proj.bias": (12,),
        "vision_model.pre_layrnorm.weight": (12,),
    }
    more = {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in surplus.items()}
    positions = {"vision_model.embeddings.position_ids": np.arange(5)[None]}
    return with_position_ids(tensors) | more | positions


def as_convolution(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], 1, 1)


LAYOUTS = {
    "CLIP without prefix": ("text_encoder", renamed(lambda n: n.removeprefix("text_model."))),
    "CLIP with position ids": ("text_encoder", with_position_ids),
    "CLIP with position ids, without prefix": (
        "text_encoder",
        lambda t: renamed(lambda n: n.removeprefix("text_model."))(with_position_ids(t)),
    ),
    "CLIP with its half for pictures": ("text_encoder", with_pictures_half),
    "CLIP with a projection": (
        "text_encoder",
        lambda t: t | {"text_projection.weight": np.ones((8, 8), np.float32)},
    ),
    "CLIP with OpenAI's projection": (
        "text_encoder",
        lambda t: t | {"text_projection": np.ones((8, 8), np.float32)},
    ),
    "VAE with old names": ("vae", renamed(old_vae_name)),
    "VAE with convolutional attention": ("vae", reshaped(".to_", as_convolution)),
    "VAE with linear 1x1 convolutions": ("vae", reshaped("quant_conv", lambda s: s[:2])),
    "U-Net with convolutional projections": ("unet", reshaped(".proj_", as_convolution)),
    "U-Net with linear shortcuts": ("unet", reshaped("conv_shortcut", lambda s: s[:2])),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_layouts_of_the_hub_give_the_same_params_and_hash(tmp_path: Path, layout: str) -> None:
    component, change = LAYOUTS[layout]
    file = save(tmp_path, component)
    _, plain = load(tmp_path, component)
    edit_tensors(file, change)
    params, digest = load(tmp_path, component)
    assert_equal(params, component)
    assert digest == plain


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards_and_variants(tmp_path: Path, variant: str) -> None:
    save_safetensors(PARAMS["unet"], tmp_path, "unet", variant=variant, shard_bytes=5000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert all(f"model{variant and '.'}{variant}-0" in shard.name for shard in shards)
    assert_equal(load(tmp_path, "unet")[0], "unet")


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_precisions(tmp_path: Path, stored: str, dtype: str | None) -> None:
    tree = jax.tree.map(lambda a: a.astype(jnp.dtype(stored)), PARAMS["text_encoder"])
    save_safetensors(tree, tmp_path, "text_encoder")
    params, digest = load(tmp_path, "text_encoder", dtype)
    wanted = dtype or ("float32" if stored == "float64" else stored)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(wanted)}
    assert_equal(jax.tree.map(lambda a: np.asarray(a, np.float32), params), "text_encoder")
    save(tmp_path, "text_encoder")
    assert digest == load(tmp_path, "text_encoder")[1]


def changed_header(file: Path, dtype: str, size: int, *names: str) -> None:
    """Changes the dtype of tensors in the header of a float32 file to another one of `size` bits."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name in names:
        header[name]["dtype"] = dtype
        header[name]["shape"] = [
            *header[name]["shape"][:-1],
            header[name]["shape"][-1] * 32 // size,
        ]
    head = json.dumps(header).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + length :])


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("F8_E4M3", 8),
        ("F8_E5M2", 8),
        ("F8_E8M0", 8),
        ("U8", 8),
        ("I32", 32),
        ("BOOL", 8),
    ],
)
def test_numbers_of_another_kind_are_named_with_the_remedy(
    tmp_path: Path, dtype: str, size: int
) -> None:
    """Other programs save float8 to make files small; NumPy has no such dtype."""
    tensors = ("quant_conv.bias", "post_quant_conv.bias")
    save_safetensors(PARAMS["vae"], tmp_path, "vae")
    file = tmp_path / FILES["vae"]
    shrunk = {name: load_file(file)[name] for name in tensors}
    edit_tensors(
        file, lambda t: t | {n: v.reshape(-1)[: len(v) * size // 32] for n, v in shrunk.items()}
    )
    changed_header(file, dtype, size, *tensors)
    with pytest.raises(InputError) as caught:
        load(tmp_path, "vae")
    message = str(caught.value)
    assert (
        message.startswith(f"{file}: tensor ")
        and f"quant_conv.bias holds {dtype}, like 1 more" in message
    )
    assert "save_pretrained" in message and "float16" in message


def test_what_is_surplus_by_rule_may_hold_anything(tmp_path: Path) -> None:
    file = save(tmp_path, "text_encoder")
    edit_tensors(file, lambda t: t | {"logit_scale": np.zeros(4, np.float32)})
    changed_header(file, "F8_E4M3", 8, "logit_scale")
    assert_equal(load(tmp_path, "text_encoder")[0], "text_encoder")


def test_the_hash_sees_one_changed_bit(tmp_path: Path) -> None:
    file = save(tmp_path, "vae")
    _, before = load(tmp_path, "vae")
    edit_tensors(file, lambda t: t | {"quant_conv.bias": np.nextafter(t["quant_conv.bias"], 9)})
    assert load(tmp_path, "vae")[1] != before


def test_orbax_gives_the_same_params_and_hash(tmp_path: Path) -> None:
    save(tmp_path / "a", "unet")
    params, digest = load(tmp_path / "a", "unet")
    save_orbax(params, tmp_path / "b")
    again, digest_again = load(tmp_path / "b", "unet")
    assert_equal(again, "unet")
    assert digest_again == digest


def test_all_differences_are_in_one_message(tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        del tensors["conv_in.bias"], tensors["mid_block.resnets.0.norm1.weight"]
        tensors["conv_out.weight"] = tensors["conv_out.weight"][:, :, :2]
        return tensors | {"add_embedding.linear_1.weight": np.zeros((2, 3), np.float32)}

    edit_tensors(save(tmp_path, "unet"), spoil)
    with pytest.raises(InputError) as caught:
        load(tmp_path, "unet")
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "2 missing: conv_in.bias; mid_block.resnets.0.norm1.weight" in message
    assert "1 surplus: add_embedding.linear_1.weight" in message
    assert "conv_out.weight is (4, 8, 2, 3), expected (4, 8, 3, 3)" in message


def test_a_long_list_of_differences_is_cut(tmp_path: Path) -> None:
    edit_tensors(save(tmp_path, "unet"), renamed(lambda name: f"model.{name}"))
    with pytest.raises(InputError) as caught:
        load(tmp_path, "unet")
    count = len(jax.tree.leaves(PARAMS["unet"]))
    assert f"{count} missing" in str(caught.value) and f"{count} surplus" in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_differences_of_an_orbax_checkpoint_are_named(tmp_path: Path) -> None:
    tree = dict(PARAMS["vae"])
    tree["further"] = tree.pop("quant_conv")
    save_orbax(tree, tmp_path)
    with pytest.raises(InputError, match="2 missing: quant_conv/bias; quant_conv/kernel") as caught:
        load(tmp_path, "vae")
    assert "2 surplus: further/bias; further/kernel" in str(caught.value)


def test_two_layouts_at_once_are_refused(tmp_path: Path) -> None:
    def double(tensors: Tensors) -> Tensors:
        return tensors | {"final_layer_norm.bias": tensors["text_model.final_layer_norm.bias"]}

    edit_tensors(save(tmp_path, "text_encoder"), double)
    with pytest.raises(InputError, match=r"1 stored twice: (text_model\.)?final_layer_norm.bias"):
        load(tmp_path, "text_encoder")


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(tmp_path: Path, poison: float) -> None:
    edit_tensors(
        save(tmp_path, "vae"), lambda t: t | {"quant_conv.bias": np.full(8, poison, np.float32)}
    )
    with pytest.raises(InputError, match=r"quant_conv\.bias holds NaN or infinite"):
        load(tmp_path, "vae")


def test_values_too_large_for_the_precision_are_named(tmp_path: Path) -> None:
    large = {"quant_conv.bias": np.full(8, 1e6, np.float32)}
    edit_tensors(save(tmp_path, "vae"), lambda t: t | large)
    with pytest.raises(InputError, match=r"quant_conv\.bias overflows float16"):
        load(tmp_path, "vae", "float16")
    assert load(tmp_path, "vae", "bfloat16")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-5],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        lambda data: b"\xff" * 64 + data,
        lambda data: data[:8] + b"[" * 1000 + data[1008:],
    ],
    ids=["end cut", "header cut", "empty", "git-lfs pointer", "garbage", "garbled header"],
)
def test_a_file_that_is_not_safetensors_is_named(tmp_path: Path, spoil) -> None:
    file = save(tmp_path, "vae")
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: not a whole safetensors file"):
        load(tmp_path, "vae")


def test_a_variant_asked_for_must_be_there(tmp_path: Path) -> None:
    save(tmp_path, "vae")
    with pytest.raises(InputError, match=r"no diffusion_pytorch_model\.fp16\.safetensors"):
        load(tmp_path, "vae", variants=("fp16",))


INDEX = "diffusion_pytorch_model.safetensors.index.json"


def sharded(folder: Path) -> dict:
    save_safetensors(PARAMS["vae"], folder, "vae", shard_bytes=5000)
    return json.loads((folder / INDEX).read_text())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shard = sorted(set(sharded(tmp_path)["weight_map"].values()))[1]
    (tmp_path / shard).unlink()
    with pytest.raises(InputError, match=f"its shard {re.escape(shard)} is missing"):
        load(tmp_path, "vae")


@pytest.mark.parametrize("name", ["../{}", "/tmp/{}", "..\\{}", "a/{}", "x.bin", "", 3, None])
def test_a_shard_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    index = sharded(tmp_path / "vae")
    shard = index["weight_map"]["quant_conv.bias"]
    (tmp_path / shard).write_bytes((tmp_path / "vae" / shard).read_bytes())
    elsewhere = name.format(shard) if isinstance(name, str) else name
    index["weight_map"]["quant_conv.bias"] = elsewhere
    (tmp_path / "vae" / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="is not the name of a safetensors file beside it"):
        load(tmp_path / "vae", "vae")


def test_an_index_that_is_wrong_about_its_shards_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    where = index["weight_map"].pop("quant_conv.bias")
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        InputError, match=r"1 tensors are not in the shard that the index names: quant_conv\.bias"
    ):
        load(tmp_path, "vae")
    index["weight_map"] |= {"quant_conv.bias": where, "quant_conv.blas": where}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        InputError, match=r"1 tensors are not in the shard that the index names: quant_conv\.blas"
    ):
        load(tmp_path, "vae")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', "\xff", "[" * 10**5])
def test_an_index_that_does_not_parse_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=re.escape(INDEX)):
        load(tmp_path, "vae")


def test_a_damaged_orbax_checkpoint_is_named(tmp_path: Path) -> None:
    save_orbax(PARAMS["vae"], tmp_path)
    for file in (tmp_path / "orbax").rglob("*"):
        if file.is_file() and "ocdbt" in file.name:
            file.write_bytes(b"")
    with pytest.raises(InputError, match="not a readable Orbax checkpoint"):
        load(tmp_path, "vae")
