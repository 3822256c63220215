"""The methods that `uam eval scenes --methods` names, and their settings."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uam_jax.errors import InputError
from uam_jax.files import read_toml
from uam_jax.method.config import EditConfig

if TYPE_CHECKING:
    from uam_jax.editor import Editor


def read_methods(names: str, editor: "Editor") -> dict[str, EditConfig]:
    """Reads the settings of several methods.

    Args:
      names: presets and TOML files, separated by commas. A TOML file holds the settings of one method, or a table
        `[methods.NAME]` for each of several. In such a table `config` names a preset or a file (default: "default")
        and `set` is a list of overrides.
      editor: the model, whose own settings take the place of the preset "default".

    Returns:
      The settings by the method's name, in the order given.

    Raises:
      InputError: a name, a file or a setting is at fault, or two methods have the same name.
    """
    found: dict[str, EditConfig] = {}

    def add(label: str, method: EditConfig) -> None:
        if label in found:
            raise InputError(
                f"--methods {names}: two methods are called {label!r}; give each its own name"
            )
        found[label] = method

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
            add(label, _load(config, chosen, editor))
        if not study:
            add(Path(name).stem, _load(name, [], editor))
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


def _load(name: str, overrides: Sequence[str], editor: "Editor") -> EditConfig:
    if name == "default":  # a model's own settings take the place of the preset
        return editor.default_config.overridden(overrides)
    return EditConfig.load(name, overrides)
