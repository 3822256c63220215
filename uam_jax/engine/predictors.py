"""The denoiser with weights, conditions, rules and guidance bound: the predictors that samplers and the edit call.

Each function here is a partial of one network, chosen when the loop is traced; nothing is looked up or
branched on inside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.method.controls import Control, Moment
from uam_jax.method.edit import Branches, BranchPredictor
from uam_jax.method.inversions import InversionMethod, SourceBranch
from uam_jax.method.plan import Row
from uam_jax.method.samplers import Sampler
from uam_jax.method.schedule import Schedule, split
from uam_jax.method.uniform import MixedMaps, UniformMaps
from uam_jax.models import Denoiser
from uam_jax.types import (
    AttentionRule,
    Condition,
    Latent,
    Params,
    Prediction,
    Predictor,
    Rules,
    Scalar,
    Step,
    Taps,
)


@dataclass(frozen=True)
class Model:
    """The static half of a predictor: everything but arrays."""

    denoiser: Denoiser
    schedule: Schedule


@dataclass(frozen=True)
class Course:
    """How one branch alone goes between levels; static.

    Attributes:
      steps: from level 0 to the noisiest.
      sampler: the rule of a step.
      uniformity: of the cross-attention maps, towards uniform ones of the same condition.
    """

    steps: int
    sampler: Sampler
    uniformity: float = 0.0


class Branch(NamedTuple):
    """The conditions of one branch alone: an inversion, a reconstruction, the auxiliary branch.

    Attributes:
      condition: of every example; None where all have the null prompt's.
      null: the null prompt's (one row); with a condition, each step takes two rows, and `guidance` scales
        between them.
      guidance: scale; without both conditions it has no meaning and is 1.
      regions: uniformity of every transformer block, example and pixel of the latent, in place of one for all; one
        block's may serve all.
      regions_null: the null prompt's condition (one row), whose uniform maps those of the regions are mixed with.
    """

    condition: Condition | None
    null: Condition | None
    guidance: Scalar = 1.0
    regions: Float[Array, "#blocks b h w"] | None = None
    regions_null: Condition | None = None

    def map_rule(self, uniformity: float, *, guided: bool) -> AttentionRule | None:
        """Of cross-attention: text maps (0), uniform ones (1), for which the text's are not computed, or between."""
        if self.regions is not None and self.regions_null is not None:
            share = jnp.concatenate([self.regions] * 2, axis=1) if guided else self.regions
            return MixedMaps(share, self.regions_null.states)
        if uniformity == 0:
            return None
        return UniformMaps() if uniformity == 1 else MixedMaps(uniformity)


def predictor(
    model: Model, params: Params, branch: Branch, uniformity: float, batch: int
) -> Predictor:
    """The predictor of one branch alone.

    Args:
      model: the denoiser and its schedule.
      params: of the checkpoint.
      branch: its conditions.
      uniformity: of the cross-attention maps, towards uniform ones of the same condition.
      batch: the number of examples.
    """
    given = [each for each in (branch.null, branch.condition) if each is not None]
    guided = len(given) == 2
    # Where all have the null prompt alone, its keys and values are computed once for all.
    condition = _stack([_rows(each, batch) for each in given]) if guided else given[0]
    rules = Rules(cross=branch.map_rule(uniformity, guided=guided))

    def predict(latent: Latent, step: Step) -> Prediction:
        twice = jnp.concatenate([latent] * 2) if guided else latent
        output, taps = model.denoiser.predict(params, twice, step.time, condition, rules)
        if guided:
            unguided, full = jnp.split(output, 2)
            output = _guide(unguided, full - unguided, branch.guidance)
        return model.schedule.split(output, latent, step)._replace(taps=taps)

    return predict


def noise_under(
    model: Model, params: Params, conditions: Sequence[Condition], batch: int
) -> Callable[[Latent, Step], tuple[Latent, ...]]:
    """The noise that the network finds in latents under each of some conditions, from one call.

    Args:
      model: the denoiser and its schedule.
      params: of the checkpoint.
      conditions: of every example, or of one for all.
      batch: the number of examples.
    """
    stacked, count = _stack([_rows(each, batch) for each in conditions]), len(conditions)
    predict = predictor(model, params, Branch(stacked, None), 0.0, count * batch)

    def noise_of(latent: Latent, step: Step) -> tuple[Latent, ...]:
        return tuple(jnp.split(predict(jnp.concatenate([latent] * count), step).noise, count))

    return noise_of


def source_branch(model: Model, params: Params, branch: Branch, batch: int) -> SourceBranch:
    """The edit's source branch without a control, for an inversion.

    Args:
      model: the denoiser and its schedule.
      params: of the checkpoint.
      branch: its conditions.
      batch: the number of examples.
    """
    given = [each for each in (branch.null, branch.condition) if each is not None]
    null, condition = (_rows(each, batch) for each in (given[0], given[-1]))

    def under(condition: Condition) -> Predictor:
        return predictor(model, params, Branch(condition, None), 0.0, batch)

    return SourceBranch(
        predictor(model, params, branch, 0.0, batch),
        under,
        condition,
        null if len(given) == 2 else None,
        branch.guidance,
    )


