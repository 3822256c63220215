"""Items to fixed batches: sizes to buckets, buckets to groups, groups read ahead and padded.

A *group* is `micro` pictures of one bucket, in the manifest's order: what one device computes at a time. It
depends on the manifest alone, never on what is done already or on how many devices or processes there are,
so that an item always has the same neighbours and its result the same bits.
"""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Float

from uam_jax.errors import InputError
from uam_jax.files import is_url
from uam_jax.io.images import picture_size, quietly, resize, working_size
from uam_jax.io.storage import open_binary, read_bytes
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.originals import COMPOSING, DECODING, Original, decode_files, read_files
from uam_jax.runtime.host_memory import Budget

_READERS = 16
"""Threads that read picture files."""

_AHEAD = 2
"""Batches that are read while one is computed."""

_KEPT_SHARE = 16
"""A batch keeps its files' content if that is no more than this part of the budget; four batches are alive."""

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, order=True)
class Bucket:
    """What pictures must have in common to share a batch.

    Attributes:
      size: at which they are worked on.
      masked: they come with the user's mask.
      targets: prompts per picture.
      settings: "key=value" of their own.
    """

    size: Size
    masked: bool = False
    targets: int = 1
    settings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.size[1]}x{self.size[0]}" + " with masks" * self.masked


@dataclass(frozen=True)
class Group:
    """Up to `micro` items of a bucket."""

    bucket: Bucket
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Batch:
    """Pictures in memory, `devices * micro` slots; slots without an item, or that can't be read, are padding.

    Attributes:
      bucket: of all.
      micro: slots per device.
      items: None in padding.
      originals: at their own sizes, still encoded; None in padding.
      reasons: why a picture can't be used.
      pixels: at the bucket's size, in [-1, 1].
      weights: the user's masks at the bucket's size, if the bucket has any.
    """

    bucket: Bucket
    micro: int
    items: tuple[Item | None, ...]
    originals: tuple[Original | None, ...]
    reasons: tuple[str | None, ...]
    pixels: Float[np.ndarray, "b h w 3"]
    weights: Float[np.ndarray, "b h w"] | None

    @property
    def valid(self) -> list[int]:
        """The slots that hold a picture."""
        return [slot for slot, original in enumerate(self.originals) if original is not None]

    def halves(self) -> "tuple[Batch, Batch]":
        """The same slots in two batches of half as many per device; of an odd number, the second has more."""
        low = self.micro // 2
        middle = low * (len(self.items) // self.micro)

        def part(slots: slice, micro: int) -> Batch:
            return replace(
                self,
                micro=micro,
                items=self.items[slots],
                originals=self.originals[slots],
                reasons=self.reasons[slots],
                pixels=self.pixels[slots],
                weights=None if self.weights is None else self.weights[slots],
            )

        return part(slice(None, middle), low), part(slice(middle, None), self.micro - low)

    def singles(self) -> "list[Batch]":
        """The batch once for every item, which keeps its slot; the other slots are padding."""

        def alone(slot: int) -> Batch:
            def only(values: tuple[Any, ...]) -> tuple[Any, ...]:
                return tuple(value if at == slot else None for at, value in enumerate(values))

            return replace(
                self,
                items=only(self.items),
                originals=only(self.originals),
                reasons=only(self.reasons),
            )

        return [alone(slot) for slot, item in enumerate(self.items) if item is not None]


def measure(
    items: Sequence[Item], seen: Callable[[], None] = lambda: None
) -> list[Size | InputError]:
    """Every picture's size, read from the head of its file, or why it can't be told at the third try.

    Args:
      items: in any order.
      seen: called after each.
    """

    def size(item: Item) -> Size | InputError:
        found = head(item, open_binary)
        # Some servers send a file from its beginning to its end only.
        for opened in (open_binary, lambda url: io.BytesIO(read_bytes(url))):
            if is_url(item.image) and isinstance(found, InputError):
                found = head(item, opened)
        seen()
        return found

    def head(item: Item, opened: Callable[[str], Any]) -> Size | InputError:
        try:
            with opened(item.image) as file:
                return picture_size(item.image, file)
        except FileNotFoundError:
            return InputError(f"{item.image}: no such file; check the path")
        except InputError as error:
            return error
        except Exception as error:  # a file system's own
            return InputError(f"{item.image}: can't be read ({type(error).__name__}: {error})")

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(size, items))


def working_sizes(
    items: Sequence[Item], sizes: Sequence[Size | InputError], *, side: int, multiple: int
) -> list[Size | InputError]:
    """The size at which each picture is worked on, or why there is none; the arguments are those of `group`."""

    def at(item: Item, size: Size | InputError) -> Size | InputError:
        try:
            if isinstance(size, InputError):
                return size
            return working_size(size, side, multiple, item.image)
        except InputError as error:
            return error

    return [at(item, size) for item, size in zip(items, sizes, strict=True)]


