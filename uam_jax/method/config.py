"""What an edit is to do, as one frozen value: from a preset or a TOML file, then `--set key=value`.

Keys are dotted (`mask.quantile`). An unknown key, a wrong type and a value out of range are
`InputError`s that name the valid ones. The field defaults are the preset `default`.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    get_args,
    get_origin,
)

import numpy as np

from uam_jax.errors import InputError
from uam_jax.files import local_path, read_text
from uam_jax.method.plan import Plan, segments

NAMES = {bool: "true or false", int: "an integer", float: "a number"}
"""How error messages call the types of values."""


class Between(NamedTuple):
    """The range of a number, both ends included."""

    least: float
    most: float

    def __str__(self) -> str:
        return f" from {self.least:g} to {self.most:g}"


Share = Annotated[float, Between(0, 1)]
Count = Annotated[int, Between(0, 1000)]
Scale = Annotated[float, Between(0, 1000)]


class _Section:
    """A table of the config: checks its own fields, so that no invalid value can exist."""

    prefix: ClassVar[str] = ""
    __no_type_check__ = True  # by annotation, in tests: these checks come first and say more

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            value = _checked(self.prefix + item.name, getattr(self, item.name), item.type)
            object.__setattr__(self, item.name, value)


@dataclass(frozen=True)
class InversionConfig(_Section):
    """How the source is inverted.

    Attributes:
      uniformity: of the cross-attention maps, from 0 (the text's) to 1 (uniform).
      guidance: scale; 1 is none.
    """

    prefix = "inversion."
    uniformity: Share = 0.0
    guidance: Scale = 1.0


@dataclass(frozen=True)
class MaskConfig(_Section):
    """Where the original is preserved, see `masks` and `edit`.

    Attributes:
      rule: the adaptive mask; "auto" finds its threshold for each image, "none" leaves it to the
        user's mask, if there is one.
      quantile: q at the last step, of the rules "released" and "algorithm1".
      t_mask: blended are the steps whose timestep is below it.
      radius: of the dilation, in latent pixels.
      threshold: where the pixels are preserved, a pixel counts as edited that was free in this share of
        the blended steps and channels.
      source_line: blend the replayed source branch too.
      user: a user's mask limits the adaptive one ("intersect") or stands in for it ("replace").
      user_from_start: a user's mask holds from the first step on, not only below t_mask.
    """

    prefix = "mask."
    rule: Literal["released", "algorithm1", "auto", "none"] = "released"
    quantile: Share = 0.5
    t_mask: Count = 200
    radius: Annotated[int, Between(0, 64)] = 1
    threshold: Share = 0.3
    source_line: bool = True
    user: Literal["intersect", "replace"] = "intersect"
    user_from_start: bool = False


@dataclass(frozen=True)
class RegionConfig(_Section):
    """Cross-attention that is uniform outside the region to be edited and the text's inside.

    Attributes:
      inversion: uniformity outside the user's mask in the source's inversion; 0: none.
      target: uniformity outside the user's mask, or else outside the one that is found as in the rule
        "auto", on the target branch; 0: none.
    """

    prefix = "region."
    inversion: Share = 0.0
    target: Share = 0.0


@dataclass(frozen=True)
class ControlConfig(_Section):
    """Which attention control acts on the target branch, and where.

    Attributes:
      kind: the control.
      step_start: its first denoising step.
      step_end: the step before which it stops; beyond the last step means to the end.
      block_start: its first transformer block, in execution order.
      block_end: the block before which it stops; beyond the last block means to the end.
    """

    prefix = "control."
    kind: Literal["none", "masactrl"] = "masactrl"
    step_start: Count = 4
    step_end: Count = 1000
    block_start: Count = 10
    block_end: Count = 1000


@dataclass(frozen=True)
class EditConfig(_Section):
    """Everything that decides an edit's result, besides the model, image and prompts.

    Attributes:
      steps: DDIM steps, down and up.
      spacing: of the timesteps, in place of the model's own; "" leaves it. "leading" may stop short of the
        noise, "trailing" and "linspace" begin at the last timestep.
      guidance: scale of both branches of the edit; 1 is none.
      source_context: what the source branch and its inversion are told: nothing, or the prompt.
      source: the source branch is denoised again ("replay") or is its stored inversion
        ("anchored").
      auxiliary: what is preserved comes from the uniform reconstruction from the noisiest level
        ("replay"), the one from the first blended level ("anchored"), or the original latent.
      auxiliary_uniformity: of the reconstruction's cross-attention maps, which are told nothing: 1 is the
        method's, 0 leaves them to the null prompt.
      preserve: what was not edited is kept in the latent only, or also bit-exact in the pixels.
      inversion: how the source is inverted.
      mask: where the original is preserved.
      region: where cross-attention is uniform.
      control: the attention control; a bare name in TOML and --set is its kind.
    """

    steps: Annotated[int, Between(1, 1000)] = 50
    guidance: Scale = 7.5
    source_context: Literal["null", "prompt"] = "null"
    source: Literal["replay", "anchored"] = "replay"
    auxiliary: Literal["replay", "anchored", "original"] = "anchored"
    auxiliary_uniformity: Share = 1.0
    preserve: Literal["latent", "pixels"] = "pixels"
    inversion: InversionConfig = field(default_factory=InversionConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    region: RegionConfig = field(default_factory=RegionConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    spacing: Literal["", "leading", "trailing", "linspace"] = ""

    @classmethod
    def load(cls, name_or_path: str | Path = "default", overrides: Sequence[str] = ()) -> Self:
        """Reads a preset by its name, or else a TOML file; then applies `key=value` overrides.

        Raises:
          InputError: naming the file, key or value, and what is valid.
        """
        try:
            config = cls().updated(tomllib.loads(_read(str(name_or_path))))
        except (ValueError, RecursionError) as error:  # InputError, and what is no TOML
            raise InputError(f"config {name_or_path}: {error}") from None
        return config.overridden(overrides)

    def overridden(self, overrides: Sequence[str]) -> Self:
        """This config with each `key=value` applied; the value is TOML, or else a bare word.

        Raises:
          InputError: naming the override, and what is valid.
        """
        config = self
        for override in overrides:
            try:
                config = config.updated(_table(override))
            except InputError as error:
                raise InputError(f"--set {override}: {error}") from None
        return config

    def updated(self, table: Mapping[str, Any]) -> Self:
        """This config with the values of a nested table, as TOML gives it, in place of its own.

        Raises:
          InputError: on an unknown key, a wrong type or a value out of range.
        """
        return _updated(self, table)

    def to_dict(self) -> dict[str, Any]:
        """As a nested table, without a `spacing` that is the model's; `EditConfig().updated` reads it back."""
        return {key: value for key, value in asdict(self).items() if key != "spacing" or value}

    def fingerprint(self) -> str:
        """A short hash of the content, the same on every machine."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def plan(self, timesteps: Sequence[int] | np.ndarray, *, user_mask: bool = False) -> Plan:
        """The evaluations that this edit takes.

        Args:
          timesteps: `Schedule.spaced(config.spacing).timesteps(config.steps)`.
          user_mask: whether the user gives a mask.
        """
        count = len(timesteps)
        never, always = range(0), range(count)
        late = range(sum(int(timestep) >= self.mask.t_mask for timestep in timesteps), count)
        replaced = user_mask and self.mask.user == "replace"
        user = always if self.mask.user_from_start else late
        control = range(self.control.step_start, self.control.step_end)
        parts = segments(
            count,
            adaptive=never if replaced or self.mask.rule == "none" else late,
            user=user if user_mask else never,
            controlled=never if self.control.kind == "none" else control,
            compared=always if self.region.target and not user_mask else never,
            anchored=self.source == "anchored",
        )
        told = self.source_context == "prompt"
        return Plan(
            segments=parts,
            auxiliary=self.auxiliary,
            shared_inversion=(
                self.inversion.uniformity == self.auxiliary_uniformity
                and not told
                and not self.region.inversion
            ),
            inversion_rows=2 if told and self.inversion.guidance != 1 else 1,
            source_rows=2 if told and self.guidance != 1 else 1,
            target_rows=2 if self.guidance != 1 else 1,
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
            f"neither a preset ({known}) nor a readable TOML file{_meant(name, presets)} ({error})"
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


def _updated(section: Any, table: Mapping[str, Any]) -> Any:
    """`section` with the values of `table`; its own checks run as it is made."""
    changes = {}
    for name, value in table.items():
        if name not in {item.name for item in fields(section)}:
            known = list(_keys(EditConfig()))
            raise InputError(
                f"unknown key {section.prefix}{name}{_meant(section.prefix + name, known)}; "
                f"the keys are {', '.join(known)}"
            )
        part = getattr(section, name)
        if isinstance(part, ControlConfig) and isinstance(value, str):
            value = {"kind": value}
        if isinstance(part, _Section) and isinstance(value, Mapping):
            value = _updated(part, value)
        changes[name] = value
    return replace(section, **changes)


def _keys(section: _Section) -> Iterator[str]:
    """The dotted keys of all values."""
    for item in fields(section):  # type: ignore[arg-type]
        value = getattr(section, item.name)
        if isinstance(value, _Section):
            yield from _keys(value)
        else:
            yield section.prefix + item.name


def _checked(key: str, value: Any, kind: Any) -> Any:
    """`value`, with an integer made a float where `kind` is one; an InputError if it is no `kind`."""
    kind, *bounds = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if value not in choices:
            meant = _meant(value, choices)
            raise InputError(
                f"{key} is {value!r}; the choices are {', '.join(filter(None, choices))}{meant}"
            )
        return value
    if kind is float and type(value) is int:
        value = float(value)
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if right and all(bound.least <= value <= bound.most for bound in bounds):
        return value
    wanted = NAMES.get(kind, "a table") + "".join(map(str, bounds))
    raise InputError(f"{key} is {value!r}; it must be {wanted}")


def _meant(word: object, known: Iterable[str]) -> str:
    """A suggestion, if `word` or its last part is close to one of `known`; else nothing."""
    by_end = {key.rpartition(".")[2]: key for key in known}
    candidates = {**by_end, **{key: key for key in by_end.values()}}
    for text in (str(word), str(word).rpartition(".")[2]):
        for match in difflib.get_close_matches(text, candidates, n=1):
            return f" (did you mean {candidates[match]}?)"
    return ""
