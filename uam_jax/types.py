"""Shape aliases, and the types at which the rooms meet: conditions, steps, attention sites, rules."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

Params = dict[str, Any]
"""Nested dict of arrays under flax names (`down_blocks_0`, `to_q`, `kernel`)."""

Latent = Float[Array, "b h w c"]
Image = Float[Array, "b height width 3"]
ImageLike = Shaped[Array | np.ndarray, "..."]
"""Pictures as a caller gives them, (b, height, width, 3) in [-1, 1]; see `engine.arguments.checked_images`."""
LatentLike = Shaped[Array | np.ndarray, "..."]
"""Scaled latents as a caller gives them, (b, h, w, c); see `engine.arguments.checked_latents`."""
MaskLike = Shaped[Array | np.ndarray, "..."]
"""Masks as a caller gives them, (b, height, width) in [0, 1] or bool; see `engine.arguments.latent_masks`."""
Scalar = float | Float[Array, ""]


T = TypeVar("T")


def tree_of_arrays(*, static: Collection[str] = ()) -> Callable[[type[T]], type[T]]:
    """Registers a frozen dataclass as a tree of its fields, besides static ones, whatever its leaves are.

    JAX also builds trees of shapes and of its own records, so that building one from its leaves must not check them.
    """

    def register(kind: type[T]) -> type[T]:
        names = [each.name for each in fields(cast(Any, kind)) if each.name not in static]

        def flatten(tree: T) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
            leaves = [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in names]
            return leaves, tuple(getattr(tree, name) for name in static)

        def unflatten(meta: tuple[Any, ...], leaves: Iterable[Any]) -> T:
            tree = object.__new__(kind)
            for name, value in zip((*names, *static), (*leaves, *meta), strict=True):
                object.__setattr__(tree, name, value)
            return tree

        jax.tree_util.register_pytree_with_keys(kind, flatten, unflatten)
        return kind

    return register


@tree_of_arrays()
@dataclass(frozen=True)
class Condition:
    """Text as the network takes it.

    Attributes:
      states: (b, s, d) hidden states of the text encoder, one row per token.
      pooled: (b, p) pooled text vector, for models that add it to the time embedding; else None.
      extra: further named arrays with a leading batch axis (SDXL's size and crop numbers, say).
    """

    states: Float[Array, "b s d"]
    pooled: Float[Array, "b p"] | None = None
    extra: Mapping[str, Array] = field(default_factory=dict)


class Step(NamedTuple):
    """One step between two noise levels, down (denoising) or up (inverting); stacked, a scan's input.

    A level is a pair (signal, sigma): its latent is `signal * clean + sigma * noise`.

    Attributes:
      index: the noise interval, counted from the start of denoising (0 = most noise).
      time: the train timestep that the network is given.
      signal: share of the clean latent at the level where the step starts (√ᾱ of a diffusion model).
      sigma: share of the noise there (√(1-ᾱ)).
      signal_next: share of the clean latent at the level that the step leads to.
      sigma_next: share of the noise there.
    """

    index: Int[Array, "*n"]
    time: Int[Array, "*n"]
    signal: Float[Array, "*n"]
    sigma: Float[Array, "*n"]
    signal_next: Float[Array, "*n"]
    sigma_next: Float[Array, "*n"]


class Prediction(NamedTuple):
    """A network's output, taken apart (`schedule.split`).

    Attributes:
      clean: estimate of the latent without its noise.
      noise: estimate of the noise.
      taps: further named arrays that were recorded during the evaluation, batch first.
    """

    clean: Latent
    noise: Latent
    taps: Mapping[str, Array] = {}


class Predictor(Protocol):
    """One branch's network evaluation, with weights, condition and guidance bound."""

    def __call__(self, latent: Latent, step: Step) -> Prediction: ...


Part = Literal["down", "middle", "up"]
"""Of a network that contracts and expands."""


class Site(NamedTuple):
    """A place in the network where a rule is called.

    Attributes:
      number: the number of the transformer block, or of the ResNet block, in execution order. The two kinds of
        block are counted separately, and the two attention layers of a transformer block share its number.
      level: how many times the latent's sides have been halved.
      kind: a self-attention layer ("own"), a cross-attention layer ("cross") or a ResNet block ("residual").
      channels: the number of channels of the hidden state.
      part: the contracting part of the network, its middle, or the expanding part.
    """

    number: int
    level: int
    kind: Literal["own", "cross", "residual"]
    channels: int
    part: Part


class AttentionSite(Protocol):
    """An attention layer as a rule sees it: a `Site` that offers the layer's parts.

    A part that a rule does not call is not computed.
    """

    number: int
    level: int
    kind: Literal["own", "cross", "residual"]
    channels: int
    part: Part

    def query(self, x: Float[Array, "b n c"]) -> Float[Array, "b n heads d"]:
        """Q, a head at a time."""
        ...

    def key(self, context: Float[Array, "b s e"]) -> Float[Array, "b s heads d"]:
        """K, a head at a time."""
        ...

    def value(self, context: Float[Array, "b s e"]) -> Float[Array, "b s heads d"]:
        """V, a head at a time; in float32 of float32, in whatever format the network computes."""
        ...

    def attend(
        self,
        q: Float[Array, "b n heads d"],
        k: Float[Array, "#b s heads d"],
        v: Float[Array, "#b s heads d"],
    ) -> Float[Array, "b n heads d"]:
        """softmax(QKᵀ/√d)V, without the maps in memory where the device can do that."""
        ...

    def maps(
        self, q: Float[Array, "b n heads d"], k: Float[Array, "#b s heads d"]
    ) -> Float[Array, "b heads n s"]:
        """softmax(QKᵀ/√d) in float32."""
        ...

    def project(self, out: Float[Array, "b n heads d"]) -> Float[Array, "b n c"]:
        """The layer's output from the heads' outputs; in float32 of float32, likewise."""
        ...


Taps = dict[str, Array]
"""Arrays that rules return beside their output, by name; what several sites return under one name is summed."""


class AttentionRule(Protocol):
    """Computes the output of an attention layer.

    A rule is a pytree, so that it may hold arrays and pass into a traced function: a frozen dataclass
    registered with `jax.tree_util`, or a `jax.tree_util.Partial` of a function. It is called for every
    layer of its kind with the layer, the layer's input and the context: the text's states for
    cross-attention, `x` itself for self-attention. It returns the output, or the output and taps.
    """

    def __call__(
        self, site: AttentionSite, x: Float[Array, "b n c"], context: Float[Array, "#b s e"]
    ) -> Float[Array, "#b #n c"] | tuple[Float[Array, "#b #n c"], Taps]: ...


class ResidualRule(Protocol):
    """Replaces a ResNet block's hidden state, after its last convolution and before the shortcut is added.

    A pytree, as an `AttentionRule`.
    """

    def __call__(self, site: Site, h: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rules:
    """The rules of one network call; None computes what the layer was trained to compute.

    Attributes:
      cross: the rule of the cross-attention layers.
      own: the rule of the self-attention layers.
      residual: the rule of the ResNet blocks.
    """

    cross: AttentionRule | None = None
    own: AttentionRule | None = None
    residual: ResidualRule | None = None


PLAIN = Rules()
"""No rule anywhere."""


def plain_attention(
    site: AttentionSite, x: Float[Array, "b n c"], context: Float[Array, "#b s e"]
) -> Float[Array, "b n c"]:
    """The output that the layer was trained to compute: every pixel attends to all of the context."""
    return site.project(site.attend(site.query(x), site.key(context), site.value(context)))
