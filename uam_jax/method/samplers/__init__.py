"""Samplers: the rule by which a latent goes from one noise level to the next, up or down; one file each.

A sampler is a small state machine. It is asked where to evaluate the network (`query`), is given the prediction, and
advances its state. `follow` drives every sampler, in both directions, since the direction lies in the steps alone.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from uam_jax.method.samplers.belm import BELM
from uam_jax.method.samplers.ddim import DDIM
from uam_jax.method.samplers.ddpm import DDPM
from uam_jax.method.samplers.dpmpp_2m import DPMpp2M
from uam_jax.runtime.loops import scan
from uam_jax.types import Latent, Prediction, Predictor, Step


class Sampler(Protocol):
    """The rule of a step; frozen and hashable, so that it may be a static argument of a jitted function.

    Attributes:
      general: every inversion works with it that names no samplers; else only an inversion that names it.
      pair: its state is made of the latents of two levels: where the latent of the level below the first is known,
        `start` takes it too.
      own_times: when inverting, the network is given the timestep of the latent's own level, instead of that of the
        level above, which denoising from there uses.
    """

    general: ClassVar[bool]
    pair: ClassVar[bool]
    own_times: ClassVar[bool]

    def start(self, latent: Latent, *below: Latent) -> Any:
        """The state, a pytree made from `latent`, before the first step."""
        ...

    def query(self, state: Any) -> Latent:
        """The latent at which the network is to be evaluated."""
        ...

    def advance(
        self, state: Any, prediction: Prediction, step: Step, noise: Latent | None = None
    ) -> Any:
        """The state at the level that `step` leads to; `noise`, if given, is added to its latent."""
        ...

    def latent(self, state: Any) -> Latent:
        """The latent of a state."""
        ...

    def moved(self, state: Any, latent: Latent) -> Any:
        """The state with another latent, which a control or an inversion has put in its place."""
        ...


SAMPLERS: dict[str, Sampler] = {
    "ddim": DDIM(),
    "dpm++2m": DPMpp2M(),
    "ddpm": DDPM(),
    "belm": BELM(),
}
"""All samplers, by the name that settings give them."""


def follow(
    predict: Predictor,
    state: Any,
    steps: Step,
    *,
    sampler: Sampler = SAMPLERS["ddim"],
    record: Callable[[Prediction, Latent], Any] = lambda prediction, reached: None,
) -> tuple[Any, Any]:
    """Scans `steps` from a sampler's state.

    Args:
      predict: the predictor.
      state: of the sampler, from `Sampler.start` or an earlier call.
      steps: stacked, in the order in which they are taken.
      sampler: the rule.
      record: a function of each prediction and of the latent reached with it.

    Returns:
      The last state, and what `record` returned for each step, stacked.
    """

    def advance(state: Any, step: Step) -> tuple[Any, Any]:
        prediction = predict(sampler.query(state), step)
        state = sampler.advance(state, prediction, step)
        return state, record(prediction, sampler.latent(state))

    return scan(advance, state, steps)
