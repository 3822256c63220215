"""The denoiser with weights, condition, rules and guidance bound: what the samplers and the edit call.

Each function here is a partial of one network, chosen when the loop is traced; nothing is looked up or
branched on inside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.method.controls import Control
from uam_jax.method.edit import Branches, BranchPredictor
from uam_jax.method.plan import Plan, Row
from uam_jax.method.schedule import Schedule, to_noise
from uam_jax.method.uniform import MixedMaps, UniformMaps
from uam_jax.models import Denoiser
from uam_jax.types import (
    AttentionRule,
    Condition,
    Latent,
    NoisePredictor,
    Params,
    Regions,
    Rules,
    Scalar,
    Step,
    Taps,
)


@dataclass(frozen=True)
class Network:
    """The static half of a noise predictor: everything but arrays."""

    denoiser: Denoiser
    schedule: Schedule

    def noise(
        self, params: Params, latent: Latent, step: Step, condition: Condition, rules: Rules
    ) -> tuple[Latent, Taps]:
        """One evaluation, as epsilon, and what the rules tapped."""
        output, taps = self.denoiser.predict(params, latent, step.timestep, condition, rules)
        return to_noise(output, latent, step.alpha_bar, self.schedule.prediction_type), taps


def _map_rule(uniformity: float, regions: Regions | None) -> AttentionRule | None:
    """Text maps (0), uniform ones (1), for which the text's are not computed, or between."""
    if regions is not None:
        return MixedMaps(regions.uniformity, regions.null.states)
    if uniformity == 0:
        return None
    return UniformMaps() if uniformity == 1 else MixedMaps(uniformity)


def predictor(
    network: Network,
    params: Params,
    condition: Condition | None,
    null: Condition | None,
    uniformity: float,
    guidance: Scalar,
    batch: int,
    regions: Regions | None = None,
) -> NoisePredictor:
    """One branch alone: an inversion, a reconstruction, the auxiliary branch.

    Args:
      network: the denoiser and its schedule.
      params: of the checkpoint.
      condition: of every example; None if all take the null prompt's.
      null: the null prompt's (one row); with a condition, each step takes two rows, and `guidance`
        scales between.
      uniformity: of the cross-attention maps, towards uniform ones of the same condition.
      guidance: scale; without both conditions it has no meaning and is 1.
      batch: how many examples there will be.
      regions: in place of `uniformity`.
    """
    given = [each for each in (null, condition) if each is not None]
    guided = len(given) == 2
    # One row of uniform maps serves all.
    rows = batch if guided or uniformity != 1 or regions else given[0].states.shape[0]
    whole = _stack([_rows(each, rows) for each in given])
    if regions is not None and guided:
        regions = regions._replace(uniformity=jnp.concatenate([regions.uniformity] * 2, axis=1))
    rules = Rules(cross=_map_rule(uniformity, regions))

    def predict(latent: Latent, step: Step) -> Latent:
        latent = jnp.concatenate([latent] * 2) if guided else latent
        noise, _ = network.noise(params, latent, step, whole, rules)
        return _guide(noise, guidance) if guided else noise

    return predict


def branch_predictor(
    network: Network,
    params: Params,
    plan: Plan,
    *,
    null: Condition,
    source: Condition,
    target: Condition,
    guidance: Scalar,
    control: Control,
) -> BranchPredictor:
    """Source and target side by side in one batch, under the rules of the control.

    Args:
      network: the denoiser and its schedule.
      params: of the checkpoint.
      plan: says how many rows each branch takes: [unconditional,] conditional.
      null: the null prompt's condition (one row).
      source: the source branch's condition.
      target: the target branch's condition.
      guidance: scale of both branches.
      control: gives the rules of each call.
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
        batch, given, order = [], [], []
        for name in names:
            pairs = latents[name].shape[0]
            batch += [latents[name]] * rows[name]
            given += [_rows(each, pairs) for each in (null, conditions[name])[-rows[name] :]]
            order += [Row(name, "null", "unguided"), Row(name, name)][-rows[name] :]
        active = frozenset(control.windows(plan.steps) if controlled else ())
        rules = control.rules(order, latents["target"].shape[0], active, {})
        regions = None
        if uniformity is not None:
            share = {"target": uniformity, "source": jnp.zeros_like(uniformity)}
            shares = [share[name] for name in names for _ in range(rows[name])]
            regions = Regions(jnp.concatenate(shares)[None, ..., 0], null)
        rules = replace(rules, cross=_map_rule(0.0, regions) or rules.cross)
        noise, _ = network.noise(params, jnp.concatenate(batch), step, _stack(given), rules)
        guided, first = {}, 0
        for name in names:
            count = rows[name] * latents[name].shape[0]
            part = noise[first : first + count]
            guided[name] = _guide(part, guidance) if rows[name] == 2 else part
            first += count
        return guided

    return predict


def _rows(condition: Condition, count: int) -> Condition:
    """A condition with `count` rows, from as many or from one."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), condition)


def _stack(conditions: Sequence[Condition]) -> Condition:
    """The rows of several conditions, one after the other."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conditions)


def _guide(noise: Any, guidance: Scalar) -> Latent:
    """Classifier-free guidance over a batch of [unconditional, conditional]."""
    unconditional, conditional = jnp.split(noise, 2)
    return unconditional + guidance * (conditional - unconditional)
