"""An edit as a value, without JAX, so that a manifest is checked before anything is loaded."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """One edit of a picture; a text stands for an edit with that target.

    Attributes:
      target: describes the edited picture.
      source: describes the picture as it is; None: see the argument `source` of `Editor.edit`.
      words: of the target, for controls that act on single words.
      negative: in place of the null prompt in the unguided half of the target branch.
    """

    __no_type_check__ = True  # by annotation, in tests: `Editor` checks it first and says more

    target: str
    source: str | None = None
    words: tuple[str, ...] = ()
    negative: str = ""
