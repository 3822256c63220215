"""The compiled programs behind `Editor`: one pure function per arrow of the flow.

The arguments that decide a program's shape are static (networks, schedule, plan); weights, pictures and text are
arrays. `params` is the checkpoint's whole dict. Each program declares its batch axes, so that it runs on any number of
devices (`on=`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from uam_jax.engine.parallel import platform_of, program
from uam_jax.engine.predictors import Network, branch_predictor, predictor
from uam_jax.method import confidence, ddim
from uam_jax.method.confidence import Signals, edit_signals
from uam_jax.method.controls import Control
from uam_jax.method.edit import EditTrace
from uam_jax.method.edit import edit as run_branches
from uam_jax.method.masks import Rule
from uam_jax.method.plan import Plan
from uam_jax.method.uniform import UniformMaps
from uam_jax.models import VAE, Denoiser, decode_in_tiles, encode_in_tiles
from uam_jax.runtime.platforms import tracing_for
from uam_jax.types import Condition, Image, Latent, Params, Regions, Rules, Scalar

TILED_ABOVE = 1024 * 1024
"""Pixels of a picture above which the VAE runs in tiles: slower, the same up to rounding, in little memory."""


def _is_large(size: Sequence[int]) -> bool:
    height, width = size
    return height * width > TILED_ABOVE


@program(static=["vae"], batched={"images": 0}, out=0)
def encode(vae: VAE, params: Params, images: Image) -> Latent:
    """The posterior's mean, scaled."""
    if _is_large(images.shape[1:3]):
        mean, _ = encode_in_tiles(vae, params["vae"], images)
    else:
        mean, _ = vae.apply({"params": params["vae"]}, images, method="encode")
    return mean * vae.config.scaling_factor


@program(static=["vae"], batched={"latents": 0}, out=0)
def decode(vae: VAE, params: Params, latents: Latent) -> Image:
    """Pictures of scaled latents, clipped."""
    latents = latents / vae.config.scaling_factor
    if _is_large([side * vae.config.factor for side in latents.shape[1:3]]):
        images = decode_in_tiles(vae, params["vae"], latents)
    else:
        images = vae.apply({"params": params["vae"]}, latents, method="decode")
    return jnp.clip(images, -1.0, 1.0)


@program(static=["denoiser"], batched={"ids": 0}, out=0)
def condition(denoiser: Denoiser, params: Params, ids: Int[Array, "b s"]) -> Condition:
    """See `Denoiser.condition`."""
    return denoiser.condition(params, ids)


@program(
    static=["network", "uniformity", "steps", "levels"],
    batched={"z0": 0, "condition": 0, "regions": 1},
    out=1,
)
def invert(
    network: Network,
    params: Params,
    z0: Latent,
    condition: Condition | None,
    null: Condition | None,
    guidance: Scalar,
    regions: Float[Array, "blocks b h w"] | None = None,
    regions_null: Condition | None = None,
    *,
    uniformity: float,
    steps: int,
    levels: tuple[int, ...],
) -> Float[Array, "levels b h w c"]:
    """Latents of some levels of `steps`; see `predictor` for the conditions, `Regions` for the regions."""
    parts = None if regions is None else Regions(regions, regions_null)
    predict = predictor(network, params, condition, null, uniformity, guidance, z0.shape[0], parts)
    return ddim.invert(predict, z0, network.schedule.inverting(steps, max(levels)), keep=levels)


@program(
    static=["network", "uniformity", "steps", "depth", "last"],
    batched={"latent": 0, "condition": 0, "regions": 1},
    out=(0, 1),
    donated=["latent"],
)
def denoise(
    network: Network,
    params: Params,
    latent: Latent,
    condition: Condition | None,
    null: Condition | None,
    guidance: Scalar,
    regions: Float[Array, "blocks b h w"] | None = None,
    regions_null: Condition | None = None,
    *,
    uniformity: float,
    steps: int,
    depth: int,
    last: int,
) -> tuple[Latent, Float[Array, "last b h w c"] | None]:
    """From level `depth` of `steps` to 0; also the clean estimates of the `last` steps, if any."""
    parts = None if regions is None else Regions(regions, regions_null)
    predict = predictor(
        network, params, condition, null, uniformity, guidance, latent.shape[0], parts
    )
    levels = network.schedule.denoising(steps, depth)
    if not last:
        return ddim.denoise(predict, latent, levels), None
    return ddim.denoise_with_clean(predict, latent, levels, last=last)


