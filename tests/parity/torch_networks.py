"""One network twice: random in PyTorch, saved as its library saves it and loaded here; the same inputs for both."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from uam_jax import models
from uam_jax.checkpoints.weights import load_params
from uam_jax.types import Params

PER_BLOCK, PER_MODEL = 1e-5, 1e-4
"""The largest `relative_error` of one block and of a whole network."""

THEIRS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
OURS = {
    "unet": (models.UNet, models.UNetConfig),
    "vae": (models.VAE, models.VAEConfig),
    "text_encoder": (models.TextEncoder, models.TextConfig),
}

Arrays = Mapping[str, np.ndarray]
"""A network's inputs or outputs by name; pictures are NHWC."""


@torch.no_grad()
def random_network(component: str, config: dict, seed: int = 0) -> torch.nn.Module:
    """Random weights such that a mistake shows: norms that scale and shift, biases that aren't small."""
    if component == "text_encoder":
        network = CLIPTextModel(CLIPTextConfig(**config))
    else:
        network = THEIRS[component].from_config(config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        weight.normal_(generator=generator)
        if weight.ndim > 1:
            weight /= weight[0].numel() ** 0.5
        else:
            weight.mul_(0.3).add_(0.0 if name.endswith("bias") else 1.0)
    return network.eval()


@torch.no_grad()
def their_outputs(component: str, network: Any, inputs: Arrays) -> Arrays:
    given = {name: as_torch(x) for name, x in inputs.items()}
    if component == "unet":
        outputs = {"noise": network(*given.values()).sample}
    elif component == "vae":
        posterior = network.encode(given["image"]).latent_dist
        picture = network.decode(given["latent"]).sample
        outputs = {"mean": posterior.mean, "log_variance": posterior.logvar, "picture": picture}
    else:
        outputs = {"states": network(given["ids"]).last_hidden_state}
    return {name: as_numpy(x) for name, x in outputs.items()}


def our_outputs(component: str, module: Any, params: Params, inputs: Arrays) -> dict[str, Any]:
    """The same outputs under the same names."""

    def compute(params: Params, inputs: Mapping[str, Any]) -> dict[str, Any]:
        network = module.bind({"params": params})
        if component == "unet":
            noise, _ = network(inputs["latent"], inputs["timestep"], inputs["states"])
            return {"noise": noise}
        if component == "vae":
            mean, log_variance = network.encode(inputs["image"])
            picture = network.decode(inputs["latent"])
            return {"mean": mean, "log_variance": log_variance, "picture": picture}
        return {"states": network(inputs["ids"])}

    with jax.default_matmul_precision("highest"):
        return jax.block_until_ready(jax.jit(compute)(params, dict(inputs)))


def load(component: str, folder: Path) -> tuple[Any, Params]:
    """Our module and its params from the files that PyTorch's libraries wrote into `folder`."""
    network, config = OURS[component]
    module = network(config.from_dict(json.loads((folder / "config.json").read_text())))
    expected = models.expected_params(module)
    params, _ = load_params(expected, folder, component, dtype="float32", variants=("",))
    return module, params


def relative_errors(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """max|a - b| / max|b| of each output."""
    assert ours.keys() == theirs.keys()
    return {name: relative_error(ours[name], theirs[name]) for name in ours}


def relative_error(ours: Any, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape and np.isfinite(theirs).all()
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return float(np.abs(difference).max() / np.abs(theirs).max())


def as_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy() if x.ndim == 4 else x)


def as_numpy(x: torch.Tensor) -> np.ndarray:
    array = x.detach().numpy()
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array
