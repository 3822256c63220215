"""Fixed batches of a job's items: sizes make buckets, buckets are cut into groups, groups are read ahead and padded.

A *group* is `batch_per_device` pictures of one bucket, in the manifest's order: a device computes one at a time. It
depends on the manifest alone, never on the results that are there already or on the number of devices or processes,
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
from uam_jax.io.focus import Crop, Focus
from uam_jax.io.images import picture_size, quietly, resize, working_size
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.originals import (
    COMPOSING,
    DECODING,
    Original,
    decode_files,
    read_files,
    refuse_too_large,
)
from uam_jax.jobs.sizes import READERS, Size, working_sizes
from uam_jax.runtime.host_memory import Budget

_AHEAD = 2
"""Batches that are read while another is computed."""

_KEPT_SHARE = 16
"""A batch keeps its files' content if that is at most this part of the budget; four batches are in memory."""


@dataclass(frozen=True, order=True)
class Bucket:
    """The properties that pictures must have in common to share a batch.

    Attributes:
      size: at which they are worked on.
      masked: whether they come with the user's masks.
      targets: prompts per picture.
      settings: "key=value" of their own.
      prompted: whether they come with source prompts.
    """

    size: Size
    masked: bool = False
    targets: int = 1
    settings: tuple[str, ...] = ()
    prompted: bool = False

    def __str__(self) -> str:
        return f"{self.size[1]}x{self.size[0]}" + " with masks" * self.masked


@dataclass(frozen=True)
class Group:
    """Up to `batch_per_device` items of a bucket."""

    bucket: Bucket
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Batch:
    """Pictures in memory, in `devices * batch_per_device` slots; a slot without a readable picture is padding.

    Attributes:
      bucket: of all.
      batch_per_device: slots per device.
      items: by slot; None where there is none.
      originals: the pictures at their own sizes, still encoded; None in padding.
      reasons: why a picture can't be used.
      pixels: of the originals' crops, at the bucket's size, in [-1, 1].
      user_masks: likewise, at the bucket's size; None where the bucket has none.
    """

    bucket: Bucket
    batch_per_device: int
    items: tuple[Item | None, ...]
    originals: tuple[Original | None, ...]
    reasons: tuple[str | None, ...]
    pixels: Float[np.ndarray, "b h w 3"]
    user_masks: Float[np.ndarray, "b h w"] | None

    @property
    def valid(self) -> list[int]:
        """The slots that hold a picture."""
        return [slot for slot, original in enumerate(self.originals) if original is not None]

    def halves(self) -> "tuple[Batch, Batch]":
        """The slots in two batches of half as many per device; of an odd number, the second has one more."""
        low = self.batch_per_device // 2
        middle = low * (len(self.items) // self.batch_per_device)

        def part(slots: slice, batch_per_device: int) -> Batch:
            return replace(
                self,
                batch_per_device=batch_per_device,
                items=self.items[slots],
                originals=self.originals[slots],
                reasons=self.reasons[slots],
                pixels=self.pixels[slots],
                user_masks=None if self.user_masks is None else self.user_masks[slots],
            )

        first, second = slice(None, middle), slice(middle, None)
        return part(first, low), part(second, self.batch_per_device - low)

    def singles(self) -> "list[Batch]":
        """A batch for every item, in which it keeps its slot and the other slots are padding."""

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


def group(
    items: Sequence[Item],
    sizes: Sequence[Size | InputError],
    *,
    side: int,
    multiple: int,
    batch_per_device: int,
) -> list[Group]:
    """Items in groups of `batch_per_device`, bucket by bucket; items without a size form groups of their own.

    Args:
      items: in the manifest's order.
      sizes: of each.
      side: pictures are worked on at about side² pixels, in their own aspect ratio.
      multiple: both sides are rounded to it; a larger one makes fewer buckets.
      batch_per_device: pictures per group.
    """
    found: dict[Bucket, list[Item]] = {}
    for item, size in zip(
        items, working_sizes(items, sizes, side=side, multiple=multiple), strict=True
    ):
        at = (0, 0) if isinstance(size, InputError) else size
        prompted = bool(item.source and item.source.strip())
        bucket = Bucket(at, item.mask is not None, len(item.targets), item.settings, prompted)
        found.setdefault(bucket, []).append(item)
    return [
        Group(bucket, tuple(members[first : first + batch_per_device]))
        for bucket, members in sorted(found.items())
        for first in range(0, len(members), batch_per_device)
    ]


def batches(
    groups: Sequence[Group],
    *,
    devices: int,
    side: int,
    multiple: int,
    batch_per_device: int,
    budget: Budget | None = None,
    focus: Focus = "auto",
) -> Iterator[Batch]:
    """Groups, in order, `devices` of a bucket at a time, read ahead in threads.

    A picture that can't be read, or that has another shape than when it was measured, is padding with its reason, and
    the others go on. `budget` bounds the memory in which pictures are decoded, and changes no batch; `focus` is
    that of `Crop.of`, and the other arguments are those of `group`.
    """
    budget = budget or Budget()
    size_of = partial(working_size, side=side, multiple=multiple)
    ahead: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(1)  # batch after batch; the pictures of each are read side by side
    try:
        for bucket, members in _together(groups, devices):
            ahead.append(
                pool.submit(
                    _read, bucket, members, devices, size_of, batch_per_device, budget, focus
                )
            )
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
    batch_per_device: int,
    budget: Budget,
    focus: Focus,
) -> Batch:
    items: list[Item | None] = [None] * (devices * batch_per_device)
    for number, members in enumerate(groups):
        first = number * batch_per_device
        items[first : first + len(members.items)] = members.items
    height, width = bucket.size if all(bucket.size) else (1, 1)
    pixels = np.zeros((len(items), height, width, 3), np.float32)
    user_masks = np.ones((len(items), height, width), np.float32) if bucket.masked else None
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
            refuse_too_large(item, size)
            with budget.hold(size[0] * size[1] * DECODING):
                picture, mask = decode_files(item, content)
                # It has the picture's shape, so that it is worked on at the bucket's size as well.
                crop = Crop.of(mask, size, working=bucket.size, focus=focus)
                pixels[slot] = resize(crop.cut(picture.pixels), bucket.size)
                if user_masks is not None and mask is not None:
                    user_masks[slot] = resize(crop.cut(mask), bucket.size, linear=True)
            originals[slot] = Original.of(item, size, crop, content, may_keep=may_keep)
        except InputError as error:
            reasons[slot] = str(error)
        except Exception as error:  # an error of any kind is this picture's alone
            reasons[slot] = f"{item.image}: can't be used ({type(error).__name__}: {error})"

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(fill, range(len(items))))
    return Batch(
        bucket,
        batch_per_device,
        items=tuple(items),
        originals=tuple(originals),
        reasons=tuple(reasons),
        pixels=pixels,
        user_masks=user_masks,
    )


def host_bytes(
    groups: Iterable[Group], sizes: Mapping[str, Size], devices: int, budget: int
) -> int:
    """Estimates the largest memory that a job's pictures take at a time, beside the model.

    Args:
      groups: of the job.
      sizes: of its pictures by item.
      devices: each takes a group at a time.
      budget: the bound of the memory for decoded pictures.
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
    """The number of items in each bucket."""
    counts: dict[Bucket, int] = {}
    for each in groups:
        counts[each.bucket] = counts.get(each.bucket, 0) + len(each.items)
    return counts
