"""A checkpoint on its devices, its properties, and the costs of an edit with it."""

import functools
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uam_jax.checkpoints.load import Checkpoint, load_checkpoint
from uam_jax.checkpoints.recommended import Recommended, recommended_by
from uam_jax.checkpoints.tokenizer import unknown_words
from uam_jax.engine import programs
from uam_jax.engine.arguments import (
    checked_images,
    checked_latents,
    inversion_regions,
    latent_masks,
    per_image,
)
from uam_jax.engine.inversion import InversionKey
from uam_jax.engine.inverter import Inverter
from uam_jax.engine.parallel import Devices, gather, platform_of
from uam_jax.engine.prompts import (
    Prompts,
    SettledSource,
    prompt_list,
    prompts_of,
    settle_context,
    source_prompts,
)
from uam_jax.engine.rehearsal import compile_together
from uam_jax.method.agreement import CAPTION, EVALUATIONS
from uam_jax.method.confidence import Calibration
from uam_jax.method.config import EditConfig
from uam_jax.method.plan import Plan
from uam_jax.runtime.platforms import Platform
from uam_jax.types import Condition, Image, ImageLike, Latent, LatentLike, MaskLike, Params, Site


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A checkpoint on its devices.

    Attributes:
      checkpoint: networks, weights, tokenizer, schedule.
      devices: over which batches are split; None: where the weights were put, or else JAX's default device.
    """

    checkpoint: Checkpoint
    devices: Devices | None = None

    @classmethod
    def load(
        cls,
        model: str | Path = "scenes",
        *,
        dtype: str = "auto",
        variant: str | None = None,
        revision: str | None = None,
    ) -> Self:
        """Loads a model: an embedded one's name, a folder, an Orbax checkpoint or a hub id.

        Args:
          model: see `checkpoints.load_checkpoint`.
          dtype: of weights and computation; norms and softmax are float32 in any case. "auto" is bfloat16
            on TPUs and on GPUs that multiply it, float16 on older GPUs and float32 on CPUs. Products of
            float32 matrices are less than that on TPU and GPU unless `jax.default_matmul_precision`
            is set.
          variant: of the weight files ("fp16").
          revision: of a hub id.

        Raises:
          InputError: no such model, or a file of it is at fault.
        """
        editor = cls(load_checkpoint(model, dtype=dtype, variant=variant, revision=revision))
        _ = editor.recommended  # its faults come now, not after the first edit
        return editor

    def on(self, devices: Devices | None) -> Self:
        """The same model with its weights on every device, each taking its part of a batch; None: on one."""
        params = self.params
        params = gather(params) if devices is None else devices.replicate(params)
        checkpoint = replace(self.checkpoint, params=params)
        return replace(self, checkpoint=checkpoint, devices=devices)

    @functools.cached_property
    def inverter(self) -> Inverter:
        """Inversions one level deeper: levels, trajectories, clean estimates."""
        return Inverter(self.checkpoint, self.devices)

    def compile(self, name: Hashable, work: Callable[[Self], Any]) -> None:
        """Compiles the programs of some work together, so that its first result comes sooner.

            editor.compile("edit", lambda editor: editor.edit(pictures, targets, config=config))

        Nothing is computed, and work of the same name is looked at once. Under `jax.pmap` programs are compiled as they
        come.

        Args:
          name: of the work; an editor keeps the names that it has seen.
          work: what will be done with this editor, in terms of another that it is given.
        """
        if name in self._compiled or (self.devices and self.devices.mode == "pmap"):
            return
        # A copy: what an editor computes once and keeps would be zeros.
        compile_together(lambda: work(replace(self)))
        self._compiled.add(name)

    @functools.cached_property
    def _compiled(self) -> set[Hashable]:
        return set()

    @property
    def platform(self) -> Platform:
        """The kind of device that this runs on."""
        return platform_of(self.params, self.devices)

    @property
    def name(self) -> str:
        """The name, folder or hub id under which the model was asked for."""
        return self.checkpoint.name

    @property
    def weights_hash(self) -> str:
        """16 hex digits that depend on the stored weights alone."""
        return self.checkpoint.weights_hash

    @property
    def dtype(self) -> str:
        """The number format of the computation: float32, bfloat16 or float16."""
        return self.checkpoint.dtype

    @property
    def model_hash(self) -> str:
        """A short name of all that decides what the model computes: weights, configs, scheduler, tokenizer."""
        return self.checkpoint.model_hash

    @property
    def native_size(self) -> int:
        """The side, in pixels, of the pictures that the model was trained on."""
        return self.checkpoint.denoiser.native_side * self.checkpoint.vae.config.factor

    @property
    def size_factor(self) -> int:
        """Pixels to a latent pixel, along a side."""
        return self.checkpoint.vae.config.factor

    @property
    def size_multiple(self) -> int:
        """Sides of pictures are multiples of this."""
        return self.size_factor * self.latent_multiple

    @property
    def latent_multiple(self) -> int:
        """Sides of latents are multiples of this."""
        return self.checkpoint.denoiser.side_multiple

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the network calls rules, in execution order."""
        return self.checkpoint.denoiser.sites

    @functools.cached_property
    def recommended(self) -> Recommended:
        """The settings that ship beside the weights."""
        return recommended_by(self.checkpoint)

    @property
    def default_config(self) -> EditConfig:
        """The preset `default` in the model's own form."""
        return self.preset("default")

    def preset(self, name: str) -> EditConfig:
        """A preset or a TOML file; settings that ship beside the weights win over those of a preset.

        Raises:
          InputError: as of `EditConfig.load`.
        """
        return self.recommended.configs.get(name) or EditConfig.load(name)

    @property
    def calibration(self) -> Calibration:
        """The calibration of the confidence: the model's own if it ships one."""
        return self.recommended.calibration

    @property
    def params(self) -> Params:
        """The weights of `unet`, `vae` and `text_encoder`."""
        return self.checkpoint.params

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.checkpoint.vae.config.latent_channels

    def evaluations(
        self,
        config: EditConfig,
        *,
        targets: int = 1,
        user_mask: bool = False,
        source: Prompts | None = None,
    ) -> int:
        """Single-sample U-Net evaluations that an edit of one image takes; see `plan`."""
        return self.plan(config, user_mask=user_mask, source=source).evaluations(targets)

    def plan(
        self, config: EditConfig, *, user_mask: bool = False, source: Prompts | None = None
    ) -> Plan:
        """The evaluations that an edit with `config` takes.

        Args:
          config: the edit's.
          user_mask: whether the user gives a mask.
          source: the source prompts, which take fewer evaluations if all are empty.
        """
        timesteps = self.checkpoint.schedule.spaced(config.spacing).timesteps(config.steps)
        return settle_context(config, source).plan(timesteps, user_mask=user_mask)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Warns of words that the model has never seen, if it ships a list of those it has."""
        known = self.recommended.words
        if known is None:
            return
        if unknown := unknown_words(prompts, known):
            warnings.warn(
                f"{self.name} has never seen {', '.join(unknown)}; it knows only: {', '.join(known)}. "
                "For any other picture give a Stable Diffusion model with --model FOLDER_OR_HUB_ID",
                UserWarning,
                stacklevel=3,
            )

    # Pictures and text

    def upload(self, images: ImageLike, *, checked: bool = False) -> Image:
        """Pictures on the device: once for `encode` and `prepare`, each of which would else bring them there.

        Args:
          images: as in `edit`.
          checked: their values need not be looked at, which brings those of a device to the host.

        Raises:
          InputError: the sides are not multiples of `size_multiple`, or the values are not in [-1, 1].
        """
        return jnp.asarray(
            checked_images(images, multiple=self.size_multiple, model=self.name, values=not checked)
        )

    def encode(self, images: ImageLike, *, checked: bool = False) -> Latent:
        """Pictures -> scaled latents: the posterior's mean times the scaling factor; arguments as of `upload`."""
        images = self.upload(images, checked=checked)
        return programs.encode(self.checkpoint.vae, self.params, images, on=self.devices)

    def decode(self, latents: LatentLike) -> Image:
        """Scaled latents -> pictures, clipped to [-1, 1]."""
        latents = checked_latents(latents, channels=self.latent_channels, finite=False)
        return programs.decode(self.checkpoint.vae, self.params, latents, on=self.devices)

    def condition(self, prompts: Prompts) -> Condition:
        """Texts -> the network's condition; over-long prompts are cut with a warning."""
        return self.inverter.condition(prompts)

    def agreement(self, latents: LatentLike, prompts: Prompts) -> Float[Array, "b"]:
        """How well prompts, one for all or one each, describe the pictures of scaled latents.

        A number for each picture, above 0 where its prompt helps the network to find the picture in noise
        (`method.agreement`); 4 evaluations.

        Raises:
          InputError: neither one prompt for all nor one each.
        """
        latents = self._latents(latents, finite=False)
        texts = prompts_of(prompts, len(latents))
        text = per_image(self.condition(texts), len(latents))
        return self.inverter.agreement(latents, text, CAPTION)["agreement"]

    def settle_source(
        self,
        z0: LatentLike,
        source: Prompts | SettledSource | None = None,
        config: EditConfig | None = None,
    ) -> SettledSource:
        """Decides which pictures' source prompts are used; see `config.source.condition`.

        Args:
          z0: the pictures' scaled latents.
          source: as in `edit`; what is settled stays as it is.
          config: as in `edit`.

        Raises:
          InputError: the prompts do not fit the settings or the number of pictures.
        """
        if isinstance(source, SettledSource):
            return source
        config = self.default_config if config is None else config
        prompts = source_prompts(source, config)
        texts = prompt_list(prompts)
        self.check_prompts(texts)
        if config.source.condition != "auto" or not any(texts):
            return SettledSource(settle_context(config, prompts), prompts)
        count, agreement = len(z0), self.agreement(z0, texts)
        texts = texts * count if len(texts) == 1 else texts
        fits = np.asarray(agreement) >= 0
        if not fits.all():
            warnings.warn(
                "a source prompt does not describe its picture, and the null prompt takes its place: its "
                "source_agreement is below 0",
                UserWarning,
                stacklevel=3,
            )
        return SettledSource(
            config.updated({"source": {"condition": "prompt"}}),
            [text if fit else "" for text, fit in zip(texts, fits, strict=True)],
            {"source_agreement": agreement},
            EVALUATIONS * count,
        )

    def _latents(self, latents: LatentLike, *, finite: bool = True) -> Latent:
        return checked_latents(
            latents,
            channels=self.latent_channels,
            multiple=self.latent_multiple,
            finite=finite,
        )

    # The inversions and programs of an edit

    def inversions_needed(
        self,
        source: Prompts | SettledSource | None = None,
        *,
        shape: Sequence[int],
        config: EditConfig | None = None,
        masks: MaskLike | None = None,
    ) -> dict[InversionKey, tuple[int, ...]]:
        """The inversions that an edit of pictures takes, and the levels that it needs of each.

        Args:
          source: as in `edit`, or as `settle_source` has found it.
          shape: of the pictures' latents.
          config: as in `edit`.
          masks: as in `edit`.
        """
        config = self.default_config if config is None else config
        if not isinstance(source, SettledSource):
            prompts = source_prompts(source, config)
            source = SettledSource(settle_context(config, prompts), prompts)
        config, prompts = source.config, source.prompts
        allowed = None if masks is None else latent_masks(masks, shape, self.size_factor)
        regions = inversion_regions(allowed, config)
        keys = self.inverter.keys(shape[0], prompts, config, regions)
        return keys.levels(self.plan(config, user_mask=masks is not None), config)

    def programs(
        self,
        config: EditConfig,
        size: tuple[int, int],
        *,
        user_mask: bool = False,
        prompted: bool = True,
    ) -> set[tuple[Any, ...]]:
        """A name for each program that edits of a batch of pictures of one size take, besides the text encoder's.

        Edits that have a name in common share the program. `prompted`: source prompts are given.
        """
        given = "x" if prompted else ""
        config = settle_context(config, given)
        plan = self.plan(config, user_mask=user_mask)
        prompts = "" if config.source.condition == "null" else given
        keys = self.inverter.keys(1, prompts, config)
        regions = user_mask and config.inversion.outside_uniformity > 0
        mask, regional = config.mask, config.target.outside_uniformity > 0
        course = programs.EditCourse.of(config, plan, self.sites)
        details = mask.to_rule().rule, mask.radius, mask.source_line, regional
        sampled = config.steps, config.sampler, keys.source.spacing
        replayed = config.source.latents == "replay"
        names: list[tuple[Any, ...]] = [
            ("encode",),
            ("decode",),
            ("error_map",),
            ("edit", course, user_mask, replayed, *details, *sampled),
            ("signals", replayed and plan.segments[-1].source),
            *([("agreement",)] if config.agreement or plan.caption else []),
        ]
        for key, levels in keys.levels(plan, config).items():
            kind = key.uniformity, any(key.prompts), key.rows, regions and key == keys.source
            names.append(("invert", *kind, *sampled, key.method, key.source_rows, levels))
        if plan.depth:
            kind = keys.auxiliary.uniformity, keys.auxiliary.method.in_edit, *sampled
            names.append(("denoise", plan.depth, plan.blended, *kind))
        return {(*name, size) for name in names}
