"""Heat maps of a model's attention to the words of a picture's prompt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from uam_jax.engine import programs
from uam_jax.engine.predictors import Course
from uam_jax.errors import InputError
from uam_jax.method.alignment import Prompt, marked, places_of
from uam_jax.method.samplers import SAMPLERS

if TYPE_CHECKING:
    from uam_jax.editor import Editor


def word_maps(
    editor: "Editor",
    image: Float[np.ndarray, "height width 3"],
    prompt: str,
    words: Sequence[str] = (),
    *,
    steps: int = 50,
    spacing: str = "",
) -> dict[str, Float[np.ndarray, "h w"]]:
    """Attention to each word at every pixel of a picture's latent, from its inversion by DDIM under the prompt.

    It is the share of a softmax over all tokens: the mean over layers, heads and steps, and the sum over the word's
    tokens.

    Args:
      editor: a loaded model.
      image: in [-1, 1]; sides are multiples of `editor.size_multiple`.
      prompt: describes the picture.
      words: of the prompt; all of them if none is given.
      steps: of the inversion.
      spacing: as in `EditConfig`.

    Raises:
      InputError: the prompt is empty, or a word is not in it.
    """
    own = Prompt.of(editor.checkpoint.tokenizer, prompt)
    chosen = list(dict.fromkeys(words or own.plain))
    if not chosen:
        raise InputError("the prompt is empty: describe the picture")
    length = editor.checkpoint.tokenizer.length
    tokens = np.stack([marked(places_of(word, own)[0], length) for word in chosen])
    maps = programs.attention(
        editor.inverter.model(spacing),
        editor.params,
        editor.encode(image[None]),
        editor.condition([prompt]),
        jnp.asarray(tokens[None]),
        course=Course(steps, SAMPLERS["ddim"]),
        on=None,
    )
    return dict(zip(chosen, np.asarray(jax.device_get(maps[0])), strict=True))
