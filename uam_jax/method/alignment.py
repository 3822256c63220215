"""Which tokens of a target prompt stand for which of its source prompt; on the host, over plain numbers.

Source: Hertz et al., Prompt-to-Prompt, ICLR 2023 (arXiv 2208.01626), §3; the alignment is that of Needleman and
Wunsch 1970.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from uam_jax.errors import InputError, quoted

_AROUND = ".,;:!?\"'()[]{}"
"""Punctuation that does not belong to the word beside it."""


class Tokenizer(Protocol):
    """The part of a checkpoint's tokenizer that tells tokens from words."""

    @property
    def start_id(self) -> int: ...
    @property
    def end_id(self) -> int: ...
    @property
    def length(self) -> int: ...

    def tokens(self, text: str) -> Sequence[tuple[int, int, int]]:
        """The id of each token, and the characters from and before which it lies, without start, end and padding."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A prompt's tokens and words.

    Attributes:
      text: of the prompt.
      ids: of the start token, the words' tokens and the end token.
      words: the text's words, without blanks between them and with the punctuation around them.
      places: the places in `ids` of each word's tokens; empty for a word that did not fit.
      cores: likewise, without the tokens of the punctuation around the word.
    """

    text: str
    ids: tuple[int, ...]
    words: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    cores: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, text: str) -> "Prompt":
        """Takes a prompt apart."""
        tokens = tokenizer.tokens(text)

        def within(first: int, last: int) -> tuple[int, ...]:
            return tuple(
                place
                for place, (_, begin, end) in enumerate(tokens, start=1)
                if begin < last and first < end
            )

        words, places, cores = [], [], []
        for found in re.finditer(r"\S+", text):
            core = found[0].strip(_AROUND) or found[0]
            begin = found.start() + found[0].index(core)
            words.append(found[0])
            places.append(within(found.start(), found.end()))
            cores.append(within(begin, begin + len(core)))
        ids = (tokenizer.start_id, *(token[0] for token in tokens), tokenizer.end_id)
        return cls(text, ids, tuple(words), tuple(places), tuple(cores))

    @property
    def plain(self) -> tuple[str, ...]:
        """Each of its words that has tokens, once, in small letters and without the punctuation around it."""
        pairs = zip(self.words, self.cores, strict=True)
        return tuple(dict.fromkeys(_plain(word) for word, places in pairs if places))

    def find(self, word: str) -> tuple[int, ...]:
        """The places of the tokens of a word, or of several that follow each other; of none if it is not there."""
        wanted, own = [_plain(part) for part in word.split()], [_plain(word) for word in self.words]
        found: list[int] = []
        for first in range(len(own) - len(wanted) + 1):
            if wanted and own[first : first + len(wanted)] == wanted:
                for places in self.cores[first : first + len(wanted)]:
                    found += places
        return tuple(dict.fromkeys(found))


def _plain(word: str) -> str:
    return (word.strip(_AROUND) or word).lower()


def places_of(word: str, *prompts: Prompt) -> list[tuple[int, ...]]:
    """The places of a word's tokens in each of the prompts.

    Raises:
      InputError: it is in none of them, or no token of it has room there; the message lists their words.
    """
    found = [prompt.find(word) for prompt in prompts]
    if not any(found):
        listed = "; ".join(", ".join(prompt.plain) or "none" for prompt in prompts)
        where = " or ".join(quoted(prompt.text) for prompt in prompts)
        raise InputError(
            f"the word {quoted(word)} is not in {where}, or beyond the tokens that fit: the words are {listed}"
        )
    return found


def align(source: Sequence[int], target: Sequence[int]) -> Int[np.ndarray, " t"]:
    """The place in `source` of every token of `target`, or -1 for a new one.

    The alignment has the most equal pairs in the order of both: a match counts 1, a pair of different tokens -1, a gap
    nothing. Of equally good ones, a token of the target is new rather than one of the source dropped, and
    either rather than a pair, seen from the end.
    """
    rows, columns = len(source) + 1, len(target) + 1
    score = np.zeros((rows, columns), int)
    for i in range(1, rows):
        for j in range(1, columns):
            pair = 1 if source[i - 1] == target[j - 1] else -1
            score[i, j] = max(score[i, j - 1], score[i - 1, j], score[i - 1, j - 1] + pair)
    aligned = np.full(len(target), -1)
    i, j = len(source), len(target)
    while i and j:
        if score[i, j] == score[i, j - 1]:
            j -= 1
        elif score[i, j] == score[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            aligned[j] = i
    return aligned


Mapper = tuple[Float[np.ndarray, "s s"], Float[np.ndarray, " s"]]
"""Shares of the source's tokens (rows) in each of the target's (columns), and 1 for each of the target's that has any.

A padding token of the target has the source's token at the same place.
"""


def refined(source: Prompt, target: Prompt, length: int) -> Mapper:
    """The mapper of `align`: new tokens of the target have none of the source's."""
    mapper, copied = _padded(target, length)
    for column, row in enumerate(align(source.ids, target.ids)):
        if row >= 0:
            mapper[row, column], copied[column] = 1, 1
    return mapper, copied


def replaced(source: Prompt, target: Prompt, length: int) -> Mapper:
    """The mapper from each word of the source to the target's at the same place.

    Where the two words have as many tokens, they stand for each other one by one; else each of the target's has the
    same share of all of the source's.

    Raises:
      InputError: the prompts have not as many words.
    """
    if len(source.words) != len(target.words):
        raise InputError(
            f"{quoted(source.text)} has {len(source.words)} words and {quoted(target.text)} {len(target.words)}: "
            "to replace word by word both must have as many; else set control.mapping=refine"
        )
    mapper, copied = _padded(target, length)
    copied[:] = 1
    mapper[0, 0] = mapper[len(source.ids) - 1, len(target.ids) - 1] = 1
    for own, others in zip(source.places, target.places, strict=True):
        if len(own) == len(others):
            mapper[own, others] = 1
        elif others:
            mapper[np.ix_(own, others)] = 1 / len(others)
    return mapper, copied


def _padded(target: Prompt, length: int) -> Mapper:
    padding = np.arange(length) >= len(target.ids)
    return np.diag(padding).astype(np.float32), padding.astype(np.float32)


def marked(places: Sequence[int], length: int) -> Float[np.ndarray, " s"]:
    """1 at the places, 0 elsewhere."""
    row: Any = np.zeros(length, np.float32)
    row[list(places)] = 1
    return row
