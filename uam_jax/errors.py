"""What ends a command: bad input (exit code 2), a job without results (1), a machine that is taken away (143)."""

import reprlib

_LONGEST = 2000
"""Characters of a message: nobody reads more, and a log or a ledger's row has to hold it."""

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


class InputError(ValueError):
    """Bad user input. The message names the file, key or value and says what to do about it.

    A very long one is shortened in its middle, since a part of it may be anything that a file holds.
    """

    def __init__(self, message: object = ""):
        super().__init__(shortened(str(message)))


class Preempted(Exception):
    """The process was asked to end and has brought what it had in hand to an end. The message tells how to go on."""


class JobFailed(Exception):
    """A job has ended, or was stopped, without what it was to make. The message gives the reason and the way on."""


def quoted(value: object) -> str:
    """A value for a message: its `repr`, of which no more than about 80 characters are shown."""
    return _repr.repr(value)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """The text with its middle left out if it is longer; its end often holds the remedy."""
    if len(text) <= longest:
        return text
    end = longest // 4
    start = longest - end
    return f"{text[:start]} … ({len(text) - longest:,} characters) … {text[-end:]}"
