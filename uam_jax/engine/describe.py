"""A summary of a loaded model."""

from typing import Any

import jax
import jax.numpy as jnp

from uam_jax.engine import programs
from uam_jax.engine.loaded import LoadedModel


def describe_model(model: LoadedModel) -> dict[str, Any]:
    """A model's parts, sizes and the cost of one of its evaluations, for a summary."""
    denoiser = model.checkpoint.denoiser
    latent = jnp.zeros((1, *[denoiser.native_side] * 2, model.latent_channels))
    null = model.inverter.condition("")
    flops = {
        name: programs.evaluation_flops(denoiser, model.params, null, latent, uniform=uniform)
        for name, uniform in {"text": False, "uniform": True}.items()
    }
    return {
        "model": model.name,
        "weights": model.weights_hash,
        "model_hash": model.model_hash,
        "dtype": model.dtype,
        "parameters": {
            part: sum(leaf.size for leaf in jax.tree.leaves(tree))
            for part, tree in model.params.items()
        },
        "native_size": model.native_size,
        "size_multiple": model.size_multiple,
        "latent_channels": model.latent_channels,
        "attention": " and ".join(sorted(denoiser.attention_backends(model.platform))),
        "gflop_per_evaluation": {name: count and count / 1e9 for name, count in flops.items()},
    }
