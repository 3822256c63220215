"""Inverting and denoising with a checkpoint: the work of an `Editor` before and beside an edit."""

import functools
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
from uam_jax.engine.arguments import per_image
from uam_jax.engine.inversion import Inversion, InversionKey
from uam_jax.engine.parallel import Devices
from uam_jax.engine.predictors import Branch, Course, Model
from uam_jax.engine.prompts import Prompts, negative_prompts, prompt_list, prompts_of
from uam_jax.errors import InputError
from uam_jax.method.config import EditConfig, InversionConfig
from uam_jax.method.edits import Edit
from uam_jax.method.plan import Plan
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.schedule import warn_of_little_noise
from uam_jax.types import Condition, Latent

Regions = Float[Array | np.ndarray, "blocks images rows columns"]
"""Uniformity of every transformer block, example and pixel of the latent, see `predictors.Branch`."""


class Keys(NamedTuple):
    """The two inversions of an edit; they may be the same."""

    source: InversionKey
    auxiliary: InversionKey

    def levels(self, plan: Plan, config: EditConfig) -> dict[InversionKey, tuple[int, ...]]:
        """The levels that the edit needs of each."""
        levels = {self.source: {0, *self.source.starts(plan.start)}}
        if config.source.latents == "anchored":
            levels[self.source].update(range(plan.start))
        if plan.depth:
            needed = {0, *self.auxiliary.starts(plan.depth)}
            levels.setdefault(self.auxiliary, set()).update(needed)
        return {key: tuple(sorted(values)) for key, values in levels.items()}

    def figures(self, made: Mapping[InversionKey, Inversion]) -> dict[str, Float[Array, "b"]]:
        """The figures of those inversions that were made, with "source_" or "auxiliary_" before their names."""
        return {
            f"{role}_{name}": array
            for role, key in self._asdict().items()
            if key in made and (role == "source" or key != self.source)
            for name, array in made[key].figures.items()
        }