def branch_predictor(
    model: Model,
    params: Params,
    rows: Sequence[Row],
    conditions: Mapping[str, Condition],
    guidance: Scalar,
    *,
    control: Control,
    control_data: Mapping[str, Array],
    method: InversionMethod,
) -> BranchPredictor:
    """The predictor of source and target side by side in one batch, under the rules of a control.

    Args:
      model: the denoiser and its schedule.
      params: of the checkpoint.
      rows: of the network call; those of a branch that is not evaluated are left out.
      conditions: by the names that rows give them.
      guidance: scale of both branches.
      control: gives the rules.
      control_data: from `Control.prepare`.
      method: of the source's inversion, for its hooks before the step is taken.
    """

    def predict(
        latents: Branches,
        moment: Moment,
        uniformity: Float[Array, "b h w 1"] | None = None,
        data: Mapping[str, Array] | None = None,
    ) -> tuple[dict[str, Prediction], Taps]:
        step = moment.step
        present = [row for row in rows if row.branch in latents]
        batch = latents["target"].shape[0]
        own = method.conditions(conditions, data or {}, step)
        asked, start = method.query(latents, data or {}, step)
        condition = _stack([_rows(own[row.condition], batch) for row in present])
        rules = control.rules(present, batch, control_data, moment)
        if uniformity is not None:
            text = jnp.zeros_like(uniformity)
            shares = [uniformity if row.branch == "target" else text for row in present]
            share = jnp.concatenate(shares)[None, ..., 0]
            rules = replace(rules, cross=MixedMaps(share, conditions["null"].states, rules.cross))
        sample = jnp.concatenate([asked[row.branch] for row in present])
        output, taps = model.denoiser.predict(params, sample, start.time, condition, rules)
        outputs = dict(zip(present, jnp.split(output, len(present)), strict=True))
        guided = {row.branch: each for row, each in outputs.items() if row.half == "guided"}
        unguided = {row.branch: each for row, each in outputs.items() if row.half == "unguided"}
        differences, recorded = method.guide(
            {branch: guided[branch] - each for branch, each in unguided.items()}, step
        )
        predictions = {}
        for branch, latent in latents.items():
            output = guided[branch]
            if branch in unguided:
                output = _guide(unguided[branch], differences[branch], guidance)
            prediction = model.schedule.split(output, asked[branch], start)
            if asked[branch] is not latent:
                prediction = split(prediction.noise, latent, step, "epsilon")
            predictions[branch] = prediction
        return predictions, {**taps, **recorded}

    return predict


def retracing(
    predict: Predictor,
    sampler: Sampler,
    method: InversionMethod,
    data: Mapping[str, Array],
    steps: Step,
    below: Sequence[Latent] = (),
) -> tuple[Predictor, Any]:
    """The predictor and the sampler of a branch alone with the hooks of its inversion's method.

    Args:
      predict: the predictor of the inversion.
      sampler: the rule of a step.
      method: of the inversion, as of a branch alone.
      data: of the steps, from `per_step`.
      steps: those down.
      below: further latents from which the sampler starts.
    """

    def of(step: Step) -> Mapping[str, Array]:
        return jax.tree.map(lambda each: each[step.index - steps.index[0]], data)

    def led_predict(latent: Latent, step: Step) -> Prediction:
        asked, start = method.query({"source": latent}, of(step), step)
        if asked["source"] is latent:
            return predict(latent, step)
        found = predict(asked["source"], start)
        return split(found.noise, latent, step, "epsilon")._replace(taps=found.taps)

    def lead(latent: Latent, step: Step) -> Latent:
        return method.after({"source": latent}, of(step), step)["source"]

    return led_predict, _Led(sampler, lead, below)


@dataclass(frozen=True)
class _Led:
    """A sampler whose latent is led after every step, and that starts from further latents."""

    sampler: Sampler
    lead: Callable[[Latent, Step], Latent]
    below: Sequence[Latent]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)

    def start(self, latent: Latent) -> Any:
        return self.sampler.start(latent, *self.below)

    def advance(self, state: Any, prediction: Prediction, step: Step) -> Any:
        state = self.sampler.advance(state, prediction, step)
        latent = self.sampler.latent(state)
        led = self.lead(latent, step)
        return state if led is latent else self.sampler.moved(state, led)


def _rows(condition: Condition, count: int) -> Condition:
    """A condition with `count` rows, from as many or from one."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), condition)


def _stack(conditions: Sequence[Condition]) -> Condition:
    """The rows of several conditions, one after the other."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conditions)


def _guide(unguided: Latent, difference: Latent, guidance: Scalar) -> Latent:
    """Classifier-free guidance: Ho and Salimans 2022 (arXiv 2207.12598), equation 6, with w = scale - 1."""
    return unguided + guidance * difference
