"""Options that several subcommands share."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from uam_jax.cli.console import Console
from uam_jax.cli.subcommand import LocalName
from uam_jax.errors import InputError
from uam_jax.runtime import backend

if TYPE_CHECKING:
    from uam_jax.editor import Editor
    from uam_jax.method.config import EditConfig
    from uam_jax.method.edits import Words

SCENES = LocalName("scenes")
"""The smaller embedded model, which is the default of every `--model`."""

Images = Annotated[
    tuple[Path, ...], Argument(metavar="IMAGE", help="Pictures in any common format.")
]
ResultPlace = Annotated[
    LocalName, Option(help="The result's file; for several results, their folder.")
]
Model = Annotated[
    LocalName,
    Option(
        metavar="NAME|PATH|ID",
        help="`scenes` or `scenes-128` (embedded), a folder in the diffusers layout or written by `uam convert`, "
        "or a hub id.",
    ),
]
Variant = Annotated[
    str | None,
    Option(
        help="Variant of the model's weight files, such as fp16. Default: the plain files; for half precision, the "
        "fp16 files if there are any."
    ),
]
Size = Annotated[
    int | None,
    Option(min=1, help="Work at about N x N pixels instead of the model's own size."),
]
Focused = Annotated[
    Literal["auto", "on", "off"],
    Option(
        help="Edit a crop around the mask, at the model's full size. `auto` does so where the mask is small."
    ),
]
Overwrite = Annotated[bool, Option("--overwrite", help="Allow a result to replace an input.")]
Precision = Annotated[
    backend.Precision | None,
    Option(help="Precision of matrix products. By default GPUs and TPUs reduce it."),
]


@dataclass(frozen=True)
class Settings:
    """Options that choose the settings of an edit."""

    config: Annotated[
        LocalName | None,
        Option(
            metavar="NAME|FILE",
            help="`default`, `captioned`, `fast`, `released`, another preset or a TOML file.",
        ),
    ] = None
    overrides: Annotated[
        tuple[str, ...],
        Option("--set", metavar="KEY=VALUE", help="Change one setting. Can be repeated."),
    ] = ()

    def check(self) -> "EditConfig":
        """The settings as far as they are known before a model is loaded.

        Raises:
          InputError: the configuration or an override is at fault.
        """
        return self._without_model

    @functools.cached_property
    def _without_model(self) -> "EditConfig":
        from uam_jax.method.config import EditConfig

        return EditConfig.load(self.config or "default", self.overrides)

    def of(self, editor: "Editor") -> "EditConfig":
        """Reads the settings; a model's own form of a preset takes its place.

        Raises:
          InputError: the configuration or an override is at fault.
        """
        return editor.preset(self.config or "default").overridden(self.overrides)


@dataclass(frozen=True)
class WordOptions:
    """Options for controls that act on single words of the prompts."""

    blend: Annotated[
        str | None,
        Option(
            metavar="WORD,WORD",
            help="Words of the prompts to whose place the edit is limited, for controls that act on words.",
        ),
    ] = None
    subtract: Annotated[
        str | None, Option(metavar="WORD,WORD", help="Words whose place it must leave as it is.")
    ] = None
    weight: Annotated[
        tuple[str, ...],
        Option(
            metavar="WORD=NUMBER",
            help="Factor of the attention to a word of the target. Can be repeated.",
        ),
    ] = ()
    window: Annotated[
        tuple[str, ...],
        Option(
            metavar="WORD=FROM:TO",
            help="Share of the steps from and to which a word of the target takes its attention from the source. "
            "Can be repeated.",
        ),
    ] = ()

    @functools.cached_property
    def words(self) -> "Words":
        """The words as a value.

        Raises:
          InputError: an option can't be read, or gives a word twice.
        """
        from uam_jax.method.edits import Words

        def listed(text: str | None) -> list[str]:
            return [word.strip() for word in (text or "").split(",") if word.strip()]

        windows = {
            word: [_number("--window", word, end) for end in ends.split(":")]
            for word, ends in _pairs("--window", self.window, "WORD=FROM:TO").items()
        }
        weights = {
            word: _number("--weight", word, factor)
            for word, factor in _pairs("--weight", self.weight, "WORD=NUMBER").items()
        }
        lists = {"blend": listed(self.blend), "subtract": listed(self.subtract)}
        return Words.of({**lists, "weights": weights, "windows": windows})


def _pairs(option: str, given: Iterable[str], form: str) -> dict[str, str]:
    """Each word and its value."""
    found: dict[str, str] = {}
    for text in given:
        word, equals, value = (part.strip() for part in text.rpartition("="))
        if not (word and equals and value):
            raise InputError(f"{option} {text}: write it as {form}")
        if word in found:
            raise InputError(f"{option} {text}: the word has a value already")
        found[word] = value
    return found


def _number(option: str, word: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option} {word}={text}: {text} is no number") from None


@dataclass(frozen=True)
class Compute:
    """Options that choose the device and the precision; every subcommand that computes has them."""

    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(
            help="Number format inside the networks. `auto`: bfloat16 on TPUs and on GPUs that multiply it, float16 on "
            "older GPUs, float32 on CPUs; a job keeps the one that it began with."
        ),
    ] = "auto"
    variant: Variant = None
    device: Annotated[
        backend.Device | None, Option(help="Kind of device. Default: the best that JAX finds.")
    ] = None
    precision: Precision = None
    cache_dir: Annotated[Path | None, Option(help="Folder for compiled programs.")] = None
    no_cache: Annotated[bool, Option("--no-cache", help="Do not keep compiled programs.")] = False

    def configure(self, *, devices: int | None = None) -> None:
        """Sets up JAX as these options say, with at least `devices` devices on a CPU.

        Raises:
          InputError: JAX has no such device.
        """
        cache = None if self.no_cache else self.cache_dir or backend.cache_folder()
        backend.configure(
            device=self.device, devices=devices, precision=self.precision, cache=cache
        )

    def load_editor(self, model: str, console: Console) -> "Editor":
        """Sets up JAX and loads a model.

        Raises:
          InputError: JAX has no such device, or there is no such model.
        """
        console.stage(f"loading {model}")
        self.configure()
        from uam_jax.editor import Editor

        return Editor.load(model, dtype=self.dtype, variant=self.variant)

    def random_editor(self, shape: str, console: Console) -> "Editor":
        """Sets up JAX and makes a model with random weights.

        Raises:
          InputError: JAX has no such device, or there is no such shape.
        """
        console.stage(f"making random weights of the shape {shape}")
        self.configure()
        from uam_jax.checkpoints.random import random_checkpoint
        from uam_jax.editor import Editor

        return Editor(random_checkpoint(shape, dtype=self.dtype))


def check_values(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises an `InputError` for the first value that is not known."""
    for value in given:
        if value not in known:
            raise InputError(f"{option} {value}: choose {', '.join(known)}")


def check_one_model(model: str | None, variant: str | None, shape: str | None) -> None:
    """Raises an `InputError` where a shape of random weights excludes another option."""
    if model and shape:
        raise InputError("--model and --shape both choose the model: give one of them")
    if variant and shape:
        raise InputError(
            "--variant chooses among a model's files, and --shape has none: give one of them"
        )
