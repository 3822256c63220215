"""The edit: source and target denoised side by side, blended with the auxiliary's clean estimates.

One step, for each branch and in this order: guided noise, clean estimate, mask from the unblended
estimates, blend, DDIM step with the branch's own noise. The auxiliary branch gets nothing back
from the other two, so it has run before (`ddim.denoise_with_clean`) and comes in as data, as do
the stored latents of an anchored source. Which steps do what is a tuple of `plan.Segment`s, each
of which is one scan.

Source: Algorithm 1 and §3.3.2 of arXiv 2411.19652; the "source line" from the released code.
"""

from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.method.ddim import arrive, clean_estimate
from uam_jax.method.masks import Rule, auto_mask, blend, edit_mask, quantiles
from uam_jax.method.plan import Segment
from uam_jax.types import Latent, Scalar, Step

Branches = dict[str, Latent]
"""Latents (or noises, or clean estimates) of "target" and, where it is evaluated, of "source"."""


class BranchPredictor(Protocol):
    """The guided noise of each branch given, from one network call, so that a control may share.

    "source" is absent where it is not evaluated. `controlled` is static: whether the attention
    control is active; only with a source. `uniformity`, given where there is a region: of the
    target's cross-attention maps, from the text's (0) to the null prompt's uniform ones (1).
    """

    def __call__(
        self,
        latents: Branches,
        step: Step,
        controlled: bool,
        uniformity: Float[Array, "b h w 1"] | None = None,
    ) -> Branches: ...


class EditTrace(NamedTuple):
    """What an edit leaves.

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


def edit(
    predict: BranchPredictor,
    source: Latent | Float[Array, "n b h w c"],
    target: Latent,
    steps: Step,
    segments: tuple[Segment, ...],
    *,
    auxiliary_clean: Float[Array, "m b h w c"] | None = None,
    user_mask: Float[Array, "b h w 1"] | None = None,
    rule: Rule = "released",
    quantile: float | Float[Array, ""] = 0.5,
    radius: int = 1,
    source_line: bool = True,
    region: Scalar | None = None,
    keep_masks: bool = False,
) -> EditTrace:
    """Runs the source and target branches through `segments`.

    Args:
      predict: guided noises of the branches.
      source: (b, h, w, c), the latent at which the source branch starts, to be replayed; or
        (n, b, h, w, c), its stored latent before every step, most noise first, to be anchored on:
        `invert(..., keep="all")[:0:-1]`.
      target: the latent at which the target branch starts.
      steps: all n denoising steps, whatever part of them the segments cover.
      segments: what each step does, as in `EditConfig.plan(...).segments`.
      auxiliary_clean: the auxiliary branch's clean estimates of the last m steps, among them all
        that are blended.
      user_mask: 1 where the user allows changes, 0 where not, or between; at latent resolution.
      rule: which adaptive mask, see `masks`.
      quantile: q at the last step, see `masks.quantiles`.
      radius: of the mask's dilation, in latent pixels.
      source_line: blend the replayed source too: x0_src <- (1-P)·x0_u + P·x0_src.
      region: how uniform the target's cross-attention maps are outside the region to be edited: the
        user's, or else the one that `masks.auto_mask` has found by then; None leaves them to the text.
      keep_masks: return every step's mask.
    """
    count = steps.index.shape[0]
    nothing = jnp.zeros((0, *target.shape), target.dtype)
    kept = nothing if auxiliary_clean is None else auxiliary_clean
    before = count - kept.shape[0]
    if any(part.blended and part.start < before for part in segments):
        raise ValueError(f"auxiliary_clean has {kept.shape[0]} steps, fewer than are blended")
    anchored = source.ndim == target.ndim + 1
    everything = (steps, quantiles(quantile, count))

    latents, masks = {"source": source, "target": target}, [nothing]
    change = jnp.zeros_like(target[..., :1])
    for segment in segments:
        carried = {"source", "target"} if segment.source and not anchored else {"target"}
        inputs = (
            jax.tree.map(lambda values, at=segment: values[at.start : at.stop], everything),
            {"source": source[segment.start : segment.stop]} if anchored and segment.source else {},
            kept[segment.start - before : segment.stop - before] if segment.blended else None,
        )
        advance = partial(
            _advance,
            predict=predict,
            segment=segment,
            user_mask=user_mask,
            rule=rule,
            radius=radius,
            source_line=source_line,
            region=region,
        )
        latents = {name: latents[name] for name in carried}
        (latents, change), free = jax.lax.scan(advance, (latents, change), inputs)
        if free is not None:
            masks.append(free)

    free = jnp.concatenate(masks)
    compared = sum(part.stop - part.start for part in segments if part.source)
    return EditTrace(
        target=latents["target"],
        source=latents.get("source"),
        free=free.mean(axis=(0, -1)) if free.shape[0] else jnp.ones(target.shape[:-1]),
        change=change[..., 0] / max(compared, 1),
        stability=_stability(free),
        masks=free if keep_masks else None,
    )


def _advance(
    carried: tuple[Branches, Float[Array, "b h w 1"]],
    inputs: tuple[Any, Branches, Any],
    *,
    predict: BranchPredictor,
    segment: Segment,
    user_mask: Any,
    rule: Rule,
    radius: int,
    source_line: bool,
    region: Scalar | None,
) -> tuple[tuple[Branches, Float[Array, "b h w 1"]], Latent | None]:
    """One step of a segment: the carried branches' next latents, and 1 - P where it is blended."""
    latents, change = carried
    (step, quantile), stored, clean_u = inputs
    branches = latents | stored
    if region is None:
        noise = predict(branches, step, segment.controlled)
    else:
        inside = auto_mask(change, radius) if user_mask is None else user_mask
        # Before there is anything to tell inside from outside, all is inside.
        known = 1.0 if user_mask is not None else change.max(axis=(1, 2, 3), keepdims=True) > 0
        noise = predict(branches, step, segment.controlled, region * known * (1 - inside))
    clean = {name: clean_estimate(branches[name], noise[name], step.alpha_bar) for name in branches}
    free: Any
    free, difference = None, jnp.zeros_like(clean["target"])
    if "source" in clean:
        difference = clean["source"] - clean["target"]
        change += jnp.abs(difference).mean(axis=-1, keepdims=True)
    if segment.blended:
        free = jnp.ones_like(difference)
        if segment.adaptive and rule == "auto":
            free = free * auto_mask(change, radius)
        elif segment.adaptive:
            free = edit_mask(difference, quantile, rule=rule, radius=radius)
        if segment.user:
            free = free * user_mask
        clean["target"] = blend(1 - free, clean_u, clean["target"])
        if source_line and "source" in clean:
            clean["source"] = blend(free, clean_u, clean["source"])
    return ({name: arrive(clean[name], noise[name], step) for name in latents}, change), free


def _stability(free: Float[Array, "m b h w c"]) -> Float[Array, "b"]:
    """Mean overlap of successive masks."""
    if free.shape[0] < 2:
        return jnp.ones(free.shape[1])
    axes = (2, 3, 4)
    either = jnp.maximum(free[1:], free[:-1]).sum(axis=axes)
    both = jnp.minimum(free[1:], free[:-1]).sum(axis=axes)
    return jnp.where(either > 0, both / jnp.maximum(either, 1e-6), 1.0).mean(axis=0)
