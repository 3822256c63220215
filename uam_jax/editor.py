"""The whole flow on one page: image -> latent -> invert -> edit -> image.

`Editor` binds a checkpoint to the samplers. Its programs are compiled once per shape and configuration;
what they share (an inversion, the auxiliary branch) is computed once for any number of targets.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from uam_jax.engine import programs
from uam_jax.engine.arguments import (
    checked_images,
    checked_number,
    checked_regions,
    inversion_regions,
    latent_masks,
    listed,
)
from uam_jax.engine.delivery import EditResult
from uam_jax.engine.inversion import Inversion
from uam_jax.engine.inverter import Regions
from uam_jax.engine.loaded import LoadedModel
from uam_jax.engine.prepared import Prepared
from uam_jax.engine.prompts import (
    Prompts,
    SettledSource,
    Targets,
    checked_source,
    flatten_edits,
    prepare_control,
    prompt_list,
    with_sources,
)
from uam_jax.errors import InputError
from uam_jax.method.agreement import RESULT
from uam_jax.method.config import EditConfig, InversionConfig
from uam_jax.method.edit import EditInputs
from uam_jax.method.inversions import DDIMInversion, InversionMethod
from uam_jax.types import Image, ImageLike, Latent, LatentLike, MaskLike


@dataclass(frozen=True, eq=False)
class Editor(LoadedModel):
    """A loaded model and the operations on it. Pictures are (b, h, w, 3) float32 in [-1, 1]."""

    def edit(
        self,
        images: ImageLike,
        target: Targets,
        source: Prompts | None = None,
        *,
        masks: MaskLike | None = None,
        inversions: Inversion | Sequence[Inversion] | None = None,
        config: EditConfig | None = None,
        keep_masks: bool = False,
    ) -> EditResult:
        """Edits pictures by text.

        Args:
          images: in [-1, 1]; sides are multiples of `size_multiple`.
          target: a prompt or an `Edit` per picture, or a list of them per picture.
          source: descriptions of the pictures: one prompt for all or one each; used where
            `config.source.condition` asks for them. The edits may give them instead.
          masks: where each picture may change, in [0, 1]; see `config.mask.user`.
          inversions: of these pictures, to be used where `config` needs them.
          config: the model's `default_config` if not given.
          keep_masks: return every step's mask.

        Raises:
          InputError: an empty target, counts that do not fit, an inversion of something else.
        """
        config = self.default_config if config is None else config
        originals = checked_images(images, multiple=self.size_multiple, model=self.name)
        source = checked_source(target, source, len(originals), config, self.checkpoint.tokenizer)
        images = jnp.asarray(originals)
        z0 = self.encode(images, checked=True)
        prepared = self.prepare(
            z0,
            source,
            masks=masks,
            inversions=inversions,
            config=config,
            images=images,
        )
        result = self.edit_prepared(prepared, target, keep_masks=keep_masks)
        if config.preserve == "latent":
            return result
        return result.delivered(originals, masks)

    # The method

    def invert(
        self,
        z0: LatentLike,
        prompts: Prompts = "",
        *,
        uniformity: float = 1.0,
        guidance: float = 1.0,
        steps: int = 50,
        spacing: str = "",
        keep: Literal["needed", "all"] = "needed",
        regions: Regions | None = None,
        sampler: str = "ddim",
        method: InversionMethod | None = None,
        edit_guidance: float = 7.5,
    ) -> Inversion:
        """Clean latents -> noise (method: §3.3.1).

        Args:
          z0: scaled latents, from `encode`.
          prompts: one for all, or one each.
          uniformity: of the cross-attention maps, from the text's (0) to uniform ones (1).
          guidance: scale; 1 is none.
          steps: of the sampler.
          spacing: as in `EditConfig`.
          keep: "all" latents, or those that reconstruction and an edit by `default_config` need, which are all if its
            source is anchored.
          regions: in place of `uniformity`, towards the null prompt's uniform maps; an axis of 1 serves all.
          sampler: as in `EditConfig`.
          method: the algorithm, see `method.inversions`; DDIM if not given.
          edit_guidance: scale of the edit that follows, for a method that needs it.

        Raises:
          InputError: one of them can't be; the message names the remedy.
        """
        z0, guidance = self._latents(z0), checked_number("guidance", guidance)
        if regions is not None:
            regions, uniformity = checked_regions(regions, z0.shape), 0.0
        if not 0 <= uniformity <= 1:
            raise InputError(f"uniformity is {uniformity}: it must be from 0 to 1")
        if keep not in ("needed", "all"):
            raise InputError(f"keep is {keep!r}: choose needed or all")
        key = self.inverter.key(
            z0.shape[0],
            prompts,
            InversionConfig(method or DDIMInversion(), uniformity, guidance),
            steps=steps,
            spacing=spacing,
            sampler=sampler,
            regions=regions,
            edit_guidance=checked_number("edit_guidance", edit_guidance),
        )
        plan = self.plan(replace(self.default_config, steps=steps, spacing=spacing))
        every = keep == "all" or self.default_config.source.latents == "anchored"
        return self.inverter.invert(z0, key, key.levels(None if every else plan.depth), regions)

    def reconstruct_latents(self, inversion: Inversion, *, guidance: float | None = None) -> Latent:
        """Noise -> clean latents, with the prompts and maps of the inversion.

        Args:
          inversion: of this editor's model.
          guidance: scale; None takes the inversion's.
        """
        self.inverter.refuse_foreign(inversion)
        if guidance is not None:
            scale = checked_number("guidance", guidance)
            inversion = replace(inversion, key=replace(inversion.key, guidance=scale))
        return self.inverter.denoise(inversion, max(inversion.levels))[0]

    def reconstruct(self, inversion: Inversion, *, guidance: float | None = None) -> Image:
        """`reconstruct_latents`, as pictures."""
        return self.decode(self.reconstruct_latents(inversion, guidance=guidance))

    def edit_latents(
        self,
        z0: LatentLike,
        target: Targets,
        source: Prompts | None = None,
        *,
        masks: MaskLike | None = None,
        inversions: Inversion | Sequence[Inversion] | None = None,
        config: EditConfig | None = None,
        images: ImageLike | None = None,
        keep_masks: bool = False,
    ) -> EditResult:
        """`edit` from scaled latents; `config.preserve` has no effect here.

        `images`, if given, are those of `z0`: see `prepare`.
        """
        z0 = self._latents(z0)
        config = self.default_config if config is None else config
        source = checked_source(target, source, len(z0), config, self.checkpoint.tokenizer)
        prepared = self.prepare(
            z0,
            source,
            masks=masks,
            inversions=inversions,
            config=config,
            images=images,
        )
        return self.edit_prepared(prepared, target, keep_masks=keep_masks)

    def prepare(
        self,
        z0: LatentLike,
        source: Prompts | SettledSource | None = None,
        *,
        masks: MaskLike | None = None,
        inversions: Inversion | Sequence[Inversion] | None = None,
        config: EditConfig | None = None,
        images: ImageLike | None = None,
    ) -> Prepared:
        """The part of `edit_latents` that all targets share: the inversions and the auxiliary branch.

        `images` are those that `z0` was encoded from, so that the result can tell how well the model
        reproduces them; without them, only how well it reproduces what the VAE makes of `z0`. The values of pictures
        on a device are not looked at: `encode` or `upload` has done so.
        """
        # What is not finite spoils its own row alone, and looking would wait for the encoder.
        z0 = self._latents(z0, finite=False)
        settled = self.settle_source(z0, source, config)
        config, prompts = settled.config, settled.prompts
        if images is not None:
            images = self._images_of(z0, images)
        allowed = None if masks is None else latent_masks(masks, z0.shape, self.size_factor)
        plan = self.plan(config, user_mask=masks is not None)
        regions = inversion_regions(allowed, config)
        keys = self.inverter.keys(z0.shape[0], prompts, config, regions)
        needed = keys.levels(plan, config)
        made, evaluations = self.inverter.provide(z0, needed, listed(inversions), regions)
        auxiliary, clean = None, None
        if plan.depth:
            inversion = made[keys.auxiliary]
            auxiliary, clean = self.inverter.denoise(inversion, plan.depth, last=plan.blended)
        elif plan.blended:
            auxiliary, clean = z0, jnp.broadcast_to(z0, (plan.blended, *z0.shape))
        origin = made[keys.source]
        images = self.decode(z0) if images is None else images
        rebuilt = self.decode(z0 if auxiliary is None else auxiliary)
        return Prepared(
            config=config,
            plan=plan,
            z0=z0,
            start=origin.at(plan.start),
            below=tuple(map(origin.at, keys.source.starts(plan.start)[1:])),
            anchors=origin.anchors if config.source.latents == "anchored" else None,
            inverted=origin.per_step,
            sources=keys.source.prompts,
            condition=self.inverter.condition_of(keys.source, z0.shape[0]),
            auxiliary=auxiliary,
            auxiliary_clean=clean,
            masks=None if allowed is None else jnp.asarray(allowed),
            images=images,
            rebuilt=rebuilt,
            error_map=programs.error_map(images, rebuilt, on=self.devices),
            inversions=list(made.values()),
            figures={**settled.figures, **keys.figures(made)},
            evaluations=settled.evaluations + evaluations + z0.shape[0] * plan.depth,
        )

    def _images_of(self, z0: Latent, images: ImageLike) -> Image:
        images = self.upload(images, checked=isinstance(images, jax.Array))
        (b, h, w, _), factor = z0.shape, self.size_factor
        if images.shape[:3] != (b, h * factor, w * factor):
            raise InputError(
                f"images have shape {images.shape}: {(b, h * factor, w * factor, 3)} is needed, the pictures "
                "that z0 was encoded from"
            )
        return images

    def edit_prepared(
        self, prepared: Prepared, target: Targets, *, keep_masks: bool = False
    ) -> EditResult:
        """The part of `edit_latents` that depends on the targets."""
        for inversion in prepared.inversions:
            self.inverter.refuse_foreign(inversion)
        config, plan, count = prepared.config, prepared.plan, prepared.z0.shape[0]
        edits, source_index = flatten_edits(target, count)
        self.check_prompts([edit.target for edit in edits])
        index = None if len(edits) == count else jnp.asarray(source_index)

        def per_target(x: Array | None, axis: int = 0) -> Array | None:
            return x if x is None or index is None else jnp.take(x, index, axis)

        start, over_steps = per_target(prepared.start), functools.partial(per_target, axis=1)
        source = jax.tree.map(per_target, prepared.condition)
        conditions = self.inverter.conditions(edits, source, config)
        trace = programs.edit(
            self.inverter.model(config.spacing),
            self.params,
            jnp.copy(start),
            programs.EditArrays(
                conditions=conditions,
                inputs=EditInputs(
                    auxiliary_clean=over_steps(prepared.auxiliary_clean),
                    user_mask=per_target(prepared.masks),
                    outside_uniformity=config.target.outside_uniformity or None,
                    anchors=over_steps(prepared.anchors),
                    inverted=jax.tree.map(over_steps, prepared.inverted),
                    below=jax.tree.map(per_target, prepared.below),
                ),
                mask=config.mask.to_rule(),
                guidance=config.guidance,
                control_data=prepare_control(
                    config.control,
                    self.checkpoint.tokenizer,
                    with_sources(edits, source_index, prepared.sources),
                    per_target(prepared.masks),
                ),
            ),
            course=programs.EditCourse.of(config, plan, self.sites, keep_masks=keep_masks),
            on=self.devices,
        )
        edited = self.decode(trace.target)
        signals = programs.signals(
            per_target(prepared.images),
            edited,
            *(per_target(x) for x in (prepared.rebuilt, prepared.z0)),
            start,
            trace._replace(masks=None),
            on=self.devices,
        )
        if config.agreement:
            signals |= self.inverter.agreement(trace.target, conditions["target"], RESULT)
        t, h, w = trace.free.shape
        size = t, h * self.size_factor, w * self.size_factor
        return EditResult(
            images=edited,
            latents=trace.target,
            source_latents=trace.source,
            auxiliary_latents=prepared.auxiliary,
            masks=jax.image.resize(trace.free, size, "linear"),
            evaluations=prepared.evaluations + len(edits) * plan.edit_evaluations,
            source_index=source_index,
            error_map=prepared.error_map,
            signals=signals,
            config=config,
            calibration=self.calibration,
            step_masks=trace.masks,
            figures=jax.tree.map(per_target, prepared.figures),
        )

    def generate(
        self,
        prompts: Prompts,
        seed: int = 0,
        *,
        guidance: float = 7.5,
        steps: int = 50,
        spacing: str = "",
        sampler: str = "ddim",
    ) -> Image:
        """Pictures from text alone, at the native size; the i-th depends on seed, i and its prompt."""
        texts, guidance = prompt_list(prompts), checked_number("guidance", guidance)
        self.check_prompts(texts)
        config = self.checkpoint.unet.config
        shape = (config.sample_size, config.sample_size, config.in_channels)
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(
            jnp.arange(len(texts))
        )
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        key = self.inverter.key(
            len(texts), texts, InversionConfig(), steps=steps, spacing=spacing, sampler=sampler
        )
        key = replace(key, guidance=guidance if any(texts) else 1.0)
        latents, _ = self.inverter.denoise(Inversion(noise[None], key, (steps,)), steps)
        return self.decode(latents)
