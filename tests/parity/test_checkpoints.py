"""Checkpoints as diffusers itself writes them: every tensor arrives, from each way of saving them."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import INDEX, SCHEDULER, TEXT, UNET, VAE, write_checkpoint, write_json

from uam_jax.checkpoints import load_checkpoint
from uam_jax.scenes.bpe import train_tokenizer
from uam_jax.weights import torch_name

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
    train_tokenizer(["a red cube"], folder / "tokenizer", vocab_size=530)


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