def group(
    items: Sequence[Item],
    sizes: Sequence[Size | InputError],
    *,
    side: int,
    multiple: int,
    micro: int,
) -> list[Group]:
    """Items in groups of `micro`, bucket by bucket; those without a size form groups of their own.

    Args:
      items: in the manifest's order.
      sizes: of each.
      side: pictures are worked on at about side² pixels, in their own aspect ratio.
      multiple: to which both sides are rounded; a larger one makes fewer buckets.
      micro: pictures per group.
    """
    found: dict[Bucket, list[Item]] = {}
    for item, size in zip(
        items, working_sizes(items, sizes, side=side, multiple=multiple), strict=True
    ):
        at = (0, 0) if isinstance(size, InputError) else size
        bucket = Bucket(at, item.mask is not None, len(item.targets), item.settings)
        found.setdefault(bucket, []).append(item)
    return [
        Group(bucket, tuple(members[first : first + micro]))
        for bucket, members in sorted(found.items())
        for first in range(0, len(members), micro)
    ]


def batches(
    groups: Sequence[Group],
    *,
    devices: int,
    side: int,
    multiple: int,
    micro: int,
    budget: Budget | None = None,
) -> Iterator[Batch]:
    """Groups, in order, `devices` of a bucket at a time, read ahead in threads.

    What can't be read, or has another shape than when it was measured, is padding with its reason; it fails
    nothing else. `budget` bounds the memory in which pictures are decoded, and changes no batch; the other
    arguments are those of `group`.
    """
    budget = budget or Budget()
    size_of = partial(working_size, side=side, multiple=multiple)
    ahead: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(
        1
    )  # a batch after another; the pictures of each are read side by side
    try:
        for bucket, members in _together(groups, devices):
            ahead.append(pool.submit(_read, bucket, members, devices, size_of, micro, budget))
            if len(ahead) > _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _together(groups: Sequence[Group], devices: int) -> Iterator[tuple[Bucket, list[Group]]]:
    """Up to `devices` groups of a bucket at a time."""
    for bucket, members in groupby(groups, key=lambda group: group.bucket):
        run = list(members)
        for first in range(0, len(run), devices):
            yield bucket, run[first : first + devices]


def _read(
    bucket: Bucket,
    groups: Iterable[Group],
    devices: int,
    size_of: Callable[..., Size],
    micro: int,
    budget: Budget,
) -> Batch:
    items: list[Item | None] = [None] * (devices * micro)
    for number, members in enumerate(groups):
        items[number * micro : number * micro + len(members.items)] = members.items
    height, width = bucket.size if all(bucket.size) else (1, 1)
    pixels = np.zeros((len(items), height, width, 3), np.float32)
    weights = np.ones((len(items), height, width), np.float32) if bucket.masked else None
    originals: list[Original | None] = [None] * len(items)
    reasons: list[str | None] = [None] * len(items)
    may_keep = budget.total // _KEPT_SHARE // len(items)

    def fill(slot: int) -> None:
        item = items[slot]
        if item is None:
            return
        try:
            content = read_files(item)
            with quietly():
                size = picture_size(item.image, io.BytesIO(content[0]))
            at = size_of(size, path=item.image)
            if not all(bucket.size):
                raise InputError(
                    f"{item.image}: could not be read when the job began; run it with --retry-failed"
                )
            if at != bucket.size:
                raise InputError(
                    f"{item.image}: its shape has changed since the job began; edit it in a new job"
                )
            original = Original.of(item, size, content, may_keep=may_keep)
            original.refuse_too_large()
            with budget.hold(size[0] * size[1] * DECODING):
                picture, mask = decode_files(item, content)
                pixels[slot] = resize(picture.pixels, bucket.size)
                if weights is not None and mask is not None:
                    weights[slot] = resize(mask, bucket.size, linear=True)
            originals[slot] = original
        except InputError as error:
            reasons[slot] = str(error)
        except Exception as error:  # whatever it is, the other pictures have no part in it
            reasons[slot] = f"{item.image}: can't be used ({type(error).__name__}: {error})"

    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(fill, range(len(items))))
    return Batch(bucket, micro, tuple(items), tuple(originals), tuple(reasons), pixels, weights)


def host_bytes(
    groups: Iterable[Group], sizes: Mapping[str, Size], devices: int, budget: int
) -> int:
    """About the most memory that a job's pictures take at a time, beside the model.

    Args:
      groups: of the job.
      sizes: of its pictures by item.
      devices: that each take a group.
      budget: the bound.
    """
    most = 0
    for bucket, members in _together(list(groups), devices):
        # Read ahead, computed and composed: pictures and masks at the model's size, and files.
        slots = sum(len(each.items) for each in members)
        batch = slots * bucket.size[0] * bucket.size[1] * 16 + budget // _KEPT_SHARE
        pixels = [
            sizes[item.id][0] * sizes[item.id][1]
            for each in members
            for item in each.items
            if item.id in sizes
        ]
        at_once = max(pixels, default=0) * COMPOSING + sum(pixels) * DECODING
        alone = max(pixels, default=0) * COMPOSING
        most = max(most, (_AHEAD + 2) * batch + max(min(at_once, budget), alone))
    return most


def count_by(groups: Iterable[Group]) -> Mapping[Bucket, int]:
    """How many items each bucket has."""
    counts: dict[Bucket, int] = {}
    for each in groups:
        counts[each.bucket] = counts.get(each.bucket, 0) + len(each.items)
    return counts
