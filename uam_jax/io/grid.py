"""Draws a grid of pictures with headings and captions."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _FAINT = (255, 255, 255), (25, 25, 25), (110, 110, 110)
_GAP = 8


def labelled_grid(
    rows: Sequence[Sequence[Float[np.ndarray, "h w *c"]]],
    *,
    columns: Sequence[str],
    captions: Sequence[str],
    title: str,
    tile: int = 192,
) -> bytes:
    """Draws a PNG with a title, a heading above each column and a caption above each row.

    Args:
      rows: pictures (h, w, 3) in [-1, 1], or masks (h, w) in [0, 1], which are drawn from black to white.
      columns: the headings; the text after a line break is drawn fainter.
      captions: one caption for each row.
      title: the title of the whole.
      tile: side of a picture in the grid, in pixels.

    Returns:
      The bytes of the PNG.
    """
    large, small = ImageFont.load_default(20), ImageFont.load_default(15)
    top, caption = 108, 30
    width = len(columns) * (tile + _GAP) + _GAP
    sheet = Image.new("RGB", (width, top + len(rows) * (tile + caption + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 14), title, _INK, large)
    for j, heading in enumerate(columns):
        first, _, second = heading.partition("\n")
        x = _GAP + j * (tile + _GAP)
        draw.text((x, 58), first, _INK, small)
        draw.text((x, 80), second, _FAINT, small)
    for i, row in enumerate(rows):
        y = top + i * (tile + caption + _GAP)
        draw.text((_GAP, y + 6), captions[i], _INK, small)
        for j, picture in enumerate(row):
            # Nearest neighbour, because the viewer judges the pixels themselves.
            shown = Image.fromarray(_bytes(picture)).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(shown, (_GAP + j * (tile + _GAP), y + caption))
    with io.BytesIO() as buffer:
        sheet.save(buffer, "PNG")
        return buffer.getvalue()


def _bytes(picture: np.ndarray) -> np.ndarray:
    levels = picture * 127.5 + 127.5 if picture.ndim == 3 else picture * 255.0
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)
