"""Stable Diffusion's layout with a thin U-Net: random in PyTorch, and loaded from the files of a checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from checkpoint_files import INDEX, SCHEDULER, TEXT, VAE, write_json

from uam_jax import Editor
from uam_jax.scenes.bpe import train_tokenizer

UNET = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 2,
    "block_out_channels": [16, 16, 32, 32],
    "cross_attention_dim": TEXT["hidden_size"],
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "sample_size": 8,
}
"""Stable Diffusion's sixteen transformer blocks, with its default block types, but thin."""


@torch.no_grad()
def random_unet(processor: Callable[[int], Any]) -> Any:
    """Random weights with which fifty steps stay finite and the prompt makes a difference.

    Args:
      processor: of both attention layers of a transformer block, by its number in execution order.
    """
    generator = torch.Generator().manual_seed(0)
    unet = diffusers.UNet2DConditionModel.from_config(UNET).eval()
    for name, weight in unet.named_parameters():
        weight.normal_(generator=generator)
        if weight.ndim > 1:
            weight /= weight[0].numel() ** 0.5
        else:
            weight.mul_(0.2).add_(0.0 if name.endswith("bias") else 1.0)
        if name.startswith("conv_out"):
            weight *= 0.3
        if "attn2.to_out" in name:
            weight *= 2
    # Numbered in the order in which they are executed.
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in unet.named_modules()
        if name.endswith("attn1")
    ]
    unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, TEXT["hidden_size"]))
    for handle in handles:
        handle.remove()
    assert len(order) == 16
    for block, name in enumerate(order):
        unet.get_submodule(name).processor = processor(block)
        unet.get_submodule(name.replace("attn1", "attn2")).processor = processor(block)
    return unet


def load_editor(unet: Any, captions: Sequence[str], folder: Path) -> Editor:
    """The same weights, with a random VAE and text encoder and a tokenizer trained on the captions."""
    torch.manual_seed(0)
    networks = {
        "unet": unet,
        "vae": diffusers.AutoencoderKL.from_config(VAE),
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)),
    }
    for component, network in networks.items():
        network.save_pretrained(folder / component)
    write_json(folder / "model_index.json", INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    train_tokenizer([*captions], folder / "tokenizer", vocab_size=TEXT["vocab_size"])
    with pytest.warns(UserWarning, match="belong to no token"):  # these few words make no more
        return Editor.load(folder)
