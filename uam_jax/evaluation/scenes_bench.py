"""Scenes-Bench: 700 edits of rendered scenes, with the exact answer and mask of each.

It has ten kinds of edit with the counts of PIE-Bench's types, in three fixed thirds: settings are chosen on
"tune", results are reported on "report", and "reserve" is kept for later comparisons.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from uam_jax.errors import InputError
from uam_jax.method.edits import Words
from uam_jax.scenes.render import edit_mask, render_in_chunks
from uam_jax.scenes.world import (
    ATTRIBUTES,
    EMPTY,
    Scene,
    alternatives,
    captions,
    concatenate,
    flatten,
    sample,
)

VERSION = 1
"""Increases whenever an item changes."""

KINDS: dict[str, int] = {
    "colour": 140,
    "shape": 80,
    "colour and shape": 80,
    "surface": 80,
    "wall": 40,
    "two attributes": 40,
    "remove": 40,
    "light": 40,
    "no change": 80,
    "wrong source": 80,
}
"""Kinds of edit and the number of items of each."""

Third = Literal["tune", "report", "reserve"]

_EDITED: dict[str, tuple[tuple[str, ...], ...]] = {
    "colour and shape": (("colour", "shape"),),
    "two attributes": (
        ("surface", "wall"),
        ("colour", "surface"),
        ("colour", "wall"),
        ("shape", "surface"),
        ("shape", "wall"),
    ),
    "remove": (("shape",),),
    "no change": ((),),
    "wrong source": (("colour",),),
}
"""Groups of attributes, one of which a kind changes at random; other kinds change the attribute of their name."""

_KEPT = ("shape", "colour", "surface", "wall")
"""The attributes by which an unchanged picture is judged."""

_DRAW = 15_485_863
"""Makes these scenes differ from those of the training and of the demo, which are drawn from small keys."""


@dataclass(frozen=True)
class Items:
    """Some items of the benchmark, column by column.

    Attributes:
      ids: "kind/number", fixed.
      kinds: of `KINDS`.
      thirds: to which they belong.
      edited: the attributes that change.
      before: the scenes of the source pictures.
      after: the scenes of the exact answers.
      sources: prompts that describe `before`, except for "wrong source".
      targets: prompts that describe `after`.
    """

    ids: tuple[str, ...]
    kinds: tuple[str, ...]
    thirds: tuple[Third, ...]
    edited: tuple[tuple[str, ...], ...]
    before: Scene
    after: Scene
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def words(self) -> tuple[Words, ...]:
        """The words to blend of each item's prompts: what it edits, as PIE-Bench names it by hand.

        That is the object's noun in each prompt, "table", "wall", or some of them; none where the light or nothing
        changes.
        """
        return tuple(map(_words_to_blend, self.edited, self.sources, self.targets))

    def take(self, rows: Sequence[int]) -> "Items":
        """The items of the given rows, in that order."""

        def pick(column: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(column[row] for row in rows)

        at = np.asarray(rows, np.int32)
        return Items(
            ids=pick(self.ids),
            kinds=pick(self.kinds),
            thirds=pick(self.thirds),
            edited=pick(self.edited),
            before=self.before[at],
            after=self.after[at],
            sources=pick(self.sources),
            targets=pick(self.targets),
        )

    def select(self, thirds: Sequence[str], count: int | None = None) -> "Items":
        """The first `count` items of some thirds, or all; every kind has its share in any count.

        Raises:
          InputError: the thirds have fewer items, or a third does not exist.
        """
        known = get_args(Third)
        if unknown := [third for third in thirds if third not in known]:
            raise InputError(
                f"the benchmark has no third {unknown[0]!r}: choose from {', '.join(known)}"
            )
        rows = [row for row, third in enumerate(self.thirds) if third in thirds]
        if count is not None and not 1 <= count <= len(rows):
            raise InputError(
                f"{count} items are requested, but {' and '.join(thirds)} has {len(rows)}"
            )
        sizes = {kind: sum(self.kinds[row] == kind for row in rows) for kind in KINDS}
        seen, places = dict.fromkeys(KINDS, 0), []
        for row in rows:
            kind = self.kinds[row]
            seen[kind] += 1
            places.append((seen[kind] - 0.5) / max(sizes[kind], 1))
        order = sorted(range(len(rows)), key=lambda i: (places[i], i))
        return self.take([rows[i] for i in order[:count]])


def draw_items(seed: int = 0) -> Items:
    """All 700 items. The benchmark uses seed 0; other seeds draw further items of the same kinds."""
    parts = [_draw(kind, number, seed) for number, kind in enumerate(KINDS)]
    return Items(
        ids=sum((part.ids for part in parts), ()),
        kinds=sum((part.kinds for part in parts), ()),
        thirds=sum((part.thirds for part in parts), ()),
        edited=sum((part.edited for part in parts), ()),
        before=concatenate(*(part.before for part in parts)),
        after=concatenate(*(part.after for part in parts)),
        sources=sum((part.sources for part in parts), ()),
        targets=sum((part.targets for part in parts), ()),
    )


def _draw(kind: str, number: int, seed: int) -> Items:
    count, rng = KINDS[kind], np.random.default_rng((_DRAW, seed, number))
    key = jax.random.fold_in(jax.random.key(_DRAW), seed)
    before = sample(jax.random.fold_in(key, number), count, empty=0.0)
    choices = _EDITED.get(kind, ((kind,),))
    edited = tuple(choices[i] for i in rng.integers(0, len(choices), count))
    after = {name: np.array(getattr(before, name)) for name in ATTRIBUTES}
    described = {name: np.array(getattr(before, name)) for name in ATTRIBUTES}
    for row, attributes in enumerate(edited):
        for name in attributes:
            values = len(ATTRIBUTES[name])
            after[name][row] = (after[name][row] + rng.integers(1, values)) % values
    if kind == "remove":
        after["shape"][:] = EMPTY
    if kind == "wrong source":
        for name in ("shape", "colour"):
            values = len(ATTRIBUTES[name])
            described[name] = (described[name] + rng.integers(1, values, count)) % values
    answer = before.replace(**after)
    # For "no change" only the phrase differs.
    phrases = rng if kind == "no change" else None
    return Items(
        ids=tuple(f"{kind.replace(' ', '-')}/{row:03d}" for row in range(count)),
        kinds=(kind,) * count,
        thirds=tuple(get_args(Third)[row % 3] for row in range(count)),
        edited=edited,
        before=before,
        after=answer,
        sources=tuple(captions(before.replace(**described))),
        targets=tuple(captions(answer, phrases, keep=1.0)),
    )


def _words_to_blend(edited: tuple[str, ...], source: str, target: str) -> Words:
    if "light" in edited:
        return Words()
    nouns = dict.fromkeys(("shape", "colour", "size", "place"), ATTRIBUTES["shape"])
    nouns |= {"surface": ("table",), "wall": ("wall",)}
    wanted = {noun for name in edited for noun in nouns[name]}
    own = re.findall(r"\w+", f"{source} {target}")
    return Words(tuple(dict.fromkeys(word for word in own if word in wanted)))


@dataclass(frozen=True)
class Truth:
    """Rendered pictures of some items.

    Attributes:
      sources: the pictures to be edited.
      answers: the exact results.
      region: the pixels in which they differ.
      rivals: for every item and edited attribute, the index of the right value and the pictures of all values.
    """

    sources: Float[np.ndarray, "b h w 3"]
    answers: Float[np.ndarray, "b h w 3"]
    region: Bool[np.ndarray, "b h w"]
    rivals: tuple[tuple[tuple[int, np.ndarray], ...], ...]


def render_truth(items: Items, size: int) -> Truth:
    """Renders sources, answers, and the pictures that `judge` compares with."""
    wanted, places = [], []
    for row, attributes in enumerate(items.edited):
        scene, own = items.after[row : row + 1], []
        for name in attributes or _KEPT:
            options = flatten(alternatives(scene, name))
            value = int(np.asarray(getattr(scene, name))[0])
            if name == "shape":  # An empty table is a possible answer as well.
                options = concatenate(options, _empty(items.before[row : row + 1]))
            if value == EMPTY:  # The alternatives are objects in the old colour.
                options = concatenate(
                    flatten(alternatives(items.before[row : row + 1], name)), scene
                )
            first = sum(map(len, wanted))
            wanted.append(options)
            own.append((value, first, len(options)))
        places.append(own)
    pictures = render_in_chunks(concatenate(*wanted), size=size)
    return Truth(
        sources=render_in_chunks(items.before, size=size),
        answers=render_in_chunks(items.after, size=size),
        region=np.asarray(edit_mask(items.before, items.after, size=size)),
        rivals=tuple(
            tuple((value, pictures[first : first + count]) for value, first, count in own)
            for own in places
        ),
    )


def judge(pictures: Float[np.ndarray, "b h w 3"], truth: Truth) -> Bool[np.ndarray, "b"]:
    """Whether each edit succeeded: for every edited attribute, the rendering of the right value is the nearest.

    The comparison uses the pixels that the edit should change. If it should change none, the comparison uses all
    pixels, and shape, colour, surface and wall must be as before.
    """
    right = []
    for picture, region, rivals in zip(pictures, truth.region, truth.rivals, strict=True):
        where = region if region.any() else np.ones_like(region)
        right.append(
            all(
                int(np.argmin(np.square(options - picture)[:, where].mean(axis=(1, 2)))) == value
                for value, options in rivals
            )
        )
    return np.asarray(right)


def _empty(scene: Scene) -> Scene:
    return scene.replace(shape=jnp.int32(EMPTY))
