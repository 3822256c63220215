"""Predictors in closed form: functions of the latent that give a noise, in place of a network."""

from collections.abc import Callable
from typing import Any

from uam_jax.method.controls import Moment
from uam_jax.method.edit import Branches, BranchPredictor
from uam_jax.method.schedule import split
from uam_jax.types import Latent, Prediction, Predictor, Step


def predictor(noise: Callable[[Latent, Step], Latent]) -> Predictor:
    """A predictor that gives this noise."""

    def predict(latent: Latent, step: Step) -> Prediction:
        return split(noise(latent, step), latent, step, "epsilon")

    return predict


def branch_predictor(noises: Callable[..., Branches]) -> BranchPredictor:
    """A predictor of both branches from `noises(latents, step, controlled[, uniformity])`, without taps."""

    def predict(
        latents: Branches, moment: Moment, uniformity: Any, data: Any
    ) -> tuple[dict[str, Prediction], dict[str, Any]]:
        del data
        step, active = moment.step, moment.active
        given = () if uniformity is None else (uniformity,)
        found = noises(latents, step, bool(active), *given)
        return {k: split(found[k], latents[k], step, "epsilon") for k in latents}, {}

    return predict
