"""The U-Net with weights, text and guidance bound: what the samplers and the edit call.

Each function here is a partial of one network, chosen when the loop is traced; nothing is looked up or
branched on inside it.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from uam_jax.method.controls.masactrl import mutual_self_attention, source_of_rows
from uam_jax.method.edit import Branches, BranchPredictor
from uam_jax.method.plan import Plan
from uam_jax.method.schedule import Schedule, to_noise
from uam_jax.models import (
    UNet,
    mixed_attention,
    self_attention,
    text_attention,
    uniform_attention,
    uniform_vectors,
)
from uam_jax.types import (
    AttentionRule,
    Conditioning,
    Latent,
    NoisePredictor,
    Params,
    Regions,
    Scalar,
    Step,
)

SELF_ATTENTION = Partial(self_attention)
"""The plain rule, as a pytree."""


@dataclass(frozen=True)
class Network:
    """The static half of a noise predictor: everything but arrays."""

    unet: UNet
    schedule: Schedule

    # Traced once for all programs and loops with the same shapes and rules.
    @functools.partial(jax.jit, static_argnames="self")
    def noise(
        self,
        params: Params,
        latent: Latent,
        step: Step,
        cross: AttentionRule,
        own: AttentionRule = SELF_ATTENTION,
    ) -> Latent:
        """One evaluation, as epsilon."""
        output = self.unet.apply({"params": params}, latent, step.timestep[None], cross, own)
        return to_noise(output, latent, step.alpha_bar, self.schedule.prediction_type)


def _cross_rule(
    params: Params, states: Array, uniformity: float, regions: Regions | None
) -> AttentionRule:
    """Text maps (0), uniform ones (1), for which the text's are not computed, or between."""
    if regions is not None:
        null = uniform_vectors(params, regions.null.states)
        return mixed_attention(states, null, regions.uniformity)
    if uniformity == 0:
        return text_attention(states)
    vectors = uniform_vectors(params, states)
    if uniformity == 1:
        return uniform_attention(vectors)
    return mixed_attention(states, vectors, uniformity)


def predictor(
    network: Network,
    params: Params,
    condition: Conditioning | None,
    null: Conditioning | None,
    uniformity: float,
    guidance: Scalar,
    batch: int,
    regions: Regions | None = None,
) -> NoisePredictor:
    """One branch alone: an inversion, a reconstruction, the auxiliary branch.

    Args:
      network: the U-Net and its schedule.
      params: of the U-Net.
      condition: of every example; None if all are told the null prompt.
      null: the null prompt's (one row); with a condition, each step takes two rows, and `guidance`
        scales between.
      uniformity: of the cross-attention maps, towards uniform ones of the same condition.
      guidance: scale; without both conditions it has no meaning and is 1.
      batch: how many examples there will be.
      regions: in place of `uniformity`.
    """
    told = [given for given in (null, condition) if given is not None]
    guided = len(told) == 2
    # Of uniform maps, one row's vectors serve all.
    rows = batch if guided or uniformity != 1 or regions else told[0].states.shape[0]
    states = jnp.concatenate([_rows(given.states, rows) for given in told])
    if regions is not None and guided:
        regions = regions._replace(uniformity=jnp.concatenate([regions.uniformity] * 2, axis=1))
    rule = _cross_rule(params, states, uniformity, regions)

    def predict(latent: Latent, step: Step) -> Latent:
        if not guided:
            return network.noise(params, latent, step, rule)
        return _guide(network.noise(params, jnp.concatenate([latent] * 2), step, rule), guidance)

    return predict


def branch_predictor(
    network: Network,
    params: Params,
    plan: Plan,
    *,
    null: Conditioning,
    source: Conditioning,
    target: Conditioning,
    guidance: Scalar,
    blocks: tuple[int, int],
) -> BranchPredictor:
    """Source and target side by side in one batch, with mutual self-attention where it is active.

    Args:
      network: the U-Net and its schedule.
      params: of the U-Net.
      plan: says how many rows each branch takes: [unconditional,] conditional.
      null: the null prompt's condition (one row).
      source: what the source branch is told.
      target: what the target branch is told.
      guidance: scale of both branches.
      blocks: the transformer blocks that the control acts on, [first, end).
    """
    conditions = {"source": source, "target": target}
    rows = {"source": plan.source_rows, "target": plan.target_rows}

    def predict(
        latents: Branches,
        step: Step,
        controlled: bool,
        uniformity: Float[Array, "b h w 1"] | None = None,
    ) -> Branches:
        names = [name for name in ("source", "target") if name in latents]
        batch, states = [], []
        for name in names:
            pairs = latents[name].shape[0]
            told = [null, conditions[name]][-rows[name] :]
            batch += [latents[name]] * rows[name]
            states += [_rows(condition.states, pairs) for condition in told]
        own = SELF_ATTENTION
        if controlled:
            taken_from = source_of_rows(
                latents["target"].shape[0],
                source_rows=rows["source"],
                target_rows=rows["target"],
            )
            own = mutual_self_attention(taken_from, block_start=blocks[0], block_end=blocks[1])
        regions = None
        if uniformity is not None:
            share = {"target": uniformity, "source": jnp.zeros_like(uniformity)}
            shares = [share[name] for name in names for _ in range(rows[name])]
            regions = Regions(jnp.concatenate(shares)[None, ..., 0], null)
        rule = _cross_rule(params, jnp.concatenate(states), 0.0, regions)
        noise = network.noise(params, jnp.concatenate(batch), step, rule, own)
        guided, first = {}, 0
        for name in names:
            count = rows[name] * latents[name].shape[0]
            part = noise[first : first + count]
            guided[name] = _guide(part, guidance) if rows[name] == 2 else part
            first += count
        return guided

    return predict


def _rows(states: Float[Array, "#b s d"], count: int) -> Float[Array, "b s d"]:
    return jnp.broadcast_to(states, (count, *states.shape[1:]))


def _guide(noise: Any, guidance: Scalar) -> Latent:
    """Classifier-free guidance over a batch of [unconditional, conditional]."""
    unconditional, conditional = jnp.split(noise, 2)
    return unconditional + guidance * (conditional - unconditional)
