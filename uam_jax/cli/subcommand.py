"""Functions made into subcommands: their options, paths that are no URLs, errors as exit codes, the summary."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NewType, get_args, get_origin

import typer
from typer import Option

from uam_jax.cli.console import run
from uam_jax.errors import InputError
from uam_jax.files import at_home, local_path
from uam_jax.runtime import backend

LocalName = NewType("LocalName", str)
"""Text that may be a local path, or a name of something else, but no URL."""


Variant = Annotated[
    str | None, Option(help="Of the model's weight files, as fp16; default: the plain ones, or for "
                       "half precision those of fp16 first.")
]  # fmt: skip


@dataclass(frozen=True)
class Compute:
    """What to compute on and how; its fields are options of every subcommand that computes."""

    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], Option(help="Numbers inside the networks.")
    ] = "float32"
    variant: Variant = None
    device: Annotated[backend.Device | None, Option(help="Default: the best that JAX finds.")] = (
        None
    )
    precision: Annotated[
        backend.Precision | None,
        Option(help="Of matrix products; GPUs and TPUs round them by default."),
    ] = None
    cache_dir: Annotated[Path | None, Option(help="Folder for compiled programs.")] = None
    no_cache: Annotated[bool, Option("--no-cache", help="Keep no compiled programs.")] = False

    def configure(self, *, devices: int | None = None) -> None:
        """Sets up JAX accordingly."""
        cache = None if self.no_cache else self.cache_dir or backend.cache_folder()
        backend.configure(
            device=self.device, devices=devices, precision=self.precision, cache=cache
        )


def add_subcommand(
    function: Callable[..., dict[str, Any]], to: typer.Typer, alone: bool = False
) -> Callable[..., None]:
    """Makes a subcommand of `function(console, ...) -> summary`.

    A parameter `compute` stands for the options of `Compute`. A URL is refused where a `Path` or a `LocalName` is
    expected. Errors become exit codes, the summary goes to stdout, and `--json` and `--debug` are added.

    Args:
      function: what the subcommand does.
      to: the program or group that it belongs to.
      alone: it is what `to` does without a subcommand.
    """

    def ends(
        json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
        debug: Annotated[bool, Option("--debug", help="Show where an error came from.")] = False,
    ) -> dict[str, bool]:
        return {"as_json": json, "debug": debug}

    given = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    _, *own = inspect.signature(function).parameters.values()
    shared = inspect.signature(Compute).parameters
    computes = any(parameter.name == "compute" for parameter in own)
    options = [parameter for parameter in own if parameter.name != "compute"]
    options += [*shared.values()] if computes else []
    options += inspect.signature(ends).parameters.values()
    readers = {option.name: read for option in options if (read := _reader(option))}

    def subcommand(**values: Any) -> None:
        if values.pop("context").invoked_subcommand:
            return
        ending = ends(json=values.pop("json"), debug=values.pop("debug"))

        def work(console: Any) -> dict[str, Any]:
            known = {
                name: readers[name](value) if name in readers else value
                for name, value in values.items()
            }
            if computes:
                known["compute"] = Compute(**{name: known.pop(name) for name in shared})
            return function(console, **known)

        raise typer.Exit(run(work, **ending))

    subcommand.__name__, subcommand.__doc__ = function.__name__, function.__doc__
    subcommand.__signature__ = inspect.Signature(  # pyright: ignore[reportAttributeAccessIssue]
        [
            _as_text(option).replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for option in (given, *options)
        ]
    )
    return (to.callback(invoke_without_command=True) if alone else to.command())(subcommand)


def _kinds(option: inspect.Parameter) -> tuple[Any, ...]:
    """The type of an option's value and, if it is a list or may be None, the types in it."""
    annotated = option.annotation
    kind = get_args(annotated)[0] if get_origin(annotated) is Annotated else annotated
    return kind, *get_args(kind)


def _reader(option: inspect.Parameter) -> Callable[[Any], Any] | None:
    """A function that makes an option's text a path, or refuses it; None for options that are no paths."""
    kind, *inner = _kinds(option)
    wanted = next((each for each in (kind, *inner) if each in (Path, LocalName)), None)
    if wanted is None:
        return None
    _, details = get_args(option.annotation)
    is_option = isinstance(details, typer.models.OptionInfo)
    flag = f"--{option.name.replace('_', '-')}" if is_option else details.metavar or option.name

    def read(text: Any) -> Any:
        if text is None or isinstance(text, list | tuple):
            return text and [read(each) for each in text]
        if (path := local_path(str(text))) is None:
            raise InputError(
                f"{flag} {text}: a URL, where a local path is needed; inputs and results of `uam batch` alone may "
                "be URLs"
            )
        if not path:
            raise InputError(f"{flag} is empty: give a path")
        # Shells leave the ~ of --option=~/folder as it is.
        return wanted(at_home(path))

    return read


def _as_text(option: inspect.Parameter) -> inspect.Parameter:
    """The option with text for paths, since a `Path` makes `gs:/bucket` of gs://bucket."""
    if _reader(option) is None:
        return option
    kind, *inner = _kinds(option)
    _, details = get_args(option.annotation)
    details = copy.copy(details)
    details.metavar = details.metavar or "PATH"
    text: Any = list[str] if get_origin(kind) is list else str
    text = text | None if NoneType in inner else text
    default = str(option.default) if isinstance(option.default, Path) else option.default
    return option.replace(annotation=Annotated[text, details], default=default)
