"""The norms' epsilons, which networks of ordinary weights hide: beside a variance of 1 they are nothing.

So here parts of the weights are made faint, until a norm's input has a variance of about 1e-3. A wrong
epsilon (1e-6 for 1e-5, or the reverse) then changes the output by more than `PER_MODEL`, ten times and more.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import TEXT, UNET, VAE

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import torch
from parity import torch_networks as both

pytestmark = pytest.mark.parity

FAINT = 0.03
CONFIGS = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}


def everything(name: str) -> bool:
    return "norm" not in name


def all_but_transformers(name: str) -> bool:
    return everything(name) and "transformer_blocks" not in name and "proj_out" not in name


def all_but_attention(name: str) -> bool:
    return everything(name) and "attentions" not in name


def inputs_of(component: str) -> both.Arrays:
    rng = np.random.default_rng(0)
    if component == "text_encoder":
        return {"ids": rng.integers(TEXT["vocab_size"], size=(1, 77))}
    latent = rng.normal(size=(1, 4, 8, 4)).astype(np.float32)
    if component == "vae":
        return {"image": np.tanh(np.repeat(latent[..., :3], 2, axis=1)), "latent": latent}
    states = rng.normal(size=(1, 77, UNET["cross_attention_dim"])).astype(np.float32)
    return {"latent": latent, "timestep": np.array([501]), "states": states}


@pytest.mark.parametrize(
    ("component", "faint"),
    [
        ("unet", everything),
        ("unet", all_but_transformers),
        ("vae", everything),
        ("vae", all_but_attention),
        ("text_encoder", everything),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_faint_network(component: str, faint: Callable[[str], bool], tmp_path: Path) -> None:
    network = both.random_network(component, CONFIGS[component])
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if faint(name):
                weight *= FAINT
    network.save_pretrained(tmp_path)
    module, params = both.load(component, tmp_path)
    inputs = inputs_of(component)
    theirs = both.their_outputs(component, network, inputs)
    errors = both.relative_errors(both.our_outputs(component, module, params, inputs), theirs)
    print(component, faint.__name__, errors)
    assert max(errors.values()) <= both.PER_MODEL
