"""The run-time type checker of the tests: beartype, given by name to jaxtyping's import hook."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.roar import BeartypeException

# An int is a float, as in static typing.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks a function's annotations, except those that cannot be checked at run time.

    These are `Self` outside a decorated class, since the hook decorates methods one by one, and
    protocols, which pyright checks better.
    """
    function.__annotations__ = {
        name: hint if _checkable(hint) else Any for name, hint in function.__annotations__.items()
    }
    return _check(function)


def _checkable(hint: Any) -> bool:
    try:
        is_bearable(None, hint)
    except BeartypeException:
        return False
    return True
