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

from uam_jax.ddim import arrive, clean_estimate
from uam_jax.masks import Rule, blend, edit_mask, quantiles
from uam_jax.plan import Segment
from uam_jax.types import Latent, Step

Branches = dict[str, Latent]
"""Latents (or noises, or clean estimates) of "target" and, where it is evaluated, of "source"."""


class BranchPredictor(Protocol):
    """The guided noise of each branch given, from one network call, so that a control may share.

    "source" is absent where it is not evaluated. `controlled` is static: whether the attention
    control is active; only with a source.
    """

    def __call__(self, latents: Branches, step: Step, controlled: bool) -> Branches: ...


class EditTrace(NamedTuple):
    """What an edit leaves.

    Attributes:
      target: the edited latent.
      source: the replayed source branch's latent; None where it is anchored (it would be the
        original) or was not evaluated to the end because nothing needed it.
      free: share of the blended steps and channels in which a pixel was free to change (mean of
        1 - P), in [0, 1]; 1 if nothing is blended.
      masks: 1 - P of every blended step and channel, if asked for.
    """

    target: Latent
    source: Latent | None
    free: Float[Array, "b h w"]
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
      rule: which adaptive mask, see `masks.edit_mask`.
      quantile: q at the last step, see `masks.quantiles`.
      radius: of the mask's dilation, in latent pixels.
      source_line: blend the replayed source too: x0_src <- (1-P)·x0_u + P·x0_src.
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
            allowed=user_mask if segment.user else 1.0,
            rule=rule,
            radius=radius,
            source_line=source_line,
        )
        latents = {name: latents[name] for name in carried}
        latents, free = jax.lax.scan(advance, latents, inputs)
        if free is not None:
            masks.append(free)

    free = jnp.concatenate(masks)
    return EditTrace(
        target=latents["target"],
        source=latents.get("source"),
        free=free.mean(axis=(0, -1)) if free.shape[0] else jnp.ones(target.shape[:-1]),
        masks=free if keep_masks else None,
    )


def _advance(
    latents: Branches,
    inputs: tuple[Any, Branches, Any],
    *,
    predict: BranchPredictor,
    segment: Segment,
    allowed: Any,
    rule: Rule,
    radius: int,
    source_line: bool,
) -> tuple[Branches, Latent | None]:
    """One step of a segment: the carried branches' next latents, and 1 - P where it is blended."""
    (step, quantile), stored, clean_u = inputs
    branches = latents | stored
    noise = predict(branches, step, segment.controlled)
    clean = {name: clean_estimate(branches[name], noise[name], step.alpha_bar) for name in branches}
    free = None
    if segment.blended:
        free = jnp.ones_like(clean_u)
        if segment.adaptive:
            difference = clean["source"] - clean["target"]
            free = edit_mask(difference, quantile, rule=rule, radius=radius)
        free = free * allowed
        clean["target"] = blend(1 - free, clean_u, clean["target"])
        if source_line and "source" in clean:
            clean["source"] = blend(free, clean_u, clean["source"])
    return {name: arrive(clean[name], noise[name], step) for name in latents}, free
