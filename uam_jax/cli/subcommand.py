"""Turns plain functions into subcommands: options, refusal of URLs, exit codes and the summary."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NewType, get_args, get_origin

import typer
from typer import Option

from uam_jax.cli.console import run
from uam_jax.errors import InputError
from uam_jax.files import at_home, local_path

LocalName = NewType("LocalName", str)
"""Text that is a local path or the name of something else, but never a URL."""


def add_subcommand(
    function: Callable[..., dict[str, Any]], to: typer.Typer, alone: bool = False
) -> None:
    """Adds the subcommand `function(console, ...) -> summary` to a program.

    Every parameter becomes an option. A parameter whose type is a dataclass stands for the options that are the
    dataclass's fields. The type `tuple[X, ...]` makes an option that can be repeated. A URL is refused where a `Path`
    or a `LocalName` is expected. Errors become exit codes, the summary is printed on stdout, and the options `--json`
    and `--debug` are added.

    Args:
      function: the work of the subcommand. Its name and docstring are the subcommand's.
      to: the program or group that the subcommand belongs to.
      alone: whether the function is the work of the group `to` itself when it is called without a subcommand.
    """

    def output_options(
        json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
        debug: Annotated[bool, Option("--debug", help="Show where an error came from.")] = False,
    ) -> dict[str, bool]:
        return {"as_json": json, "debug": debug}

    _, *parameters = inspect.signature(function).parameters.values()
    groups: dict[str, Any] = {
        each.name: each.annotation for each in parameters if is_dataclass(each.annotation)
    }
    fields = {name: inspect.signature(kind).parameters for name, kind in groups.items()}
    options: list[inspect.Parameter] = []
    for parameter in parameters:
        options += fields[parameter.name].values() if parameter.name in groups else [parameter]
    options += inspect.signature(output_options).parameters.values()
    readers = {option.name: _reader(option) for option in options}

    def subcommand(**values: Any) -> None:
        if values.pop("context").invoked_subcommand:
            return
        output = output_options(json=values.pop("json"), debug=values.pop("debug"))

        def work(console: Any) -> dict[str, Any]:
            known = {name: readers[name](value) for name, value in values.items()}
            for name, kind in groups.items():
                known[name] = kind(**{field: known.pop(field) for field in fields[name]})
            return function(console, **known)

        raise typer.Exit(run(work, **output))

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    subcommand.__name__, subcommand.__doc__ = function.__name__, function.__doc__
    subcommand.__signature__ = inspect.Signature(  # pyright: ignore[reportAttributeAccessIssue]
        [context, *map(_for_typer, options)]
    )
    (to.callback(invoke_without_command=True) if alone else to.command())(subcommand)


def _types(option: inspect.Parameter) -> tuple[Any, ...]:
    """The type of an option's value and, if the value is a tuple or may be None, the types inside it."""
    kind, *_ = get_args(option.annotation)
    return kind, *get_args(kind)


def _is_repeatable(option: inspect.Parameter) -> bool:
    return get_origin(_types(option)[0]) is tuple


def _reader(option: inspect.Parameter) -> Callable[[Any], Any]:
    """A function from Typer's value of an option to the value that the subcommand gets."""
    wanted = next((each for each in _types(option) if each in (Path, LocalName)), None)
    _, details = get_args(option.annotation)
    is_option = isinstance(details, typer.models.OptionInfo)
    flag = f"--{option.name.replace('_', '-')}" if is_option else details.metavar or option.name

    def read_one(value: Any) -> Any:
        if wanted is None or value is None:
            return value
        if (path := local_path(str(value))) is None:
            raise InputError(
                f"{flag} {value} is a URL, but a local path is needed here; only the inputs and results of "
                "`uam batch` can be URLs"
            )
        if not path:
            raise InputError(f"{flag} is empty: give a path")
        # In --option=~/folder the shell does not expand the ~.
        return wanted(at_home(path))

    if _is_repeatable(option):
        return lambda values: tuple(map(read_one, values or ()))
    return read_one


def _for_typer(option: inspect.Parameter) -> inspect.Parameter:
    """The option as Typer expects it: lists for tuples, and text for paths.

    Paths stay text because a `Path` would turn gs://bucket into gs:/bucket.
    """
    kind, *inner = _types(option)
    _, details = get_args(option.annotation)
    default: Any = option.default
    if any(each in (Path, LocalName) for each in (kind, *inner)):
        details = copy.copy(details)
        details.metavar = details.metavar or "PATH"
        text: Any = str | None if NoneType in inner else str
        kind, inner = tuple[text, ...] if _is_repeatable(option) else text, [text]
        default = str(default) if isinstance(default, Path) else default
    if get_origin(kind) is tuple:
        kind = list[inner[0]]
        default = list(default) or None if isinstance(default, tuple) else default
    return option.replace(
        kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, details], default=default
    )
