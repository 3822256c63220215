"""The settings of an edit as one frozen value: from a preset or a TOML file, then `--set key=value`.

Keys are dotted (`mask.quantile`), and grouped by what they act on. An unknown key, a wrong type and a value out
of range are `InputError`s that name the valid ones. The field defaults are the preset `default`.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np

from uam_jax.errors import InputError
from uam_jax.files import local_path, read_text
from uam_jax.method.agreement import EVALUATIONS
from uam_jax.method.controls import CONTROLS, Control, PlugAndPlay
from uam_jax.method.inversions import INVERSIONS, DDIMInversion, InversionMethod
from uam_jax.method.masks import MaskRule
from uam_jax.method.plan import Plan, branch_rows, segments
from uam_jax.method.samplers import SAMPLERS
from uam_jax.method.section import (
    Between,
    Count,
    Kinds,
    Scale,
    Section,
    Share,
    identity,
    leaves,
    suggestion,
)

RENAMED = {
    "source": "source.latents",
    "source_context": "source.condition",
    "auxiliary": "auxiliary.latents",
    "auxiliary_uniformity": "auxiliary.uniformity",
    "region.inversion": "inversion.outside_uniformity",
    "region.target": "target.outside_uniformity",
}
"""Keys of former versions, and their names now."""


@dataclass(frozen=True)
class SourceConfig(Section):
    """The source branch: the picture as it is."""

    prefix: ClassVar[str] = "source."
    condition: Annotated[
        Literal["null", "prompt", "auto"],
        'condition of the source branch and of its inversion: the null prompt, or the source prompt; "auto" takes the '
        "source prompt where the network finds that it describes the picture (4 evaluations more)",
    ] = "null"
    latents: Annotated[
        Literal["replay", "anchored"],
        "latents of the source branch: denoised again, or anchored on those of its inversion",
    ] = "anchored"


@dataclass(frozen=True)
class InversionConfig(Section):
    """How the source is inverted; `kind` and the fields of `method` are keys of the same table."""

    prefix: ClassVar[str] = "inversion."
    method: Annotated[InversionMethod, Kinds(INVERSIONS, inline=True), "the algorithm"] = field(
        default_factory=DDIMInversion
    )
    uniformity: Annotated[
        Share,
        "uniformity of the cross-attention maps, from the text's maps (0) to uniform maps (1)",
    ] = 0.0
    guidance: Annotated[Scale, "scale of classifier-free guidance; 1 is none"] = 1.0
    outside_uniformity: Annotated[
        Share, "uniformity outside the user's mask; with 0 it is inversion.uniformity everywhere"
    ] = 0.0


@dataclass(frozen=True)
class AuxiliaryConfig(Section):
    """The auxiliary branch: the uniform reconstruction, from which comes what is preserved."""

    prefix: ClassVar[str] = "auxiliary."
    latents: Annotated[
        Literal["replay", "anchored", "original"],
        "latents of the auxiliary branch: denoised from the noisiest level or from the first blended level, or "
        "those of the original",
    ] = "anchored"
    uniformity: Annotated[
        Share,
        "uniformity of its cross-attention maps, from those of the null prompt (0) to uniform maps (1)",
    ] = 1.0


@dataclass(frozen=True)
class TargetConfig(Section):
    """The target branch."""

    prefix: ClassVar[str] = "target."
    outside_uniformity: Annotated[
        Share,
        "uniformity of its cross-attention maps outside the user's mask, or without one outside a mask that is found "
        'as by the rule "auto"; with 0 the text\'s maps hold everywhere',
    ] = 0.0


@dataclass(frozen=True)
class MaskConfig(Section):
    """Where the original is preserved, see `masks` and `edit`."""

    prefix: ClassVar[str] = "mask."
    rule: Annotated[
        Literal["released", "algorithm1", "auto", "none"],
        'rule of the adaptive mask; "auto" finds its threshold for each image, "none" uses only the user\'s mask',
    ] = "released"
    quantile: Annotated[
        Share, 'quantile at the last step, for the rules "released" and "algorithm1"'
    ] = 0.5
    t_mask: Annotated[
        Count, "timestep below which steps are blended; the last step always is, except with 0"
    ] = 200
    radius: Annotated[int, Between(0, 64), "radius of the dilation, in latent pixels"] = 1
    threshold: Annotated[
        Share,
        "share of the blended steps and channels in which a pixel must be free to change to count as edited, where "
        "pixels are preserved",
    ] = 0.3
    source_line: Annotated[bool, "whether the replayed source branch is blended too"] = True
    user: Annotated[
        Literal["intersect", "replace"],
        "whether a user's mask limits the adaptive mask or replaces it",
    ] = "intersect"
    user_from_start: Annotated[
        bool, "whether a user's mask holds from the first step on, not only below t_mask"
    ] = False

    def to_rule(self) -> MaskRule:
        """The rule of the blended steps; its segments say whether it finds a mask at all."""
        rule = "released" if self.rule == "none" else self.rule
        return MaskRule(rule, self.quantile, self.radius, self.source_line)


@dataclass(frozen=True)
class EditConfig(Section):
    """Everything that decides an edit's result, besides the model, image and prompts.

    Its fields are top-level keys, then groups by what they act on.
    """

    steps: Annotated[
        int, Between(1, 1000), "number of denoising steps, and of the steps of each inversion"
    ] = 50
    guidance: Annotated[
        Scale, "scale of classifier-free guidance of the edit's branches; 1 is none"
    ] = 7.5
    spacing: Annotated[
        Literal["", "leading", "trailing", "linspace"],
        'spacing of the timesteps; "" is the model\'s own. "leading" may stop short of the noise, "trailing" and '
        '"linspace" begin at the last timestep',
    ] = ""
    preserve: Annotated[
        Literal["latent", "pixels"],
        "whether unedited parts are kept in the latent only, or also bit-exact in the pixels",
    ] = "pixels"
    sampler: Annotated[
        Literal["ddim", "dpm++2m", "ddpm", "belm"],
        "rule of a step, in denoising and inversion: DDIM, or DPM-Solver++ of second order; the inversions "
        "edit-friendly and belm bring ddpm and belm",
    ] = "ddim"
    agreement: Annotated[
        bool,
        "whether the network is asked how well its prompt describes the result, for the confidence: 4 evaluations more",
    ] = False
    source: Annotated[SourceConfig, "the source branch"] = SourceConfig()
    inversion: Annotated[InversionConfig, "how the source is inverted"] = InversionConfig()
    auxiliary: Annotated[AuxiliaryConfig, "what is preserved"] = AuxiliaryConfig()
    target: Annotated[TargetConfig, "the target branch"] = TargetConfig()
    mask: Annotated[MaskConfig, "where the original is preserved"] = MaskConfig()
    control: Annotated[
        Control, Kinds(CONTROLS), "how the target takes its structure from the source"
    ] = field(default_factory=PlugAndPlay)

    @classmethod
    def load(cls, name_or_path: str | Path = "default", overrides: Sequence[str] = ()) -> Self:
        """Reads a preset by its name, or else a TOML file; then applies `key=value` overrides.

        Raises:
          InputError: naming the file, key or value, and what is valid.
        """
        try:
            config = cls().updated(tomllib.loads(_read(str(name_or_path))))
        except (ValueError, RecursionError) as error:  # InputError, and what is no TOML
            raise InputError(f"config {name_or_path}: {error}") from error.__cause__
        return config.overridden(overrides)

    def overridden(self, overrides: Sequence[str], *, imports: bool = True) -> Self:
        """This config with each `key=value` applied; the value is TOML, or else a bare word.

        Args:
          overrides: in the order in which they apply.
          imports: as in `updated`.

        Raises:
          InputError: naming the override, and what is valid.
        """
        config = self
        named = any(override.partition("=")[0].strip() == "sampler" for override in overrides)
        for override in overrides:
            try:
                table = _table(override)
                if named:
                    table = {"sampler": config.sampler, **table}
                config = config.updated(table, imports=imports)
            except InputError as error:
                raise InputError(f"--set {override}: {error}") from error.__cause__
        return config

    def updated(self, table: Mapping[str, Any], *, imports: bool = True) -> Self:
        """As `Section.updated`; an inversion that has a sampler of its own brings it, unless the table names one.

        Keys of former versions are refused with their names now.
        """
        for key in leaves(table):
            if key in RENAMED:
                raise InputError(f"{key} is now {RENAMED[key]}")
        config = super().updated(table, imports=imports)
        brought = config.inversion.method.works_with[0]
        special = not (SAMPLERS[brought].general and SAMPLERS[config.sampler].general)
        same = type(config.inversion.method) is type(self.inversion.method)
        return (
            config
            if same or "sampler" in table or not special
            else replace(config, sampler=brought)
        )

    def fingerprint(self) -> str:
        """A short hash of the content, the same on every machine; see `section.identity`."""
        text = json.dumps(identity(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def source_inversion(self) -> InversionConfig:
        """How the source is inverted, by the method as this edit needs it."""
        own = self.inversion
        return replace(own, method=own.method.of_branch(self.source.latents))

    @property
    def auxiliary_inversion(self) -> InversionConfig:
        """How the auxiliary branch is inverted, under the null prompt."""
        own, uniformity = self.inversion, self.auxiliary.uniformity
        return replace(own, method=own.method.of_branch("alone"), uniformity=uniformity)

    def check(self, *, user_mask: bool = False) -> None:
        """Raises an `InputError` where settings do not fit each other or the edit.

        Args:
          user_mask: whether the user gives a mask.
        """
        method, condition = self.source_inversion.method, self.source.condition
        method.check_sampler(self.sampler)
        if method.replaces_null and condition != "prompt":
            raise InputError(
                f"{type(method).__name__} puts the source's prompt or what it learns for it in the place of "
                f'the null prompt, and source.condition is "{condition}": set source.condition=prompt, or choose '
                "another inversion.kind"
            )
        if self.control.compares_prompts and condition != "prompt":
            raise InputError(
                f"{type(self.control).__name__} compares the prompts of source and target, and source.condition is "
                f'"{condition}": set it to "prompt" and give the prompt that describes the picture (--source)'
            )
        if self.control.needs_mask and not user_mask:
            raise InputError(
                f"{type(self.control).__name__} works with the user's mask here, and there is none: give a mask"
            )

    def plan(self, timesteps: Sequence[int] | np.ndarray, *, user_mask: bool = False) -> Plan:
        """The evaluations that this edit takes.

        Args:
          timesteps: `Schedule.spaced(config.spacing).timesteps(config.steps)`.
          user_mask: whether the user gives a mask.

        Raises:
          InputError: as of `check`.
        """
        self.check(user_mask=user_mask)
        source, auxiliary = self.source_inversion, self.auxiliary_inversion
        prompted = self.source.condition != "null"
        count = len(timesteps)
        never, always = range(0), range(count)
        # Few steps, or another spacing, do not leave an edit without the mask that it asks for.
        before = sum(int(timestep) >= self.mask.t_mask for timestep in timesteps)
        late = range(min(before, count - 1) if self.mask.t_mask else count, count)
        replaced = user_mask and self.mask.user == "replace"
        user = always if self.mask.user_from_start else late
        parts = segments(
            count,
            adaptive=never if replaced or self.mask.rule == "none" else late,
            user=user if user_mask else never,
            windows=self.control.windows(count),
            compared=always if self.target.outside_uniformity and not user_mask else never,
            anchored=self.source.latents == "anchored",
            first=source.method.first(count),
        )
        rows = branch_rows(guided=self.guidance != 1, prompted=prompted)
        return Plan(
            segments=parts,
            rows=self.control.branches(source.method.branches(rows)),
            auxiliary=self.auxiliary.latents,
            shared_inversion=source == auxiliary and not prompted and not source.outside_uniformity,
            inversion_rows=2 if prompted and source.guidance != 1 else 1,
            inversion_cost=source.method.cost,
            source_cost=source.method.source_cost(2 if prompted and self.guidance != 1 else 1),
            auxiliary_cost=auxiliary.method.cost,
            agreement=EVALUATIONS if self.agreement else 0,
            caption=EVALUATIONS if self.source.condition == "auto" else 0,
        )


def _read(name: str) -> str:
    """The text of a preset or file."""
    folder = resources.files("uam_jax.method") / "presets"
    presets = {item.name.removesuffix(".toml"): item for item in folder.iterdir()}
    if name in presets:
        return presets[name].read_text(encoding="utf-8")
    try:
        if (path := local_path(name)) is None:
            raise InputError("a local file is needed, not a URL")
        return read_text(Path(path))
    except InputError as error:
        known = ", ".join(sorted(presets))
        raise InputError(
            f"neither a preset ({known}) nor a readable TOML file{suggestion(name, presets)} ({error})"
        ) from None


def _table(override: str) -> dict[str, Any]:
    """`a.b=value` as a nested table; what is not a TOML value is a string."""
    key, equals, text = (part.strip() for part in override.partition("="))
    if not (key and equals):
        raise InputError("write it as key=value")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        parsed = {}
    value = parsed["value"] if len(parsed) == 1 else text
    *sections, name = key.split(".")
    table = {name: value}
    for section in reversed(sections):
        table = {section: table}
    return table
