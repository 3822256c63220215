"""Validates and normalises the prompts and edits that `Editor` is given."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uam_jax.errors import InputError, quoted
from uam_jax.method.config import EditConfig
from uam_jax.method.controls import Control
from uam_jax.method.edits import Edit, Words

Prompts = str | Sequence[str]
Targets = Sequence[str | Edit | Sequence[str | Edit]]


def prompt_list(prompts: Any) -> list[str]:
    """One prompt or several as a list; blank ones, which are the null prompt, as "".

    Raises:
      InputError: there are none, or something is no text.
    """
    texts = [prompts] if isinstance(prompts, str) else _entries("prompts", prompts)
    if not texts:
        raise InputError("there are no prompts: give one for all images or one each")
    return [text if text.strip() else "" for text in map(_text, texts)]


def prompts_of(prompts: Any, count: int) -> list[str]:
    """`prompt_list` of one prompt for `count` images or one each.

    Raises:
      InputError: there are neither one nor as many, or as of `prompt_list`.
    """
    texts = prompt_list(prompts)
    if len(texts) not in (1, count):
        raise InputError(f"{len(texts)} prompts for {count} images: give one for all or one each")
    return texts


def _entries(name: str, given: Any) -> list[Any]:
    if isinstance(given, bytes) or not hasattr(given, "__iter__"):
        raise InputError(f"{name} is {given!r}: give a text or a list of texts")
    return list(given)


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise InputError(f"a prompt is {given!r}: it must be a text")
    return str(given)


def source_prompts(source: Prompts | None, config: EditConfig) -> Prompts:
    """The prompts of the source branch and of its inversion, as far as they are known before a look at the pictures."""
    if config.source.condition == "null":
        if source is not None:
            warnings.warn(
                'the source prompt is ignored: source.condition is "null"; set it to "prompt" or "auto" to use it, or '
                "choose the preset captioned",
                UserWarning,
                stacklevel=4,
            )
        return ""
    if source is None and config.source.condition == "auto":
        return ""
    if source is None:
        raise InputError(without_source(config))
    return source


def without_source(config: EditConfig, whose: str = "the edit") -> str:
    """Why an edit that has no source prompt is refused, and what helps; it is for `source.condition` "prompt"."""
    other = "" if config.control.compares_prompts else ', or set source.condition to "null"'
    return (
        f'{whose} has no source prompt, and source.condition is "prompt": describe the picture as it is '
        f'(--source, or "source" in a manifest){other}'
    )


def settle_context(config: EditConfig, source: Prompts | None) -> EditConfig:
    """`config` with the null context where no source prompt says anything, as if none had been asked for.

    Guidance between the null prompt and itself is none, and takes no evaluation.
    """
    needed = config.inversion.method.replaces_null
    if source is None or needed or any(prompt_list(source)):
        return config
    return config.updated({"source": {"condition": "null"}})


@dataclass(frozen=True)
class SettledSource:
    """The condition of an edit's source branch, as it is known after a look at the pictures.

    Attributes:
      config: the edit's settings, whose `source.condition` is now "null" or "prompt".
      prompts: one for all pictures or one each; "" is the null prompt.
      figures: "source_agreement", (b,), where it was asked how well the prompts describe the pictures.
      evaluations: single-sample network evaluations that this took.
    """

    config: EditConfig
    prompts: Prompts
    figures: Mapping[str, Float[Array, "b"]] = field(default_factory=dict)
    evaluations: int = 0


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
    return replace(edit, words=Words.of(edit.words))


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


def checked_source(
    target: Any, source: Prompts | None, count: int, config: EditConfig, tokenizer: Any
) -> Prompts | None:
    """The source prompts of `count` images, given alone or in the edits, whose errors come here.

    Raises:
      InputError: as of `flatten_edits`, `source_of_edits` and `check_edits`.
    """
    edits, index = flatten_edits(target, count)
    source = source_of_edits(edits, index, source)
    check_edits(config, tokenizer, edits, index, source)
    return source


def check_edits(
    config: EditConfig,
    tokenizer: Any,
    edits: Sequence[Edit],
    index: np.ndarray,
    source: Prompts | None,
) -> None:
    """Warns of words that the control does not use, and refuses those that it can't, before anything is computed.

    Args:
      config: of the edits.
      tokenizer: of the model.
      edits: of all images.
      index: the image that each belongs to.
      source: the source prompts.

    Raises:
      InputError: there is no source prompt where one is needed, or as of `prepare_control`.
    """
    control = config.control
    given = {name for edit in edits for name, words in vars(edit.words).items() if words}
    if unused := sorted(given - control.kinds_of_words):
        warnings.warn(
            f"the edits' words ({', '.join(unused)}) have no effect: {type(control).__name__} with its present "
            "settings does not act on them",
            UserWarning,
            stacklevel=5,
        )
    if config.source.condition == "prompt":
        if source is None:
            raise InputError(without_source(config))
        sources = prompt_list(source)
        if len(sources) in (1, index.max() + 1):  # else another error says more
            prepare_control(control, tokenizer, with_sources(edits, index, sources))


def prepare_control(
    control: Control, tokenizer: Any, edits: Sequence[Edit], user_mask: Array | None = None
) -> Mapping[str, Array]:
    """The arrays that a control prepares for its hooks, with a row per edit, and the user's masks if it needs them.

    Raises:
      InputError: the control can't work with an edit, or an array has another number of rows.
    """
    found = jax.tree.map(jnp.asarray, control.prepare(tokenizer, edits))
    for name, array in found.items():
        if len(array) != len(edits):
            raise InputError(
                f"{type(control).__name__}.prepare returned {name} with {len(array)} rows for {len(edits)} edits"
            )
    masked = control.needs_mask and user_mask is not None
    return {**found, "user_mask": user_mask} if masked else found


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
