"""The edit of one picture of any size: of a crop around the user's mask, pasted back into the whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from uam_jax.engine.delivery import Delivery, EditResult, fetch
from uam_jax.errors import InputError
from uam_jax.io.focus import Crop, Focus, check_focus
from uam_jax.io.images import by, resize, working_size
from uam_jax.method.edits import Edit

if TYPE_CHECKING:
    from uam_jax.editor import Editor
    from uam_jax.method.config import EditConfig


@dataclass(frozen=True)
class PictureEdit:
    """The edits of one picture, one for each target.

    Attributes:
      result: of the crop, at the size at which the model worked on it; on the host.
      crop: the part of the picture that was edited.
      pixels: of the original.
      mask: the user's, if there is one.
    """

    result: EditResult
    crop: Crop
    pixels: Float[np.ndarray, "H W 3"]
    mask: Float[np.ndarray, "H W"] | None

    def deliver(self, target: int = 0, *, channel_max: int = 255, grey: bool = False) -> Delivery:
        """One target's picture at the original's size; `channel_max` and `grey` are those of `delivery.deliver`."""
        return self.result.deliver(
            target,
            self.pixels,
            within=self.mask,
            crop=self.crop,
            channel_max=channel_max,
            grey=grey,
        )


def edit_picture(
    editor: "Editor",
    pixels: Float[np.ndarray, "H W 3"],
    targets: str | Edit | Sequence[str | Edit],
    source: str | None = None,
    *,
    mask: Float[np.ndarray, "h w"] | Bool[np.ndarray, "h w"] | None = None,
    config: "EditConfig | None" = None,
    size: int | None = None,
    focus: Focus = "auto",
) -> PictureEdit:
    """Edits a picture of any size, as `uam edit` does.

        edit = edit_picture(editor, pixels, "a red car", mask=mask)
        edit.deliver().pixels

    Args:
      editor: a loaded model.
      pixels: of the picture, in [-1, 1].
      targets: one or several edits; a text describes the result.
      source: a prompt that describes the picture.
      mask: where it may change, in [0, 1] or True, at its size.
      config: the model's `default_config` if not given.
      size: the model works at about size² pixels; None means its native size.
      focus: whether the model works on a crop around the mask, see `focus.Crop.of`.

    Raises:
      InputError: arguments that do not fit; the message has the remedy.
    """
    shape = pixels.shape[0], pixels.shape[1]
    if mask is not None and mask.shape != shape:
        raise InputError(
            f"the mask has {by(mask.shape)} pixels, its picture {by(shape)}: both must have the same size"
        )
    check_focus(focus, masked=mask is not None)
    within = None if mask is None else mask.astype(np.float32)
    side = editor.native_size if size is None else size
    working = working_size(shape, side, editor.size_multiple)
    crop = Crop.of(within, shape, working=working, focus=focus)
    scaled = resize(crop.cut(pixels), working)[None]
    masks = None if within is None else resize(crop.cut(within), working, linear=True)[None]
    edits = [targets] if isinstance(targets, str | Edit) else list(targets)

    def work(editor: "Editor") -> "EditResult":
        # From the latents, since the original's pixels are put back at their own resolution.
        images = editor.upload(scaled)
        z0 = editor.encode(images, checked=True)
        return editor.edit_latents(z0, [edits], source, masks=masks, config=config, images=images)

    editor.compile((working, config, len(edits), mask is None, source is None), work)
    [result] = fetch([work(editor)])
    return PictureEdit(result, crop, pixels, within)
