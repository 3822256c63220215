"""An inversion: latents of some noise levels, which know what they were made with."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uam_jax.errors import InputError
from uam_jax.method.inversions import INVERSIONS, DDIMInversion, InversionMethod
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.section import Kinds, identity
from uam_jax.types import Latent


@dataclass(frozen=True)
class InversionKey:
    """All that decides the inversion of an image: two of one image with the same key are equal."""

    model_hash: str
    prompts: tuple[str, ...]
    uniformity: float
    guidance: float
    steps: int
    regions: tuple[str, ...] = ()
    """Names the content of `Inversion.regions`, once for all images or once each; empty without."""
    spacing: str = ""
    """Of the timesteps, where it is not the model's own."""
    sampler: str = "ddim"
    method: InversionMethod = field(default_factory=DDIMInversion)
    edit_guidance: float = 1.0
    """The edit's, where the method needs its source branch."""

    def of(self, index: int) -> Self:
        """The key of one image of a batch."""
        own = {
            name: values[index : index + 1]
            for name in ("prompts", "regions")
            if len(values := getattr(self, name)) > 1
        }
        key = replace(self, **own)
        # As of the null prompt alone.
        return key if any(key.prompts) else replace(key, guidance=1.0, edit_guidance=1.0)

    @property
    def rows(self) -> int:
        """Samples of a network call for each image: two where guidance has two conditions to scale between."""
        return 2 if self.guidance != 1 and any(self.prompts) else 1

    @property
    def source_rows(self) -> int:
        """Likewise of the edit's source branch."""
        return 2 if self.edit_guidance != 1 and any(self.prompts) else 1

    @property
    def top(self) -> int:
        """The noisiest level from which an edit starts."""
        return self.steps - self.method.first(self.steps)

    def starts(self, level: int) -> tuple[int, ...]:
        """The levels whose latents a branch needs to go down from `level`."""
        return (level, level - 1) if SAMPLERS[self.sampler].pair else (level,)

    def levels(self, depth: int | None) -> tuple[int, ...]:
        """The levels that reconstruction needs, and an auxiliary branch from level `depth`; None: all."""
        if depth is None:
            return tuple(range(self.top + 1))
        auxiliary = self.starts(min(depth, self.top)) if depth else ()
        return tuple(sorted({0, *self.starts(self.top), *auxiliary}))

    def evaluations(self, steps: int) -> int:
        """Single-sample network evaluations of `steps` steps, for one image: as many, or at most."""
        return (self.rows * self.method.cost + self.method.source_cost(self.source_rows)) * steps

    @property
    def settings(self) -> dict[str, Any]:
        """The method's name and settings."""
        return {"kind": Kinds(INVERSIONS).name_of(type(self.method)), **self.method.to_dict()}

    def __str__(self) -> str:
        prompts = f"prompts {list(self.prompts)}" if any(self.prompts) else "null prompt"
        regions = f"in regions {', '.join(self.regions)}"
        uniformity = regions if self.regions else f"{self.uniformity:g}"
        sampler = "" if self.sampler == "ddim" else self.sampler
        steps = " ".join(filter(None, (str(self.steps), self.spacing, sampler, "steps")))
        kind, *values = self.settings.items()
        method = " ".join([kind[1], *(f"{name}={value}" for name, value in values)])
        described = f"{prompts}, uniformity {uniformity}, guidance {self.guidance:g}, {steps}"
        if self.method.needs_source:
            described += f", for edits of guidance {self.edit_guidance:g}"
        return described if self.method == DDIMInversion() else f"{method}, {described}"

    def fingerprint(self) -> str:
        """A short hash of the content, the same on every machine; see `section.identity`."""
        content = {**vars(self), "method": self.settings | identity(self.method)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["latents", "regions", "data"],
    meta_fields=["key", "levels"],
)
@dataclass(frozen=True)
class Inversion:
    """Latents of some noise levels on the way up.

    Attributes:
      latents: (levels, b, h, w, c), scaled; `latents[0]` is z0.
      key: the model, prompts and settings that it was made with.
      levels: which levels are kept, in ascending order: 0 is clean, `key.steps` the noisiest of all.
      regions: uniformity of every transformer block, example and pixel of the latent, where it was not
        the same for all.
      data: further arrays that the method recorded, (steps or levels, b, ...), by name.
    """

    latents: Float[Array, "levels b h w c"]
    key: InversionKey
    levels: tuple[int, ...]
    regions: Float[Array | np.ndarray, "#blocks #b h w"] | None = None
    data: Mapping[str, Array] = field(default_factory=dict)

    def at(self, level: int) -> Latent:
        """The latents of one level.

        Raises:
          InputError: the level was not kept.
        """
        if level not in self.levels:
            raise InputError(
                f'the inversion keeps levels {self.levels}, and {level} is needed: invert with keep="all"'
            )
        return self.latents[self.levels.index(level)]

    @property
    def per_step(self) -> Mapping[str, Array]:
        """The method's data for every step of an edit, most noise first."""
        method, steps = self.key.method, self.key.steps
        found = method.per_step({"latents": self.latents, **self.data})
        for name, array in found.items():
            if len(array) != self.key.top:
                raise InputError(
                    f"{type(method).__name__}.per_step returned {name} for {len(array)} steps: an edit has "
                    f"{self.key.top}"
                )
        return {name: _filled(array, steps) for name, array in found.items()}

    @property
    def anchors(self) -> Float[Array, "levels b h w c"]:
        """The latents of every level, most noise first; zeros for those from which no edit starts."""
        return _filled(self.latents[::-1], self.key.steps + 1)

    @property
    def figures(self) -> Mapping[str, Float[Array, "b"]]:
        """Numbers by which the method tells how good the inversion of each example is, by name.

        Raises:
          InputError: the method returns something else.
        """
        method, count = self.key.method, self.latents.shape[1]
        found = method.figures({"latents": self.latents, **self.data})
        for name, array in found.items():
            if array.shape != (count,):
                raise InputError(
                    f"{type(method).__name__}.figures returned {name} of shape {array.shape}: it must have a number "
                    f"for each example, {(count,)} here"
                )
        return found


def _filled(array: Float[Array, "n b *rest"], count: int) -> Float[Array, "count b *rest"]:
    """The array with zeros before it, so that its first axis is `count` long."""
    missing = jnp.zeros_like(array, shape=(count - len(array), *array.shape[1:]))
    return jnp.concatenate([missing, array]) if len(missing) else array
