"""Validates and normalises the arguments of `Editor`."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uam_jax.engine.inversion import Inversion
from uam_jax.errors import InputError, quoted
from uam_jax.method.config import EditConfig
from uam_jax.method.controls import Control
from uam_jax.method.edits import Edit
from uam_jax.types import Condition, ImageLike, Latent, LatentLike, MaskLike

Prompts = str | Sequence[str]
Targets = Sequence[str | Edit | Sequence[str | Edit]]


ROUNDING = 1e-3
"""How far beyond [-1, 1] a picture's values may lie: 1 in half precision may be this much more."""


def prompt_list(prompts: Any) -> list[str]:
    """One prompt or several as a list; blank ones, which are the null prompt, as "".

    Raises:
      InputError: there are none, or something is no text.
    """
    texts = [prompts] if isinstance(prompts, str) else _entries("prompts", prompts)
    if not texts:
        raise InputError("there are no prompts: give one for all images or one each")
    return [text if text.strip() else "" for text in map(_text, texts)]


def _entries(name: str, given: Any) -> list[Any]:
    if isinstance(given, bytes) or not hasattr(given, "__iter__"):
        raise InputError(f"{name} is {given!r}: give a text or a list of texts")
    return list(given)


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise InputError(f"a prompt is {given!r}: it must be a text")
    return str(given)


def source_prompts(source: Prompts | None, config: EditConfig) -> Prompts:
    """The prompts of the source branch and of its inversion."""
    if config.source.condition == "null":
        if source is not None:
            warnings.warn(
                'the source prompt is ignored: source.condition is "null"; set it to "prompt" to use it',
                UserWarning,
                stacklevel=4,
            )
        return ""
    if source is None:
        raise InputError(
            'source.condition is "prompt": give the source prompt, or set it to "null"'
        )
    return source


def settle_context(config: EditConfig, source: Prompts | None) -> EditConfig:
    """`config` with the null context where no source prompt says anything, as if none had been asked for.

    Guidance between the null prompt and itself is none, and takes no evaluation.
    """
    needed = config.inversion.method.replaces_null
    if source is None or needed or any(prompt_list(source)):
        return config
    return config.updated({"source": {"condition": "null"}})


def per_image(condition: Condition, count: int) -> Condition:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), condition)


def listed(inversions: Any) -> Sequence[Inversion]:
    """No inversion, one or several, as a list."""
    found = [inversions] if isinstance(inversions, Inversion) else list(inversions or ())
    for each in found:
        if not isinstance(each, Inversion):
            raise InputError(
                f"inversions holds a {type(each).__name__}: give what Editor.invert returned"
            )
    return found


def checked_number(name: str, given: Any) -> float:
    """A finite number as a float."""
    try:
        found = float(given)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{name} is {given!r}: it must be a finite number")
    return found


def flatten_edits(target: Any, count: int) -> tuple[list[Edit], np.ndarray]:
    """All edits in one list, and the image that each belongs to.

    Raises:
      InputError: no prompt or `Edit`, or no list of them, per image; or a text of one is not valid.
    """
    entries = [target] if isinstance(target, str | Edit) else _entries("target", target)
    if isinstance(target, str | Edit) or len(entries) != count:
        raise InputError(
            f"target has {len(entries)} entries for {count} images: "
            "give a list with a prompt, or a list of prompts, per image"
        )
    nested = [
        [entry] if isinstance(entry, str | Edit) else _entries("a target", entry)
        for entry in entries
    ]
    edits = [_edit(each) for entry in nested for each in entry]
    if not all(nested) or not all(edit.target.strip() for edit in edits):
        raise InputError("a target prompt is empty: describe the edited image")
    return edits, np.repeat(np.arange(count), [len(entry) for entry in nested])


def _edit(given: Any) -> Edit:
    """An edit whose texts are texts."""
    edit = given if isinstance(given, Edit) else Edit(_text(given))
    for text in (edit.target, edit.negative, *([] if edit.source is None else [edit.source])):
        _text(text)
    if isinstance(edit.words, str) or not all(isinstance(word, str) for word in edit.words):
        raise InputError(f"words is {edit.words!r}: give a list of words of the target")
    return edit


