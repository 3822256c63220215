"""HTML pages from templates, and values as their text."""

import math
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined

# Neither HTML nor a screen has a form for these; tab and line feed have one.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def render_page(template: str, values: Mapping[str, Any]) -> bytes:
    """Fills a template in; what it puts between tags or into attributes is escaped.

    Args:
      template: text of a Jinja template, in which the filters `words` and `text` are known, the functions below.
      values: by the names that the template has for them.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"words": words, "text": text}
    return environment.from_string(template).render(values).encode()


def visible(value: str) -> str:
    r"""The text with an escape for each character that has no form: \x00 for the null character."""
    return _INVISIBLE.sub(lambda found: ascii(found[0])[1:-1], value)


def words(name: object) -> str:
    """The words of a key such as `psnr_to_source`."""
    return visible(str(name).replace("_", " "))


def text(value: Any) -> str:
    """A value of a summary as text; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{words(name)} {text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return visible(f"{value:,}" if type(value) is int else str(value))
