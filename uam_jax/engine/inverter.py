"""Inverting and denoising with a checkpoint: what `Editor` does before and beside an edit."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uam_jax.checkpoints.load import Checkpoint
from uam_jax.checkpoints.model_hash import differences
from uam_jax.engine import programs
from uam_jax.engine.arguments import Prompts, per_image, prompt_list
from uam_jax.engine.inversion import Inversion, InversionKey
from uam_jax.engine.parallel import Devices
from uam_jax.engine.predictors import Network
from uam_jax.errors import InputError
from uam_jax.method.config import EditConfig
from uam_jax.method.inversions import DDIM
from uam_jax.method.plan import Plan
from uam_jax.method.schedule import warn_of_little_noise
from uam_jax.types import Condition, Latent

Shares = Float[Array | np.ndarray, "blocks images rows columns"]
"""Uniformity of every transformer block, example and pixel of the latent, see `types.Regions`."""


class Keys(NamedTuple):
    """The two inversions of an edit; they may be the same."""

    source: InversionKey
    auxiliary: InversionKey

    def levels(self, plan: Plan, config: EditConfig) -> dict[InversionKey, tuple[int, ...]]:
        """The levels that the edit needs of each."""
        levels: dict[InversionKey, set[int]] = {self.source: {0, config.steps}}
        if config.source.latents == "anchored":
            levels[self.source].update(range(config.steps))
        if plan.depth:
            levels.setdefault(self.auxiliary, set()).update({0, plan.depth})
        return {key: tuple(sorted(values)) for key, values in levels.items()}


@dataclass(frozen=True, eq=False)
class Inverter:
    """A checkpoint's inversions.

    Attributes:
      checkpoint: networks, weights, tokenizer, schedule.
      devices: over which batches are split; None: where the weights were put, or else JAX's default device.
    """

    checkpoint: Checkpoint
    devices: Devices | None = None

    def network(self, spacing: str = "") -> Network:
        """The denoiser with its schedule, whose timesteps may be spaced otherwise than the model's own."""
        return Network(self.checkpoint.denoiser, self.checkpoint.schedule.spaced(spacing))

    def condition(self, prompts: Prompts) -> Condition:
        """See `Editor.condition`."""
        ids = jnp.asarray(self.checkpoint.tokenizer.encode(prompt_list(prompts)))
        return programs.condition(self.checkpoint.denoiser, self.checkpoint.params, ids)

    def key(
        self,
        count: int,
        prompts: Prompts,
        *,
        uniformity: float = 0.0,
        guidance: float = 1.0,
        steps: int,
        spacing: str = "",
        regions: Shares | None = None,
    ) -> InversionKey:
        """What an inversion of `count` images depends on besides them.

        Warns where the noisiest of its levels is no noise.

        Raises:
          InputError: neither one prompt for all nor one each.
        """
        schedule = self.checkpoint.schedule
        warn_of_little_noise(schedule.spaced(spacing), steps)
        texts = tuple(prompt_list(prompts))
        if len(texts) not in (1, count):
            raise InputError(
                f"{len(texts)} prompts for {count} images: give one for all or one each"
            )
        if len(set(texts)) == 1:
            texts = texts[:1]
        # Guidance between a prompt and itself is none.
        scale = float(guidance) if any(texts) else 1.0
        return InversionKey(
            self.checkpoint.model_hash,
            texts,
            float(uniformity),
            scale,
            steps,
            () if regions is None else _named(np.asarray(regions, np.float32)),
            "" if spacing == schedule.timestep_spacing else spacing,
        )

    def keys(
        self, count: int, prompts: Prompts, config: EditConfig, regions: Shares | None = None
    ) -> Keys:
        """The inversions that an edit of `count` images takes."""
        inversion = config.inversion
        if inversion.method != DDIM():
            raise InputError("inversion.kind must be ddim: no other inversion is run yet")
        return Keys(
            source=self.key(
                count,
                prompts,
                uniformity=0.0 if regions is not None else inversion.uniformity,
                guidance=inversion.guidance,
                steps=config.steps,
                spacing=config.spacing,
                regions=regions,
            ),
            auxiliary=self.key(
                count,
                "",
                uniformity=config.auxiliary.uniformity,
                steps=config.steps,
                spacing=config.spacing,
            ),
        )

    def invert(
        self, z0: Latent, key: InversionKey, levels: tuple[int, ...], regions: Shares | None = None
    ) -> Inversion:
        """Clean latents -> those of `levels`."""
        count = z0.shape[0]
        latents = programs.invert(
            self.network(key.spacing),
            self.checkpoint.params,
            jnp.asarray(z0),
            *self._told(key, count),
            key.guidance,
            *self._regions(regions, z0.shape),
            uniformity=key.uniformity,
            steps=key.steps,
            levels=levels,
            on=self.devices,
        )
        return Inversion(latents, key, levels, regions)

    def denoise(
        self, inversion: Inversion, depth: int, *, last: int = 0
    ) -> tuple[Latent, Float[Array, "last b h w c"] | None]:
        """Latents of level `depth` -> clean ones, and the clean estimates of the `last` steps."""
        key, latents = inversion.key, inversion.at(depth)
        return programs.denoise(
            self.network(key.spacing),
            self.checkpoint.params,
            latents,
            *self._told(key, latents.shape[0]),
            key.guidance,
            *self._regions(inversion.regions, latents.shape),
            uniformity=key.uniformity,
            steps=key.steps,
            depth=depth,
            last=last,
            on=self.devices,
        )

    def provide(
        self,
        z0: Latent,
        needed: Mapping[InversionKey, tuple[int, ...]],
        given: Sequence[Inversion],
        regions: Shares | None = None,
    ) -> tuple[dict[InversionKey, Inversion], int]:
        """Every inversion that is needed, given or made now, and the evaluations spent.

        Args:
          z0: the pictures' latents.
          needed: levels by inversion.
          given: each must be needed and of these pictures.
          regions: of the inversion whose key names any.

        Raises:
          InputError: a given inversion is of no use.
        """
        found = self._matched(given, needed, z0)
        evaluations = 0
        for key in needed.keys() - found.keys():
            own = regions if key.regions else None
            found[key] = self.invert(z0, key, needed[key], own)
            evaluations += z0.shape[0] * key.rows * max(needed[key])
        return found, evaluations

    def refuse_foreign(self, inversion: Inversion) -> None:
        """Raises an `InputError` for an inversion with another model."""
        made_with, own = inversion.key.model_hash, self.checkpoint.model_hash
        if made_with != own:
            raise InputError(
                f"the inversion was made with another model ({made_with}) than this, {self.checkpoint.name} "
                f"({own}): they differ in {differences(made_with, own)}; invert again"
            )

    def _matched(
        self,
        given: Sequence[Inversion],
        needed: Mapping[InversionKey, tuple[int, ...]],
        z0: Latent,
    ) -> dict[InversionKey, Inversion]:
        """The given inversions by their key."""
        found = {}
        for inversion in given:
            self.refuse_foreign(inversion)
            if inversion.key not in needed:
                wanted = "; or ".join(str(key) for key in needed)
                raise InputError(
                    f"the inversion ({inversion.key}) has no use in this edit, which takes {wanted}"
                )
            for level in needed[inversion.key]:
                inversion.at(level)
            if inversion.at(0).shape != z0.shape or not np.allclose(inversion.at(0), z0, atol=1e-4):
                raise InputError("the inversion is of other pictures than those to be edited")
            found[inversion.key] = inversion
        return found

    def _told(self, key: InversionKey, count: int) -> tuple[Condition | None, Condition | None]:
        """A row for each image, so that one program serves one prompt for all and one each; and null's."""
        if len(key.prompts) not in (1, count):
            raise InputError(
                f"the inversion is of {len(key.prompts)} images with a prompt each, and {count} are left of "
                "it: invert these again"
            )
        null_alone = not any(key.prompts)
        condition = None if null_alone else per_image(self.condition(key.prompts), count)
        return condition, self.condition("") if null_alone or key.rows == 2 else None

    def _regions(
        self, regions: Shares | None, shape: Sequence[int]
    ) -> tuple[Float[Array, "blocks b h w"] | None, Condition | None]:
        """The regions with a row for each image, and the null prompt's condition."""
        if regions is None:
            return None, None
        b, h, w, _ = shape
        spread = jnp.broadcast_to(jnp.asarray(regions, jnp.float32), (len(regions), b, h, w))
        return spread, self.condition("")


def _named(regions: Float[np.ndarray, "blocks images rows columns"]) -> tuple[str, ...]:
    """Short hashes of every image's regions; one where all are the same."""
    parts = (np.ascontiguousarray(regions[:, index]) for index in range(regions.shape[1]))
    names = [
        hashlib.sha256(f"{part.shape}".encode() + part.tobytes()).hexdigest()[:16] for part in parts
    ]
    return tuple(names[:1] if len(set(names)) == 1 else names)