def source_of_edits(
    edits: Sequence[Edit], index: np.ndarray, source: Prompts | None
) -> Prompts | None:
    """The source prompts, which the edits may give in place of the argument `source`.

    Args:
      edits: of all images.
      index: the image that each belongs to.
      source: the argument.

    Raises:
      InputError: both give them, only some edits do, or two edits of one image differ.
    """
    if all(edit.source is None for edit in edits):
        return source
    if source is not None:
        raise InputError("the source prompt is given twice: as source, and in an Edit")
    prompts: dict[int, str] = {}
    for image, edit in zip(index.tolist(), edits, strict=True):
        if edit.source is None or prompts.setdefault(image, edit.source) != edit.source:
            raise InputError(
                f"the edits of image {image} give no common source prompt: an image is inverted once for all its edits"
            )
    return list(prompts.values())


def with_sources(edits: Sequence[Edit], index: np.ndarray, sources: Sequence[str]) -> list[Edit]:
    """The edits with their images' source prompts.

    Args:
      edits: of all images.
      index: the image that each belongs to.
      sources: one for all images or one each.
    """
    images = index.tolist()
    return [
        replace(edit, source=sources[image if len(sources) > 1 else 0])
        for edit, image in zip(edits, images, strict=True)
    ]


def prepare_control(control: Control, tokenizer: Any, edits: Sequence[Edit]) -> Mapping[str, Array]:
    """The arrays that a control prepares for its hooks, with a row per edit.

    Raises:
      InputError: an array has another number of rows.
    """
    found = jax.tree.map(jnp.asarray, control.prepare(tokenizer, edits))
    for name, array in found.items():
        if len(array) != len(edits):
            raise InputError(
                f"{type(control).__name__}.prepare returned {name} with {len(array)} rows for {len(edits)} edits"
            )
    return found


def negative_prompts(edits: Sequence[Edit], config: EditConfig) -> list[str] | None:
    """The negative prompt of each edit, where there is any; warns where guidance is 1, which leaves no use for them.

    Raises:
      InputError: the inversion has others in their place.
    """
    negatives = [edit.negative if edit.negative.strip() else "" for edit in edits]
    if not any(negatives):
        return None
    if config.inversion.method.replaces_null:
        kind = config.inversion.to_dict()["kind"]
        raise InputError(
            f"negative is {quoted(next(filter(None, negatives)))}, and inversion.kind {kind} has another text in the "
            "negative prompt's place: leave it out, or choose another inversion.kind"
        )
    if config.guidance == 1:
        warnings.warn(
            "the negative prompts are ignored: guidance is 1, which leaves out the unguided half that they condition",
            UserWarning,
            stacklevel=4,
        )
        return None
    return negatives


def checked_images(
    images: ImageLike, *, multiple: int, model: str, values: bool = True
) -> ImageLike:
    """Pictures as they are worked on: float32, and on the host if their values were looked at.

    Args:
      images: as given.
      multiple: of which sides must be multiples.
      model: to be named.
      values: look at the values, which brings those of a device to the host.

    Raises:
      InputError: another shape or type, values that are not finite or beyond [-1, 1].
    """
    if np.ndim(images) != 4 or np.shape(images)[-1] != 3:
        raise InputError(f"images have shape {np.shape(images)}: (b, h, w, 3) is needed")
    if any(side % multiple or not side for side in np.shape(images)[1:3]):
        height, width = np.shape(images)[1:3]
        raise InputError(
            f"images are {height}x{width}: {model} takes multiples of {multiple} pixels"
        )
    needed = "floating-point values in [-1, 1] are needed; from 0 to 255, images / 127.5 - 1"
    if not values:
        _refuse_integers("images", images, needed)
        return jnp.asarray(images, jnp.float32)
    found = _finite("images", images, needed)
    low, high = found.min(), found.max()
    if low < -1 - ROUNDING or high > 1 + ROUNDING:
        raise InputError(
            f"images have values from {low:g} to {high:g}: they must lie in [-1, 1]; of values from 0 to 255 "
            "that is images / 127.5 - 1"
        )
    return found