@dataclass(frozen=True, eq=False)
class Inverter:
    """A checkpoint's inversions.

    Attributes:
      checkpoint: networks, weights, tokenizer, schedule.
      devices: over which batches are split; None: where the weights were put, or else JAX's default device.
    """

    checkpoint: Checkpoint
    devices: Devices | None = None

    def model(self, spacing: str = "") -> Model:
        """The denoiser with its schedule, whose timesteps may be spaced otherwise than the model's own."""
        return Model(self.checkpoint.denoiser, self.checkpoint.schedule.spaced(spacing))

    def condition(self, prompts: Prompts) -> Condition:
        """See `Editor.condition`."""
        ids = jnp.asarray(self.checkpoint.tokenizer.encode(prompt_list(prompts)))
        return programs.condition(self.checkpoint.denoiser, self.checkpoint.params, ids)

    @functools.cached_property
    def null(self) -> Condition:
        """The null prompt's condition (one row), which every edit needs."""
        return self.condition("")

    def condition_of(self, key: InversionKey, count: int) -> Condition:
        """The condition of an inversion, a row for each image."""
        return per_image(self.condition(key.prompts) if any(key.prompts) else self.null, count)

    def agreement(
        self, latents: Latent, text: Condition, shares: Sequence[float]
    ) -> dict[str, Float[Array, "b"]]:
        """See `method.agreement`; `text` has a row for each picture."""
        model = self.model()
        return programs.agreement(
            model,
            self.checkpoint.params,
            latents,
            self.null,
            text,
            model.schedule.at(shares),
            on=self.devices,
        )

    def conditions(
        self, edits: Sequence[Edit], source: Condition, config: EditConfig
    ) -> dict[str, Condition]:
        """The conditions of the edit's branches, by the names that `plan.Row` gives them."""
        null, negatives = self.null, negative_prompts(edits, config)
        return {
            "null": null,
            "negative": self.condition(negatives) if negatives else per_image(null, len(edits)),
            "source": source,
            "target": self.condition([edit.target for edit in edits]),
        }

    def key(
        self,
        count: int,
        prompts: Prompts,
        settings: InversionConfig,
        *,
        steps: int,
        spacing: str = "",
        sampler: str = "ddim",
        regions: Regions | None = None,
        edit_guidance: float = 1.0,
    ) -> InversionKey:
        """All that decides an inversion of `count` images besides them.

        Warns where the noisiest of its levels is no noise.

        Args:
          count: of images.
          prompts: one for all, or one each.
          settings: method, uniformity and guidance.
          steps: from level 0 to the noisiest.
          spacing: as in `EditConfig`.
          sampler: as in `EditConfig`.
          regions: in place of the uniformity.
          edit_guidance: of the edit that follows.

        Raises:
          InputError: neither one prompt for all nor one each; or the method does not work with the sampler.
        """
        method = settings.method
        method.check_sampler(sampler)
        schedule = self.checkpoint.schedule
        warn_of_little_noise(schedule.spaced(spacing), steps)
        texts = tuple(prompts_of(prompts, count))
        if len(set(texts)) == 1:
            texts = texts[:1]
        return InversionKey(
            self.checkpoint.model_hash,
            texts,
            0.0 if regions is not None else settings.uniformity,
            # Guidance between a prompt and itself is none.
            settings.guidance if any(texts) else 1.0,
            steps,
            () if regions is None else _named(np.asarray(regions, np.float32)),
            "" if spacing == schedule.timestep_spacing else spacing,
            sampler,
            method,
            edit_guidance if method.needs_source and any(texts) else 1.0,
        )

    def keys(
        self, count: int, prompts: Prompts, config: EditConfig, regions: Regions | None = None
    ) -> Keys:
        """The inversions that an edit of `count` images takes."""
        shared = {"steps": config.steps, "spacing": config.spacing, "sampler": config.sampler}
        own = {"regions": regions, "edit_guidance": config.guidance}
        return Keys(
            source=self.key(count, prompts, config.source_inversion, **own, **shared),
            auxiliary=self.key(count, "", config.auxiliary_inversion, **shared),
        )

    def invert(
        self, z0: Latent, key: InversionKey, levels: tuple[int, ...], regions: Regions | None = None
    ) -> Inversion:
        """Clean latents -> those of `levels`."""
        data = programs.invert(
            self.model(key.spacing),
            self.checkpoint.params,
            jnp.asarray(z0),
            self._branch(key, z0.shape, regions),
            self._source_branch(key, len(z0)),
            course=_course(key),
            method=key.method,
            levels=levels,
            on=self.devices,
        )
        return Inversion(data.pop("latents"), key, levels, regions, data)

    def denoise(
        self, inversion: Inversion, depth: int, *, last: int = 0
    ) -> tuple[Latent, Float[Array, "last b h w c"] | None]:
        """Latents of level `depth` -> clean ones, and the clean estimates of the `last` steps."""
        key, latents = inversion.key, inversion.at(depth)
        method = key.method.of_branch("alone").in_edit
        data = method.per_step({"latents": inversion.latents, **inversion.data})
        return programs.denoise(
            self.model(key.spacing),
            self.checkpoint.params,
            latents,
            self._branch(key, latents.shape, inversion.regions),
            {name: each[len(each) - depth :] for name, each in data.items()},
            tuple(inversion.at(level) for level in key.starts(depth)[1:]),
            course=_course(key),
            method=method,
            depth=depth,
            last=last,
            on=self.devices,
        )

    def provide(
        self,
        z0: Latent,
        needed: Mapping[InversionKey, tuple[int, ...]],
        given: Sequence[Inversion],
        regions: Regions | None = None,
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
            evaluations += z0.shape[0] * key.evaluations(max(needed[key]))
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
                    f"the inversion ({inversion.key}) has no use in this edit, which takes {wanted}: invert again with "
                    "these settings"
                )
            for level in needed[inversion.key]:
                inversion.at(level)
            if inversion.at(0).shape != z0.shape or not np.allclose(inversion.at(0), z0, atol=1e-4):
                raise InputError("the inversion is of other pictures than those to be edited")
            found[inversion.key] = inversion
        return found

    def _branch(self, key: InversionKey, shape: Sequence[int], regions: Regions | None) -> Branch:
        """An inversion's conditions, a row for each image: one program serves one prompt for all and one each."""
        count, height, width, _ = shape
        if len(key.prompts) not in (1, count):
            raise InputError(
                f"the inversion is of {len(key.prompts)} images with a prompt each, and {count} are left of "
                "it: invert these again"
            )
        null_alone = not any(key.prompts)
        condition = None if null_alone else self.condition_of(key, count)
        null = self.null if null_alone or key.rows == 2 else None
        if regions is None:
            return Branch(condition, null, key.guidance)
        spread = (len(regions), count, height, width)
        regions = jnp.broadcast_to(jnp.asarray(regions, jnp.float32), spread)
        return Branch(condition, null, key.guidance, regions, self.null)

    def _source_branch(self, key: InversionKey, count: int) -> Branch:
        """The conditions of the edit's source branch, if the method needs them."""
        if not key.method.needs_source:
            return Branch(None, None)
        if not any(key.prompts):
            return Branch(None, self.null)
        null = self.null if key.source_rows == 2 else None
        return Branch(self.condition_of(key, count), null, key.edit_guidance)


def _course(key: InversionKey) -> Course:
    return Course(key.steps, SAMPLERS[key.sampler], key.uniformity)


def _named(regions: Float[np.ndarray, "blocks images rows columns"]) -> tuple[str, ...]:
    """Short hashes of every image's regions; one where all are the same."""
    parts = (np.ascontiguousarray(regions[:, index]) for index in range(regions.shape[1]))
    names = [
        hashlib.sha256(f"{part.shape}".encode() + part.tobytes()).hexdigest()[:16] for part in parts
    ]
    return tuple(names[:1] if len(set(names)) == 1 else names)
