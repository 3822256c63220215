"""The edit: source and target denoised side by side, blended with the auxiliary's clean estimates.

One step, for each branch and in this order: guided prediction (noise and clean estimate), mask from the unblended
estimates, blend, sampler's step with the branch's own noise, what the inversion and then what the control does to the
latents. The auxiliary branch gets nothing back
from the other two, so it has run before (`sample.denoise_with_clean`) and comes in as data, as do
the stored latents of an anchored source. Which steps do what is a tuple of `plan.Segment`s. Those
that differ by their masks alone are one scan: the network in it takes long to compile, a mask does not.

Source: Algorithm 1 and §3.3.2 of arXiv 2411.19652; the "source line" from the released code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from uam_jax.method.controls import Control, Moment, NoControl
from uam_jax.method.inversions import InversionMethod
from uam_jax.method.masks import MaskRule, auto_mask, blend, edit_mask, quantiles
from uam_jax.method.plan import Segment
from uam_jax.method.samplers import SAMPLERS, Sampler
from uam_jax.runtime.loops import scan
from uam_jax.types import Latent, Prediction, Scalar, Step

Branches = dict[str, Latent]
"""Latents of "target" and, where it is evaluated, of "source"."""
PerPixel = Float[Array, "b h w 1"]
"""A number for every pixel of the latent."""


class BranchPredictor(Protocol):
    """The guided prediction of each branch given, from one network call, so that a control may share.

    "source" is absent where it is not evaluated. `moment`: the step and what the control knows of it.
    `uniformity`, given where the maps are regional: of the target's cross-attention maps, from the text's (0) to the
    null prompt's uniform ones (1). `data`: of the inversion, this step's.
    """

    def __call__(
        self,
        latents: Branches,
        moment: Moment,
        uniformity: PerPixel | None = None,
        data: Mapping[str, Array] | None = None,
    ) -> tuple[dict[str, Prediction], Mapping[str, Array]]:
        """Returns the predictions, and the taps of the attention rules."""
        ...


class EditTrace(NamedTuple):
    """Arrays recorded while an edit runs.

    Attributes:
      target: the edited latent.
      source: the replayed source branch's latent; None where it is anchored (it would be the
        original) or was not evaluated to the end because nothing needed it.
      free: share of the blended steps and channels in which a pixel was free to change (mean of
        1 - P), in [0, 1]; 1 if nothing is blended.
      change: mean |x0_src - x0_tgt| over the channels and the steps that evaluate both.
      stability: mean overlap (intersection over union, over pixels and channels) of the masks of
        successive blended steps; 1 where there are none to compare.
      masks: 1 - P of every blended step and channel, if asked for.
    """

    target: Latent
    source: Latent | None
    free: Float[Array, "b h w"]
    change: Float[Array, "b h w"]
    stability: Float[Array, "b"]
    masks: Float[Array, "m b h w c"] | None


class EditInputs(NamedTuple):
    """Arrays that an edit takes besides its branches' latents; what it does without is None.

    Attributes:
      auxiliary_clean: the auxiliary branch's clean estimates of the last m steps, among them all
        that are blended.
      user_mask: 1 where the user allows changes, 0 where not, or between; at latent resolution.
      outside_uniformity: uniformity of the target's cross-attention maps outside the region to be edited: the
        user's, or else the one that `masks.auto_mask` has found by then; None leaves the maps to the text.
      anchors: the source's stored latents of all n + 1 levels, most noise first, if it is anchored on them:
        `invert(..., keep="all")[::-1]`.
      inverted: the inversion's data of every step, most noise first (`InversionMethod.per_step`).
      below: further latents of the source from which the sampler starts, of the levels below the first.
    """

    auxiliary_clean: Float[Array, "m b h w c"] | None = None
    user_mask: PerPixel | None = None
    outside_uniformity: Scalar | None = None
    anchors: Float[Array, "n+1 b h w c"] | None = None
    inverted: Mapping[str, Float[Array, "n b *rest"]] | None = None
    below: tuple[Latent, ...] = ()


@dataclass(frozen=True)
class EditRules:
    """The rules that an edit follows; `mask` is a pytree, the others are static.

    Attributes:
      mask: where and how clean estimates are blended.
      sampler: the rule of a step.
      control: the attention control, whose windows the segments name.
      method: by which the source was inverted.
    """

    mask: MaskRule = field(default_factory=MaskRule)
    sampler: Sampler = SAMPLERS["ddim"]
    control: Control = field(default_factory=NoControl)
    method: InversionMethod = field(default_factory=InversionMethod)


class _Carried(NamedTuple):
    """State of the scan.

    Attributes:
      branches: the sampler's state of each replayed branch.
      control: the control's state.
      change: mean difference of the branches so far.
      free: 1 - P of every blended step, as far as there is one.
    """

    branches: dict[str, Any]
    control: Any
    change: PerPixel
    free: Float[Array, "m b h w c"]


class _Scanned(NamedTuple):
    """Values of a step, and of all steps of a scan.

    Attributes:
      step: its levels.
      quantile: q of its mask.
      inverted: the inversion's data.
      anchored: the source's latents before and after it, where they are stored ones.
      part: which of the scan's segments it belongs to.
    """

    step: Step
    quantile: Float[Array, "*n"]
    inverted: Mapping[str, Array]
    anchored: tuple[Branches, ...]
    part: Int[Array, "*n"]


def edit(
    predict: BranchPredictor,
    latents: Branches,
    steps: Step,
    segments: tuple[Segment, ...],
    inputs: EditInputs | None = None,
    rules: EditRules | None = None,
    *,
    keep_masks: bool = False,
) -> EditTrace:
    """Runs the source and target branches through `segments`.

    Args:
      predict: guided predictions of the branches.
      latents: those at which the branches start; an anchored source needs none.
      steps: all n denoising steps, whatever part of them the segments cover.
      segments: the work of each step, as in `EditConfig.plan(...).segments`.
      inputs: masks, estimates and stored latents.
      rules: mask, sampler, control and method of the inversion.
      keep_masks: return every step's mask.
    """
    inputs, rules = inputs or EditInputs(), rules or EditRules()
    count, target = steps.index.shape[0], latents["target"]
    estimates = 0 if inputs.auxiliary_clean is None else inputs.auxiliary_clean.shape[0]
    if any(part.blended and part.start < count - estimates for part in segments):
        raise ValueError(f"auxiliary_clean has {estimates} steps, fewer than are blended")
    blended = sum(len(part) for part in segments if part.blended)
    first_blended = segments[-1].stop - blended
    if inputs.auxiliary_clean is not None:
        needed = inputs.auxiliary_clean[first_blended + estimates - count :]
        inputs = inputs._replace(auxiliary_clean=needed)
    everything = (steps, quantiles(rules.mask.quantile, count), inputs.inverted or {})

    started = {
        name: latents[name] for name in latents if name == "target" or inputs.anchors is None
    }
    carried = _Carried(
        {name: rules.sampler.start(latent, *inputs.below) for name, latent in started.items()},
        rules.control.start(latents),
        jnp.zeros_like(target[..., :1]),
        jnp.zeros_like(target, shape=(blended, *target.shape)),
    )
    # The source's latents before and after every step.
    anchored = () if inputs.anchors is None else (inputs.anchors[:-1], inputs.anchors[1:])
    compared = 0  # steps so far
    for (source, _), run in groupby(segments, key=lambda part: (part.source, part.active)):
        parts = tuple(run)
        at = slice(parts[0].start, parts[-1].stop)
        if not source:
            carried = carried._replace(branches={"target": carried.branches["target"]})
        scanned = _Scanned(
            *jax.tree.map(lambda values, at=at: values[at], everything),
            anchored=tuple({"source": part[at]} for part in anchored),
            part=jnp.asarray(np.repeat(range(len(parts)), [len(part) for part in parts])),
        )
        advance = partial(
            _advance,
            predict=predict,
            parts=parts,
            count=count,
            compared=compared,
            first_blended=first_blended,
            inputs=inputs,
            rules=rules,
        )
        carried, _ = scan(advance, carried, scanned)
        compared += source * (parts[-1].stop - parts[0].start)

    ends = {name: rules.sampler.latent(state) for name, state in carried.branches.items()}
    free = carried.free
    return EditTrace(
        target=ends["target"],
        source=ends.get("source"),
        free=free.mean(axis=(0, -1)) if free.shape[0] else jnp.ones(target.shape[:-1]),
        change=carried.change[..., 0],
        stability=_stability(free),
        masks=free if keep_masks else None,
    )


def _advance(
    carried: _Carried,
    scanned: _Scanned,
    *,
    predict: BranchPredictor,
    parts: tuple[Segment, ...],
    count: int,
    compared: int,
    first_blended: int,
    inputs: EditInputs,
    rules: EditRules,
) -> tuple[_Carried, None]:
    """One step of segments that differ by their masks alone: the carried state after it."""
    step, inverted = scanned.step, scanned.inverted
    above, below = scanned.anchored or ({}, {})
    sampler, mask, free = rules.sampler, rules.mask, carried.free
    started = carried.branches
    if parts[0].start <= first_blended < parts[-1].stop and first_blended:
        # A multistep sampler begins anew: the estimate that it holds is not yet the blended one.
        started = {
            name: jax.tree.map(
                partial(jnp.where, step.index == first_blended),
                sampler.start(sampler.latent(state)),
                state,
            )
            for name, state in started.items()
        }
    branches = {name: sampler.query(state) for name, state in started.items()}
    branches |= above if parts[0].source else {}
    uniformity = _uniformity(carried.change, inputs, mask.radius)
    moment = Moment(step, count, parts[0].active, carried.control)
    predictions, taps = predict(branches, moment, uniformity, inverted)
    clean = {name: prediction.clean for name, prediction in predictions.items()}
    change, difference = carried.change, jnp.zeros_like(clean["target"])
    if "source" in clean:
        difference = clean["source"] - clean["target"]
        nth = compared + step.index - parts[0].start + 1
        change += (jnp.abs(difference).mean(axis=-1, keepdims=True) - change) / nth
    if any(part.blended for part in parts):
        # The first blended step overwrites what those before it have put into its place.
        place = jnp.maximum(step.index - first_blended, 0)
        blends = [partial(_blended, segment=part, inputs=inputs, mask=mask) for part in parts]
        masked = clean, difference, change, scanned.quantile, place
        clean, now = jax.lax.switch(scanned.part, blends, *masked)
        free = jax.lax.dynamic_update_index_in_dim(free, now, place, 0)
    states = {
        name: sampler.advance(state, predictions[name]._replace(clean=clean[name]), step)
        for name, state in started.items()
    }
    latents = {name: sampler.latent(state) for name, state in states.items()}
    led = rules.method.after(latents, {**inverted, **taps}, step)
    control, changed = rules.control.after(taps, led | below, moment)
    for name in states:
        if changed[name] is not latents[name]:
            states[name] = sampler.moved(states[name], changed[name])
    return _Carried(states, control, change, free), None


def _blended(
    clean: Branches,
    difference: Latent,
    change: PerPixel,
    quantile: Float[Array, ""],
    place: Int[Array, ""],
    *,
    segment: Segment,
    inputs: EditInputs,
    mask: MaskRule,
) -> tuple[Branches, Latent]:
    """The clean estimates as a step of the segment blends them, and 1 - P.

    `place` is its number among the blended steps.
    """
    free = _free(difference, change, quantile, segment, inputs.user_mask, mask)
    if not segment.blended or inputs.auxiliary_clean is None:
        return clean, free
    clean_u = inputs.auxiliary_clean[place]
    blended = {"target": blend(1 - free, clean_u, clean["target"])}
    if mask.source_line and "source" in clean:
        blended["source"] = blend(free, clean_u, clean["source"])
    return clean | blended, free


def _uniformity(change: PerPixel, inputs: EditInputs, radius: int) -> PerPixel | None:
    """Of the target's cross-attention maps, where they are regional."""
    if inputs.outside_uniformity is None:
        return None
    if inputs.user_mask is not None:
        return inputs.outside_uniformity * (1 - inputs.user_mask)
    # Before there is anything to tell inside from outside, all is inside.
    known = change.max(axis=(1, 2, 3), keepdims=True) > 0
    return inputs.outside_uniformity * known * (1 - auto_mask(change, radius))


def _free(
    difference: Latent,
    change: PerPixel,
    quantile: Float[Array, ""],
    segment: Segment,
    user_mask: PerPixel | None,
    mask: MaskRule,
) -> Latent:
    """1 - P of a blended step, for every channel."""
    free: Any = jnp.ones_like(difference)
    if segment.adaptive and mask.rule == "auto":
        free = free * auto_mask(change, mask.radius)
    elif segment.adaptive:
        free = edit_mask(difference, quantile, rule=mask.rule, radius=mask.radius)
    return free * user_mask if segment.user else free


def _stability(free: Float[Array, "m b h w c"]) -> Float[Array, "b"]:
    """Mean overlap of successive masks."""
    if free.shape[0] < 2:
        return jnp.ones(free.shape[1])
    axes = (2, 3, 4)
    either = jnp.maximum(free[1:], free[:-1]).sum(axis=axes)
    both = jnp.minimum(free[1:], free[:-1]).sum(axis=axes)
    return jnp.where(either > 0, both / jnp.maximum(either, 1e-6), 1.0).mean(axis=0)