@program(
    static=["network", "plan", "rule", "radius", "source_line", "control", "keep_masks"],
    batched={
        "start": 0,
        "trajectory": 1,
        "conditions": {"null": None, "source": 0, "target": 0},
        "auxiliary_clean": 1,
        "user_mask": 0,
    },
    out=EditTrace(target=0, source=0, free=0, change=0, stability=0, masks=1),
    donated=["start"],
)
def edit(
    network: Network,
    params: Params,
    start: Latent,
    trajectory: Float[Array, "n b h w c"] | None,
    conditions: dict[str, Condition],
    auxiliary_clean: Float[Array, "m b h w c"] | None,
    user_mask: Float[Array, "b h w 1"] | None,
    guidance: Scalar,
    quantile: Scalar,
    region: Scalar | None = None,
    *,
    plan: Plan,
    rule: Rule,
    radius: int,
    source_line: bool,
    control: Control,
    keep_masks: bool,
) -> EditTrace:
    """The source and target branches from `start`; the source is anchored on its `trajectory`, if given."""
    predict = branch_predictor(
        network, params, plan, **conditions, guidance=guidance, control=control
    )
    return run_branches(
        predict,
        start if trajectory is None else trajectory,
        start,
        network.schedule.denoising(plan.steps),
        plan.segments,
        auxiliary_clean=auxiliary_clean,
        user_mask=user_mask,
        rule=rule,
        quantile=quantile,
        radius=radius,
        source_line=source_line,
        region=region,
        keep_masks=keep_masks,
    )


@program(
    static=[],
    batched={
        "images": 0,
        "edited": 0,
        "rebuilt": 0,
        "z0": 0,
        "start": 0,
        "trace": EditTrace(target=0, source=0, free=0, change=0, stability=0, masks=1),
    },
    out=0,
)
def signals(
    images: Image, edited: Image, rebuilt: Image, z0: Latent, start: Latent, trace: EditTrace
) -> Signals:
    """See `confidence.edit_signals`."""
    return edit_signals(images, edited, rebuilt, z0, start, trace)


@program(static=[], batched={"images": 0, "rebuilt": 0}, out=0)
def error_map(images: Image, rebuilt: Image) -> Float[Array, "b height width"]:
    """See `confidence.error_map`."""
    return confidence.error_map(images, rebuilt)


def evaluation_flops(
    denoiser: Denoiser,
    params: Params,
    condition: Condition,
    latent: Latent,
    *,
    uniform: bool,
) -> float | None:
    """Floating-point operations of one evaluation by the compiler's count; None where it gives none.

    Args:
      denoiser: the model.
      params: of the checkpoint.
      condition: of one text.
      latent: of the size in question; its values don't matter.
      uniform: with uniform cross-attention maps, in place of the text's.
    """
    # The compiler sees into this kind of attention alone: not into a fused kernel, and of a loop one turn.
    denoiser = denoiser.with_attention("xla")
    rules = Rules(cross=UniformMaps() if uniform else None)

    def evaluate(params: Params, latent: Latent) -> Latent:
        return denoiser.predict(params, latent, jnp.int32(1), condition, rules)[0]

    with tracing_for(platform_of(params)):
        lowered = jax.jit(evaluate).lower(params, latent)
    try:
        costs: Any = lowered.cost_analysis()
    except NotImplementedError:  # on this backend
        return None
    return float(costs["flops"]) if costs and "flops" in costs else None
