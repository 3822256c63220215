"""Stable Diffusion 1.5 and 2.1 at full size, from random weights in their true layout, against PyTorch.

PyTorch runs first and in a process of its own, so that the two never hold their memory together.
`pytest -m slow -rP tests/parity/test_full_size.py` prints the errors and the memory.
"""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from parity import torch_networks as both

pytestmark = [pytest.mark.parity, pytest.mark.slow]

MEMORY = 12.0
"""The most gigabytes that either process may hold."""

# The config.json files of the published checkpoints, less what names no shape and no computation.
UNET = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
VAE = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
CONFIGS = {
    ("sd-1.5", "text_encoder"): TEXT,
    ("sd-2.1", "text_encoder"): TEXT
    | {
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "projection_dim": 512,
    },
    ("sd-1.5", "unet"): UNET,
    # What it returns is a velocity, which the schedule's parity tests convert.
    ("sd-2.1", "unet"): UNET
    | {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "dual_cross_attention": False,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "sample_size": 96,
        "upcast_attention": True,
        "use_linear_projection": True,
    },
    # Both models' autoencoders have this one shape.
    ("sd-1.5 and 2.1", "vae"): VAE,
}


def drawn(component: str, config: dict) -> both.Arrays:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    if component == "unet":
        states = normal(1, 77, config["cross_attention_dim"])
        return {"latent": normal(1, 64, 64, 4), "timestep": np.array([601]), "states": states}
    if component == "vae":
        return {"image": np.tanh(normal(1, 512, 512, 3)), "latent": normal(1, 64, 64, 4)}
    return {"ids": rng.integers(config["vocab_size"], size=(1, 77))}


def save_reference(component: str, config: dict, folder: Path) -> None:
    """PyTorch's side: writes the network as its library does, and what it computes."""
    network = both.random_network(component, config)
    outputs = both.their_outputs(component, network, drawn(component, config))
    network.save_pretrained(folder)
    np.savez(folder / "outputs.npz", **outputs)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # gigabytes, which pytest would keep


def gigabytes(who: int) -> float:
    return resource.getrusage(who).ru_maxrss * 1024 / 1e9


@pytest.mark.parametrize(("model", "component"), CONFIGS)
def test_full_size(model: str, component: str, folder: Path) -> None:
    config = CONFIGS[model, component]
    subprocess.run(
        [sys.executable, "-m", "parity.test_full_size", model, component, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )

    module, params = both.load(component, folder)
    assert module.config == both.OURS[component][1].from_dict(config)
    ours = both.our_outputs(component, module, params, drawn(component, config))
    with np.load(folder / "outputs.npz") as outputs:
        errors = both.relative_errors(ours, dict(outputs))
    memory = gigabytes(resource.RUSAGE_SELF), gigabytes(resource.RUSAGE_CHILDREN)
    shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    print(
        f"{model} {component}: {shown}; so far {memory[0]:.1f} GB here, {memory[1]:.1f} in PyTorch"
    )
    assert max(errors.values()) <= both.PER_MODEL
    assert max(memory) <= MEMORY


if __name__ == "__main__":
    save_reference(sys.argv[2], CONFIGS[sys.argv[1], sys.argv[2]], Path(sys.argv[3]))