def checked_latents(
    latents: LatentLike, *, channels: int, multiple: int = 1, finite: bool = True
) -> Latent:
    """Scaled latents as they are worked on.

    Args:
      latents: as given.
      channels: that the model has.
      multiple: of which sides must be multiples.
      finite: look at the values too, which waits until they are computed.

    Raises:
      InputError: another shape or type, or values that are not finite.
    """
    shape = np.shape(latents)
    if len(shape) != 4 or shape[-1] != channels or 0 in shape:
        raise InputError(
            f"latents have shape {shape}: (b, h, w, {channels}) is needed, as Editor.encode returns them"
        )
    if any(side % multiple for side in shape[1:3]):
        raise InputError(
            f"latents are {shape[1]}x{shape[2]}: the model takes multiples of {multiple}"
        )
    needed = "floating-point values are needed, as Editor.encode returns them"
    if finite:
        _finite("latents", latents, needed)
    else:
        _refuse_integers("latents", latents, needed)
    return jnp.asarray(latents, jnp.float32)


def _refuse_integers(name: str, given: Any, needed: str) -> None:
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise InputError(f"{name} are {given.dtype}: {needed}")


def _finite(name: str, given: Any, needed: str) -> np.ndarray:
    """The values, where they are floating-point numbers and finite in every example."""
    _refuse_integers(name, given, needed)
    if not len(given):
        raise InputError(f"there are no {name}")
    values = np.asarray(given, np.float32)
    bad = [i for i, each in enumerate(values) if not np.isfinite(each).all()]
    if bad:
        raise InputError(f"{name}[{bad[0]}] has values that are not finite (NaN or infinite)")
    return values


def latent_masks(
    masks: MaskLike, shape: Sequence[int], factor: int
) -> Float[np.ndarray, "b h w 1"]:
    """Pictures' masks as shares of latent pixels.

    Args:
      masks: as given.
      shape: of the pictures' latents.
      factor: pixels to a latent pixel, along a side.

    Raises:
      InputError: not the pictures' shape, or values beyond [0, 1].
    """
    b, h, w, _ = shape
    needed = b, h * factor, w * factor
    if np.shape(masks) != needed:
        remedy = "; leave the last axis out: masks[..., 0]"
        raise InputError(
            f"masks have shape {np.shape(masks)}: {needed} is needed, as the images have"
            + (remedy if np.shape(masks) == (*needed, 1) else "")
        )
    values = np.asarray(masks)
    if not (values.dtype == bool or jnp.issubdtype(values.dtype, jnp.number)):
        raise InputError(f"masks are {values.dtype}: numbers in [0, 1] or bool are needed")
    values = values.astype(np.float32)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(
            f"masks have values outside [0, 1], from {values.min():g} to {values.max():g}: 1 may change, "
            "0 may not; of values from 0 to 255 that is masks / 255"
        )
    return values.reshape(b, h, factor, w, factor).mean(axis=(2, 4))[..., None]


def checked_regions(
    regions: Any, shape: Sequence[int]
) -> Float[np.ndarray, "blocks images rows columns"]:
    """Uniformity of every block, image and pixel, for latents of a shape."""
    regions = np.asarray(regions, np.float32)
    b, h, w, _ = shape
    if (
        regions.ndim != 4
        or regions.shape[1] not in (1, b)
        or regions.shape[2:] not in ((h, w), (1, 1))
    ):
        raise InputError(
            f"regions have shape {regions.shape}: (blocks, {b}, {h}, {w}) is needed, or 1 in place of "
            "blocks, of images, or of both sides"
        )
    if not ((regions >= 0) & (regions <= 1)).all():
        raise InputError("regions have values outside [0, 1]: 0 is the text's maps, 1 uniform ones")
    return np.broadcast_to(regions, (*regions.shape[:2], h, w))


def inversion_regions(
    allowed: Float[np.ndarray, "b h w 1"] | None, config: EditConfig
) -> Float[np.ndarray, "1 b h w"] | None:
    """Where the source's inversion is uniform, by `config.inversion.outside_uniformity` and the user's mask."""
    outside = config.inversion.outside_uniformity
    if not outside:
        return None
    if allowed is None:
        raise InputError(
            "inversion.outside_uniformity needs to know the region before the edit: give a mask"
        )
    inside = allowed[None, ..., 0]
    return inside * config.inversion.uniformity + (1 - inside) * outside
