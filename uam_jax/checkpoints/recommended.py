"""Reads and checks the settings that a model recommends in the file `uam.toml` beside its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uam_jax.checkpoints.load import SETTINGS, Checkpoint
from uam_jax.errors import InputError
from uam_jax.method.confidence import Calibration
from uam_jax.method.config import EditConfig

PRESETS = ("default", "fast")
"""Those of which a model may have its own form."""


@dataclass(frozen=True)
class Recommended:
    """A model's own settings.

    Attributes:
      configs: the presets `default` and `fast`, each overridden by the table of its name.
      calibration: the calibration of the confidence, from the table `[confidence]`.
      words: the words that the model was trained on; None if the file does not list them.
    """

    configs: Mapping[str, EditConfig]
    calibration: Calibration
    words: tuple[str, ...] | None


def recommended_by(checkpoint: Checkpoint) -> Recommended:
    """Reads the settings of a model; defaults where it has none.

    Raises:
      InputError: a setting is at fault; the message names the file and the key.
    """
    try:
        return _read(checkpoint.settings)
    except InputError as error:
        raise InputError(f"{checkpoint.path / SETTINGS}: {error}") from None


def _read(settings: Mapping[str, Any]) -> Recommended:
    known = {**dict.fromkeys(PRESETS, Mapping), "confidence": Mapping, "words": list}
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"unknown key {name}; the keys are {', '.join(known)}")
        if not isinstance(value, known[name]):
            kind = "a list of words" if name == "words" else "a table"
            raise InputError(f"{name} is {value!r}; it must be {kind}")
    words = settings.get("words")
    if words is not None and not all(isinstance(word, str) for word in words):
        raise InputError("words must be a list of words")
    configs = {}
    for name in PRESETS:
        try:
            configs[name] = EditConfig.load(name).updated(settings.get(name, {}), imports=False)
        except InputError as error:
            raise InputError(f"[{name}] {error}") from None
    return Recommended(
        configs=configs,
        calibration=Calibration.from_settings(settings.get("confidence", {})),
        words=None if words is None else tuple(words),
    )
