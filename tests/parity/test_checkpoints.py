"""Checkpoints as diffusers itself writes them: every tensor arrives, from each way of saving them."""

import copy
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import (
    CAPTIONS,
    INDEX,
    SCHEDULER,
    TEXT,
    UNET,
    VAE,
    write_checkpoint,
    write_json,
)

from uam_jax.checkpoints.load import load_checkpoint
from uam_jax.checkpoints.weights import torch_name
from uam_jax.scenes.bpe import train_tokenizer

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def networks() -> dict:
    torch.manual_seed(0)
    return {
        "unet": diffusers.UNet2DConditionModel.from_config(UNET),
        "vae": diffusers.AutoencoderKL.from_config(VAE),
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)),
    }


def save(networks: dict, folder: Path, **options: object) -> None:
    for component, network in networks.items():
        network.save_pretrained(folder / component, **options)
    write_json(folder / "model_index.json", INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    train_tokenizer(CAPTIONS, folder / "tokenizer", vocab_size=TEXT["vocab_size"])


def assert_every_tensor_arrived(params: dict, networks: dict) -> None:
    for component, network in networks.items():
        state = {
            name.removeprefix("text_model."): tensor.float().numpy()
            for name, tensor in network.state_dict().items()
            if "position_ids" not in name
        }
        for path, leaf in flatten(params[component]):
            theirs = state.pop(torch_name(path).removeprefix("text_model."))
            ours = np.asarray(leaf, np.float32)
            if path[-1] == "kernel":
                ours = np.einsum("io->oi" if ours.ndim == 2 else "hwio->oihw", ours)
            np.testing.assert_array_equal(ours.reshape(theirs.shape), theirs)
        assert not state


def flatten(tree: dict, *path: str):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, *path, name)
        else:
            yield (*path, name), value


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "5KB"}], ids=["whole", "sharded"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_diffusers_own_files(networks: dict, tmp_path: Path, options: dict, variant) -> None:
    if variant:
        networks = {name: copy.deepcopy(network).half() for name, network in networks.items()}
    save(networks, tmp_path, variant=variant, **options)
    assert len(list(tmp_path.glob("unet/*.safetensors"))) > (1 if options else 0)
    assert_every_tensor_arrived(load_checkpoint(tmp_path).params, networks)


def test_pickles_are_refused_and_the_remedy_works(networks: dict, tmp_path: Path) -> None:
    save(networks, tmp_path)
    networks["vae"].save_pretrained(tmp_path / "vae", safe_serialization=False)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="safe_serialization=True"):
        load_checkpoint(tmp_path)
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae", use_safetensors=False)
    vae.save_pretrained(tmp_path / "vae", safe_serialization=True)
    assert_every_tensor_arrived(load_checkpoint(tmp_path).params, networks)


def test_diffusers_loads_what_is_written_here(tmp_path: Path) -> None:
    params = write_checkpoint(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    write_json(tmp_path / "model_index.json", index | {"safety_checker": [None, None]})
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path, safety_checker=None, requires_safety_checker=False
    )
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    assert_every_tensor_arrived(params, parts)


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPTextModelWithProjection"])
def test_more_than_the_text_encoder_may_be_saved(networks: dict, tmp_path: Path, kind: str) -> None:
    """Where transformers' CLIPTextModel loads the same folder to the same states."""
    save(networks, tmp_path)
    text = transformers.CLIPTextConfig(**TEXT, projection_dim=6)
    config = text
    if kind == "CLIPModel":
        vision = {"hidden_size": 12, "intermediate_size": 16, "num_attention_heads": 2}
        vision |= {"num_hidden_layers": 1, "image_size": 8, "patch_size": 4, "projection_dim": 6}
        config = transformers.CLIPConfig(
            text_config=text.to_dict(), vision_config=vision, projection_dim=6
        )
    torch.manual_seed(1)
    getattr(transformers, kind)(config).save_pretrained(tmp_path / "text_encoder")
    theirs = transformers.CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    checkpoint = load_checkpoint(tmp_path)
    assert_every_tensor_arrived(checkpoint.params, networks | {"text_encoder": theirs})
    ids = checkpoint.tokenizer.encode(["a red cube"])
    params = checkpoint.params["text_encoder"]
    ours = checkpoint.text_encoder.apply({"params": params}, jnp.asarray(ids))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long()).last_hidden_state
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_textual_inversion_as_diffusers_saves_it(networks: dict, tmp_path: Path) -> None:
    """A pipeline that learned a placeholder of two vectors, saved whole by diffusers."""
    write_checkpoint(tmp_path / "plain")
    index = json.loads((tmp_path / "plain" / "model_index.json").read_text())
    write_json(tmp_path / "plain" / "model_index.json", index | {"safety_checker": [None, None]})
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "plain", safety_checker=None, requires_safety_checker=False
    )
    vectors = torch.tensor(np.random.default_rng(0).normal(size=(2, 8)), dtype=torch.float32)
    pipeline.load_textual_inversion(vectors, token="<my-cat>")
    pipeline.save_pretrained(tmp_path / "taught")
    checkpoint = load_checkpoint(tmp_path / "taught")
    text = pipeline.maybe_convert_prompt("a red <my-cat>", pipeline.tokenizer)
    (ids,) = checkpoint.tokenizer.encode([text])
    expected = pipeline.tokenizer(text, padding="max_length", max_length=77).input_ids
    np.testing.assert_array_equal(ids, expected)
    table = checkpoint.params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]
    np.testing.assert_array_equal(table["embedding"][ids[3:5]], vectors)
