"""Scenes-Bench: 700 edits of rendered scenes, with the exact answer and mask of each.

Ten kinds of edit, as many of each as PIE-Bench has of its types, in three fixed thirds: settings are chosen
on "tune" and reported on "report"; "reserve" is left for later comparisons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from uam_jax.errors import InputError
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
"""Grows whenever an item changes."""

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
"""Kinds of edit and how many items each has."""

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
"""The attributes that a kind changes, one of these at random; other kinds change what they are called by."""

_KEPT = ("shape", "colour", "surface", "wall")
"""The attributes by which a picture without a change is judged."""

_DRAW = 15_485_863
"""Keeps these scenes apart from those of the training and of the demo, which are drawn from small keys."""


@dataclass(frozen=True)
class Items:
    """Some items of the benchmark, column by column.

    Attributes:
      ids: "kind/number", fixed.
      kinds: of `KINDS`.
      thirds: that each belongs to.
      edited: the attributes that change.
      before: the scenes as they are.
      after: the scenes as they are to be.
      sources: prompts that describe `before`, or for "wrong source" something else.
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

    def take(self, rows: Sequence[int]) -> "Items":
        """The items of some rows, in that order."""

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
        """The first `count` items of some thirds (all: None), every kind by its share in any count.

        Raises:
          InputError: there are not so many, or no such third.
        """
        known = get_args(Third)
        if unknown := [third for third in thirds if third not in known]:
            raise InputError(
                f"{unknown[0]!r} is no part of the benchmark: choose {', '.join(known)}"
            )
        rows = [row for row, third in enumerate(self.thirds) if third in thirds]
        if count is not None and not 1 <= count <= len(rows):
            raise InputError(f"{count} items asked for: {' and '.join(thirds)} has {len(rows)}")
        sizes = {kind: sum(self.kinds[row] == kind for row in rows) for kind in KINDS}
        seen, places = dict.fromkeys(KINDS, 0), []
        for row in rows:
            kind = self.kinds[row]
            seen[kind] += 1
            places.append((seen[kind] - 0.5) / max(sizes[kind], 1))
        order = sorted(range(len(rows)), key=lambda i: (places[i], i))
        return self.take([rows[i] for i in order[:count]])


def draw_items(seed: int = 0) -> Items:
    """All 700 items; the benchmark is that of seed 0, others are further draws of the same kind."""
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
    told = {name: np.array(getattr(before, name)) for name in ATTRIBUTES}
    for row, attributes in enumerate(edited):
        for name in attributes:
            values = len(ATTRIBUTES[name])
            after[name][row] = (after[name][row] + rng.integers(1, values)) % values
    if kind == "remove":
        after["shape"][:] = EMPTY
    if kind == "wrong source":
        for name in ("shape", "colour"):
            values = len(ATTRIBUTES[name])
            told[name] = (told[name] + rng.integers(1, values, count)) % values
    answer = before.replace(**after)
    # Nothing is to change, so that only the phrase differs.
    phrases = rng if kind == "no change" else None
    return Items(
        ids=tuple(f"{kind.replace(' ', '-')}/{row:03d}" for row in range(count)),
        kinds=(kind,) * count,
        thirds=tuple(get_args(Third)[row % 3] for row in range(count)),
        edited=edited,
        before=before,
        after=answer,
        sources=tuple(captions(before.replace(**told))),
        targets=tuple(captions(answer, phrases, keep=1.0)),
    )


@dataclass(frozen=True)
class Truth:
    """What is known of some items, as arrays.

    Attributes:
      sources: (b, h, w, 3), the pictures to be edited.
      answers: (b, h, w, 3), the exact results.
      region: (b, h, w), where they differ.
      rivals: of every item and edited attribute, the right value's place and the pictures of all values.
    """

    sources: Float[np.ndarray, "b h w 3"]
    answers: Float[np.ndarray, "b h w 3"]
    region: Bool[np.ndarray, "b h w"]
    rivals: tuple[tuple[tuple[int, np.ndarray], ...], ...]


def render_truth(items: Items, size: int) -> Truth:
    """Renders what `judge` compares with."""
    wanted, places = [], []
    for row, attributes in enumerate(items.edited):
        scene, own = items.after[row : row + 1], []
        for name in attributes or _KEPT:
            options = flatten(alternatives(scene, name))
            value = int(np.asarray(getattr(scene, name))[0])
            if name == "shape":  # no object at all is an answer as well
                options = concatenate(options, _empty(items.before[row : row + 1]))
            if value == EMPTY:  # objects in their old colour
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
    """Whether each edit succeeded: of every edited attribute, the right value's rendering is nearest.

    Compared are the pixels that the edit should change; where it should change none, all pixels, and
    shape, colour, surface and wall must still be what they were.
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
