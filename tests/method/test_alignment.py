"""Tokens and words of hand-made prompts, with a tokenizer that makes a token of three letters."""

import re
from typing import Any

import numpy as np
import pytest

from uam_jax.errors import InputError
from uam_jax.method.alignment import Prompt, align, marked, places_of, refined, replaced

START, END, LENGTH = 1, 2, 16


class Toy:
    """Every three letters of a word and every mark are a token, whose id is its own."""

    start_id, end_id, length = START, END, LENGTH

    def tokens(self, text: str) -> list[tuple[int, int, int]]:
        found = re.finditer(r"\w{1,3}|[^\w\s]", text)
        tokens = [(3 + sum(each[0].lower().encode()), *each.span()) for each in found]
        return tokens[: LENGTH - 2]


def prompt(text: str) -> Prompt:
    return Prompt.of(Toy(), text)


def pairs(mapper: Any) -> dict[int, dict[int, float]]:
    """The shares of each of the target's tokens that has any, up to the padding."""
    return {
        int(column): {int(row): float(mapper[row, column]) for row in np.flatnonzero(own)}
        for column, own in enumerate(mapper.T)
        if own.any()
    }


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("abc", "axbc", [0, -1, 1, 2]),
        ("abc", "ac", [0, 2]),
        ("abc", "axc", [0, -1, 2]),
        ("", "ab", [-1, -1]),
        # Both the first and the last b would do: the target's last one is new.
        ("ab", "abb", [0, 1, -1]),
        # A crossed pair is worth one match alone.
        ("xab", "abx", [1, 2, -1]),
    ],
)
def test_the_alignment_keeps_the_order(source: str, target: str, expected: list[int]) -> None:
    found = align([*map(ord, source)], [*map(ord, target)])
    assert found.tolist() == expected


def test_the_alignment_has_the_most_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        source, target = (rng.integers(0, 3, size).tolist() for size in rng.integers(1, 9, 2))
        found = align(source, target)
        kept = [(i, j) for j, i in enumerate(found) if i >= 0]
        assert all(source[i] == target[j] for i, j in kept)
        assert sorted(kept) == kept and len({i for i, _ in kept}) == len(kept)
        assert len(kept) == longest(source, target)


def longest(a: list[int], b: list[int]) -> int:
    """The length of the longest common subsequence."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest(a[:-1], b[:-1])
    return max(longest(a[:-1], b), longest(a, b[:-1]))


def test_new_words_have_no_map_of_the_source() -> None:
    source, target = prompt("a cat sits"), prompt("a big cat sits")
    mapper, copied = refined(source, target, LENGTH)
    # start a cat sit s end -> start a big cat sit s end
    own = {0: 0, 1: 1, 3: 2, 4: 3, 5: 4, 6: 5}
    assert pairs(mapper[:, :7]) == {column: {row: 1.0} for column, row in own.items()}
    assert copied.tolist() == [1, 1, 0, 1, 1, 1, 1] + [1] * (LENGTH - 7)
    np.testing.assert_array_equal(mapper[:, 7:], np.eye(LENGTH)[:, 7:])


def test_a_word_stands_for_the_word_at_its_place() -> None:
    # start a cat sit s end -> start a tur tle sit s end
    mapper, copied = replaced(prompt("a cat sits"), prompt("a turtle sits"), LENGTH)
    assert pairs(mapper[:, :7]) == {
        0: {0: 1}, 1: {1: 1}, 2: {2: 0.5}, 3: {2: 0.5}, 4: {3: 1}, 5: {4: 1}, 6: {5: 1}
    }  # fmt: skip
    assert copied.all()
    mapper, _ = replaced(prompt("a turtle sits"), prompt("a cat sits"), LENGTH)
    assert pairs(mapper[:, :6])[2] == {2: 1, 3: 1}
    with pytest.raises(InputError, match="has 3 words and 'a big cat sits' 4: .*mapping=refine"):
        replaced(prompt("a cat sits"), prompt("a big cat sits"), LENGTH)


def test_words_are_found_in_a_prompt() -> None:
    own = prompt("A cat, a (Black) cat's tail.")
    # start A cat , a ( Bla ck ) cat ' s tai l .
    assert own.find("cat") == (2,)
    assert own.find("CAT,") == (2,)
    assert own.find("black") == (6, 7)
    assert own.find("a") == (1, 4)
    assert own.find("black cat's") == (6, 7, 9, 10, 11)
    assert own.find("tail") == (12, 13)
    assert own.find("ca") == own.find("cat black") == own.find(" ") == ()
    np.testing.assert_array_equal(np.flatnonzero(marked(own.find("black"), LENGTH)), [6, 7])


def test_a_word_that_is_in_no_prompt_is_refused_with_the_words_there() -> None:
    source, target = prompt("a cat"), prompt("A dog, please")
    assert places_of("dog", source, target) == [(), (2,)]
    with pytest.raises(
        InputError, match=r"'bird' is not in 'a cat' or 'A dog, please'.* a, cat; a, dog, please"
    ):
        places_of("bird", source, target)
    long = prompt("a b c d e f g h i j k l m n o")
    assert long.find("n") == (14,)
    with pytest.raises(InputError, match="'o' is not in .* beyond the tokens that fit"):
        places_of("o", long)
