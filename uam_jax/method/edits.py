"""An edit as a value, without JAX, so that a manifest is checked before anything is loaded."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from uam_jax.errors import InputError, quoted


@dataclass(frozen=True)
class Words:
    """Words of an edit's prompts, for controls that act on single words.

    A word is found without regard to capitals and to the punctuation around it; several words with blanks between
    them are found where they follow each other.

    Attributes:
      blend: words of the source, of the target or of both; where their attention is, the picture may change.
      subtract: likewise; where their attention is, it may not.
      weights: factors of the attention to words of the target.
      windows: for words of the target, the share of the denoising steps at which their attention begins to be taken
        from the source, and the one at which that ends.
    """

    __no_type_check__ = True  # by annotation, in tests: `of` checks it first and says more

    blend: tuple[str, ...] = ()
    subtract: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.blend, self.subtract, *self.weights.items(), *self.windows.items()))

    def __bool__(self) -> bool:
        return any((self.blend, self.subtract, self.weights, self.windows))

    @classmethod
    def of(cls, given: Any) -> "Words":
        """Words as a value, as a list (of `blend`) or as a table with the names of the attributes.

        Raises:
          InputError: they are none of these, or something in them is of another type or out of range.
        """
        if isinstance(given, list | tuple):
            given = {"blend": given}
        table = asdict(given) if isinstance(given, Words) else given
        known = ("blend", "subtract", "weights", "windows")
        if not isinstance(table, Mapping) or not table.keys() <= {*known}:
            raise InputError(
                f"words is {quoted(given)}: give a list of words, or a table with {', '.join(known)}"
            )
        blend, subtract = (_listed(name, table.get(name) or ()) for name in known[:2])
        weights, windows = (_table(name, table.get(name) or {}) for name in known[2:])
        return cls(
            blend,
            subtract,
            {word: _number(f"the weight of {quoted(word)}", w) for word, w in weights.items()},
            {word: _window(word, ends) for word, ends in windows.items()},
        )

    def to_json(self) -> Any:
        """As `of` reads it, without what is empty: None, a list of words to blend, or a table."""
        table = {name: value for name, value in asdict(self).items() if value}
        lists = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in table.items()
        }
        return lists.get("blend") if lists.keys() <= {"blend"} else lists


def _listed(name: str, given: Any) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not all(map(_is_word, given)):
        raise InputError(f"words.{name} is {quoted(given)}: give a list of words")
    return tuple(given)


def _table(name: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not all(map(_is_word, given)):
        raise InputError(f"words.{name} is {quoted(given)}: give a table by word")
    return given


def _is_word(given: Any) -> bool:
    return isinstance(given, str) and bool(given.strip())


def _number(name: str, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise InputError(f"{name} is {quoted(given)}: it must be a finite number")
    return float(given)


def _window(word: str, given: Any) -> tuple[float, float]:
    name = f"the window of {quoted(word)}"
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise InputError(f"{name} is {quoted(given)}: give two shares of the steps, begin and end")
    begin, end = (_number(name, share) for share in given)
    if not 0 <= begin <= end <= 1:
        raise InputError(f"{name} is {quoted(given)}: it must begin and end from 0 to 1, in order")
    return begin, end


@dataclass(frozen=True)
class Edit:
    """One edit of a picture; a text stands for an edit with that target.

    Attributes:
      target: describes the edited picture.
      source: describes the picture as it is; None: see the argument `source` of `Editor.edit`.
      words: of the prompts, for controls that act on single words.
      negative: in place of the null prompt in the unguided half of the target branch.
    """

    __no_type_check__ = True  # by annotation, in tests: `Editor` checks it first and says more

    target: str
    source: str | None = None
    words: Words = field(default_factory=Words)
    negative: str = ""
