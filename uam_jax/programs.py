"""The compiled programs behind `Editor`: one jitted function per arrow of the flow.

What decides a program's shape is static (networks, schedule, plan); weights, pictures and text are arrays.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from uam_jax import ddim
from uam_jax.edit import EditTrace
from uam_jax.edit import edit as run_branches
from uam_jax.masks import Rule
from uam_jax.models import (
    VAE,
    TextEncoder,
    attention_backend,
    text_attention,
    uniform_attention,
    uniform_vectors,
)
from uam_jax.plan import Plan
from uam_jax.predictors import Network, branch_predictor, predictor
from uam_jax.types import Conditioning, Image, Latent, Params, Scalar


@functools.partial(jax.jit, static_argnums=0)
def encode(vae: VAE, params: Params, images: Image) -> Latent:
    """The posterior's mean, scaled."""
    mean, _ = vae.apply({"params": params}, images, method="encode")
    return mean * vae.config.scaling_factor


@functools.partial(jax.jit, static_argnums=0)
def decode(vae: VAE, params: Params, latents: Latent) -> Image:
    """Pictures of scaled latents, clipped."""
    images = vae.apply({"params": params}, latents / vae.config.scaling_factor, method="decode")
    return jnp.clip(images, -1.0, 1.0)


@functools.partial(jax.jit, static_argnums=0)
def condition(text_encoder: TextEncoder, params: Params, ids: Int[Array, "b s"]) -> Conditioning:
    """What the U-Net is told."""
    return Conditioning(text_encoder.apply({"params": params}, ids))


@functools.partial(jax.jit, static_argnames=("network", "uniformity", "steps", "depth"))
def invert(
    network: Network,
    params: Params,
    z0: Latent,
    condition: Conditioning,
    null: Conditioning | None,
    guidance: Scalar,
    *,
    uniformity: float,
    steps: int,
    depth: int,
) -> Float[Array, "levels b h w c"]:
    """Latents of the levels 0 to `depth` of `steps`; guided if `null` is given."""
    predict = predictor(
        network,
        params,
        condition,
        batch=z0.shape[0],
        null=null,
        uniformity=uniformity,
        guidance=guidance,
    )
    return ddim.invert(predict, z0, network.schedule.inverting(steps, depth), keep="all")


@functools.partial(jax.jit, static_argnames=("network", "uniformity", "steps", "depth", "last"))
def denoise(
    network: Network,
    params: Params,
    latent: Latent,
    condition: Conditioning,
    null: Conditioning | None,
    guidance: Scalar,
    *,
    uniformity: float,
    steps: int,
    depth: int,
    last: int,
) -> tuple[Latent, Float[Array, "last b h w c"] | None]:
    """From level `depth` of `steps` to 0; also the clean estimates of the `last` steps, if any."""
    predict = predictor(
        network,
        params,
        condition,
        batch=latent.shape[0],
        null=null,
        uniformity=uniformity,
        guidance=guidance,
    )
    levels = network.schedule.denoising(steps, depth)
    if not last:
        return ddim.denoise(predict, latent, levels), None
    return ddim.denoise_with_clean(predict, latent, levels, last=last)


@functools.partial(
    jax.jit,
    static_argnames=("network", "plan", "rule", "radius", "source_line", "blocks", "keep_masks"),
)
def edit(
    network: Network,
    params: Params,
    source: Latent | Float[Array, "n b h w c"],
    start: Latent,
    conditions: dict[str, Conditioning],
    auxiliary_clean: Float[Array, "m b h w c"] | None,
    user_mask: Float[Array, "b h w 1"] | None,
    guidance: Scalar,
    quantile: Scalar,
    *,
    plan: Plan,
    rule: Rule,
    radius: int,
    source_line: bool,
    blocks: tuple[int, int],
    keep_masks: bool,
) -> EditTrace:
    """The source and target branches; `conditions` are of "null", "source" and "target"."""
    predict = branch_predictor(
        network, params, plan, **conditions, guidance=guidance, blocks=blocks
    )
    return run_branches(
        predict,
        source,
        start,
        network.schedule.denoising(plan.steps),
        plan.segments,
        auxiliary_clean=auxiliary_clean,
        user_mask=user_mask,
        rule=rule,
        quantile=quantile,
        radius=radius,
        source_line=source_line,
        keep_masks=keep_masks,
    )


def evaluation_flops(
    network: Network, params: Params, condition: Conditioning, *, uniform: bool
) -> float:
    """Floating-point operations of one evaluation at the native size, by the compiler's count."""
    config = network.unet.config
    latent = jnp.zeros((1, config.sample_size, config.sample_size, config.in_channels))
    step = jax.tree.map(lambda x: x[0], network.schedule.denoising(1))
    # The vectors are an argument: computed once per context, they are no part of an evaluation.
    vectors = uniform_vectors(params, condition.states)

    def evaluate(params: Params, states: Array, vectors: Sequence[Array]) -> Latent:
        rule = uniform_attention(vectors) if uniform else text_attention(states)
        return network.noise(params, latent, step, rule)

    lowered = jax.jit(evaluate).lower(params, condition.states, vectors)
    costs: Any = lowered.cost_analysis()
    return float(costs["flops"])


def attention_of(network: Network) -> str:
    """What computes the U-Net's attention on this machine: "cudnn", "xla", or both."""
    config = network.unet.config
    widths = {c // h for c, h in zip(config.channels, config.heads, strict=True)}
    platform = jax.default_backend()
    return " and ".join(
        sorted({attention_backend((1, 1, 1, w), network.unet.dtype, platform) for w in widths})
    )
