"""The methods that `uam eval scenes --methods` names, and their settings."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uam_jax.cli.options import Settings
from uam_jax.cli.subcommand import LocalName
from uam_jax.errors import InputError
from uam_jax.files import read_toml


def read_methods(names: str) -> dict[str, Settings]:
    """Reads and checks the settings of several methods.

    Args:
      names: presets and TOML files, separated by commas. A TOML file holds the settings of one method, or a table
        `[methods.NAME]` for each of several. In such a table `config` names a preset or a file (default: "default")
        and `set` is a list of overrides. A model's own form of a preset takes its place.

    Returns:
      The settings by the method's name, in the order given.

    Raises:
      InputError: a name, a file or a setting is at fault, or two methods have the same name.
    """
    found: dict[str, Settings] = {}

    def add(label: str, name: str, overrides: Sequence[str] = ()) -> None:
        if label in found:
            raise InputError(
                f"--methods {names}: two methods are called {label!r}; give each its own name"
            )
        found[label] = Settings(LocalName(name), tuple(overrides))
        found[label].check()

    for name in filter(None, (part.strip() for part in names.split(","))):
        study = _study(name)
        for label, table in study.items():
            if unknown := table.keys() - {"config", "set"}:
                raise InputError(
                    f"{name}: [methods.{label}] has {', '.join(unknown)}; its keys can be config and set"
                )
            config, chosen = table.get("config", "default"), table.get("set", [])
            if not isinstance(config, str) or not _are_texts(chosen):
                raise InputError(
                    f'{name}: [methods.{label}]: config must be a text and set a list of texts, such as ["steps=20"]'
                )
            add(label, config, chosen)
        if not study:
            add(Path(name).stem, name)
    if not found:
        raise InputError(
            "--methods names no method: give presets or TOML files, separated by commas"
        )
    for label in found:
        if not re.fullmatch(r"[\w.+=-][\w.+=, -]*", label):
            raise InputError(
                f"the method's name {label!r} has other characters: use letters, digits, spaces and . , + = - _"
            )
    return found


def _study(name: str) -> Mapping[str, Any]:
    """The tables `[methods.NAME]` of a TOML file by name; empty if there are none."""
    path = Path(name)
    if path.suffix != ".toml" or not path.is_file():
        return {}
    methods = read_toml(path).get("methods", {})
    if not isinstance(methods, dict) or not all(
        isinstance(each, dict) for each in methods.values()
    ):
        raise InputError(f"{name}: methods is not a table of tables: write [methods.NAME]")
    return methods


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
