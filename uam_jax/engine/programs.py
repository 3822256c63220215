"""The compiled programs behind `Editor`: one pure function per arrow of the flow.

The arguments that decide a program's shape are static (networks, schedule, courses); weights, pictures and text are
arrays. `params` is the checkpoint's whole dict. Each program declares its batch axes, so that it runs on any number of
devices (`on=`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from uam_jax.engine.parallel import platform_of, program
from uam_jax.engine.predictors import (
    Branch,
    Course,
    Model,
    branch_predictor,
    noise_under,
    predictor,
    retracing,
    source_branch,
)
from uam_jax.errors import InputError
from uam_jax.method import confidence, sample
from uam_jax.method.agreement import agreement as agreement_of
from uam_jax.method.confidence import Signals, edit_signals
from uam_jax.method.config import EditConfig
from uam_jax.method.controls import Control
from uam_jax.method.edit import EditInputs, EditRules, EditTrace
from uam_jax.method.edit import edit as run_branches
from uam_jax.method.heat_maps import HeatMaps, WordHeat, heat_maps
from uam_jax.method.inversions import InversionMethod
from uam_jax.method.masks import MaskRule
from uam_jax.method.plan import Plan, Row, Segment
from uam_jax.method.samplers import SAMPLERS, Sampler
from uam_jax.method.schedule import at_own_times
from uam_jax.method.uniform import UniformMaps
from uam_jax.models import VAE, Denoiser, decode_in_tiles, encode_in_tiles
from uam_jax.runtime.platforms import tracing_for
from uam_jax.types import Condition, Image, Latent, Params, Prediction, Rules, Scalar, Site, Step

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


BRANCH_AXES = Branch(condition=0, null=None, guidance=None, regions=1, regions_null=None)
"""The batch axes of a branch."""


@program(
    static=["model", "course", "method", "levels"],
    batched={"z0": 0, "branch": BRANCH_AXES, "source": BRANCH_AXES},
    out=1,
)
def invert(
    model: Model,
    params: Params,
    z0: Latent,
    branch: Branch,
    source: Branch,
    *,
    course: Course,
    method: InversionMethod,
    levels: tuple[int, ...],
) -> dict[str, Array]:
    """The data of an inversion: the latents of some levels, and further arrays that the method records.

    `source` are the conditions of the edit's source branch, without any where the method does not need it.
    """
    predict = predictor(model, params, branch, course.uniformity, z0.shape[0])
    up = model.schedule.inverting(course.steps, max(levels))
    if course.sampler.own_times:
        up = at_own_times(up)
    more = {"source": source_branch(model, params, source, len(z0))} if method.needs_source else {}
    data = method.run(predict, z0, up, sampler=course.sampler, keep=levels, **more)
    _check(data, method, len(levels), z0.shape[0])
    return data


def _check(data: Mapping[str, Array], method: InversionMethod, levels: int, batch: int) -> None:
    """Raises an `InputError` for the data of an inversion that are not as `InversionMethod.run` must return them."""
    name = type(method).__name__
    if "latents" not in data or data["latents"].shape[0] != levels:
        raise InputError(f"{name}.run must return the latents of the {levels} levels of `keep`")
    for key, array in data.items():
        if array.ndim < 2 or array.shape[1] != batch:
            raise InputError(
                f"{name}.run returned {key} of shape {array.shape}: the first axis is levels or steps, the second the "
                f"batch, {batch} here"
            )


@program(
    static=["model", "course", "method", "depth", "last"],
    batched={"latent": 0, "branch": BRANCH_AXES, "data": 1, "below": 0},
    out=(0, 1),
    donated=["latent"],
)
def denoise(
    model: Model,
    params: Params,
    latent: Latent,
    branch: Branch,
    data: Mapping[str, Array],
    below: tuple[Latent, ...],
    *,
    course: Course,
    method: InversionMethod,
    depth: int,
    last: int,
) -> tuple[Latent, Float[Array, "last b h w c"] | None]:
    """From level `depth` to 0; also the clean estimates of the `last` steps, if any.

    `method`, as of a branch alone, leads it with the `data` of these steps; `below` are further latents to start from.
    """
    predict = predictor(model, params, branch, course.uniformity, latent.shape[0])
    down = model.schedule.denoising(course.steps, depth)
    predict, sampler = retracing(predict, course.sampler, method, data, down, below)
    if not last:
        return sample.denoise(predict, latent, down, sampler=sampler), None
    return sample.denoise_with_clean(predict, latent, down, last=last, sampler=sampler)


@program(static=["model", "course"], batched={"z0": 0, "condition": 0, "words": 0}, out=0)
def attention(
    model: Model,
    params: Params,
    z0: Latent,
    condition: Condition,
    words: Float[Array, "b words s"],
    *,
    course: Course,
) -> HeatMaps:
    """Attention to the words while the latents are inverted under a text, see `heat_maps.heat_maps`."""
    rules = Rules(cross=WordHeat(z0.shape[1:3], words))

    def predict(latent: Latent, step: Step) -> Prediction:
        output, taps = model.denoiser.predict(params, latent, step.time, condition, rules)
        return model.schedule.split(output, latent, step)._replace(taps=taps)

    up = model.schedule.inverting(course.steps, course.steps)
    up = at_own_times(up) if course.sampler.own_times else up
    layers = sum(site.kind == "cross" for site in model.denoiser.sites)
    return heat_maps(predict, z0, up, sampler=course.sampler, words=words.shape[1], layers=layers)


class EditArrays(NamedTuple):
    """The arrays of an edit besides weights and start.

    Attributes:
      conditions: "null" (one row), "negative", "source" and "target".
      inputs: masks, estimates and stored latents.
      mask: where and how clean estimates are blended.
      guidance: scale of both branches.
      control_data: from `Control.prepare`.
    """

    conditions: Mapping[str, Condition]
    inputs: EditInputs
    mask: MaskRule
    guidance: Scalar
    control_data: Mapping[str, Array]


@dataclass(frozen=True)
class EditCourse:
    """How source and target go down side by side; static.

    Attributes:
      segments: the work of each step.
      rows: of the network call.
      sampler: the rule of a step.
      control: the attention control.
      method: of the source's inversion, see `InversionMethod.in_edit`.
      keep_masks: return every step's mask.
    """

    segments: tuple[Segment, ...]
    rows: tuple[Row, ...]
    sampler: Sampler
    control: Control
    method: InversionMethod
    keep_masks: bool = False

    @classmethod
    def of(
        cls, config: EditConfig, plan: Plan, sites: Sequence[Site], *, keep_masks: bool = False
    ) -> Self:
        """The part of an edit's settings and plan, and of the network's sites, that decides its program."""
        sampler, method = SAMPLERS[config.sampler], config.source_inversion.method.in_edit
        control = config.control.fitted(sites)
        return cls(plan.segments, plan.rows, sampler, control, method, keep_masks)


@program(
    static=["model", "course"],
    batched={
        "start": 0,
        "arrays": EditArrays(
            conditions={"null": None, "negative": 0, "source": 0, "target": 0},
            inputs=EditInputs(
                auxiliary_clean=1,
                user_mask=0,
                outside_uniformity=None,
                anchors=1,
                inverted=1,
                below=0,
            ),
            mask=None,
            guidance=None,
            control_data=0,
        ),
    },
    out=EditTrace(target=0, source=0, free=0, change=0, stability=0, masks=1),
    donated=["start"],
)
def edit(
    model: Model,
    params: Params,
    start: Latent,
    arrays: EditArrays,
    *,
    course: EditCourse,
) -> EditTrace:
    """The source and target branches from `start`."""
    predict = branch_predictor(
        model,
        params,
        course.rows,
        arrays.conditions,
        arrays.guidance,
        control=course.control,
        control_data=arrays.control_data,
        method=course.method,
    )
    return run_branches(
        predict,
        {"source": start, "target": start},
        model.schedule.denoising(course.segments[-1].stop),
        course.segments,
        arrays.inputs,
        EditRules(arrays.mask, course.sampler, course.control, course.method),
        keep_masks=course.keep_masks,
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


@program(static=["model"], batched={"latents": 0, "null": None, "text": 0, "steps": None}, out=0)
def agreement(
    model: Model, params: Params, latents: Latent, null: Condition, text: Condition, steps: Step
) -> dict[str, Float[Array, "b"]]:
    """See `method.agreement`."""
    noise_of = noise_under(model, params, (null, text), len(latents))
    return agreement_of(noise_of, latents, steps)


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

    texts, text_tree = jax.tree.flatten(condition)

    def evaluate(params: Params, latent: Latent, texts: Sequence[Array]) -> Latent:
        condition = jax.tree.unflatten(text_tree, texts)
        return denoiser.predict(params, latent, jnp.int32(1), condition, rules)[0]

    # Shapes alone: arrays would tie the program to the devices that they lie on.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, latent, texts))
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves CPUs out
        return None
    # JAX counts the operations of programs for CPUs on every machine, and of programs for GPUs on none.
    with tracing_for(platform_of(params)), jax.default_device(cpu):
        lowered = jax.jit(evaluate).lower(*shapes)
    try:
        costs: Any = lowered.cost_analysis()
    except NotImplementedError:
        return None
    # Zero is no count: XLA reports it where it cannot tell.
    return float(costs["flops"]) if costs and costs.get("flops", 0) > 0 else None
