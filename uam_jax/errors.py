"""Exceptions that end a command: `InputError` (exit code 2), `JobFailed` (1) and `Preempted` (143)."""

import reprlib

_LONGEST = 2000
"""Most characters of a message, which must fit into a log and into a row of a ledger."""

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


class InputError(ValueError):
    """Bad user input. The message names the file, key or value, and the remedy.

    A very long message is shortened in its middle, because it may quote any part of a file.
    """

    def __init__(self, message: object = ""):
        super().__init__(shortened(str(message)))


class Preempted(Exception):
    """The process was asked to end and has finished the work in progress. The message says how to continue."""


class JobFailed(Exception):
    """A job has ended without results or was stopped. The message gives the reason and the remedy."""


def quoted(value: object) -> str:
    """Quotes a value for a message: its `repr`, shortened to about 80 characters."""
    return _repr.repr(value)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Leaves out the middle of a text of more than `longest` characters. Its end is kept: it often has the remedy."""
    if len(text) <= longest:
        return text
    end = longest // 4
    start = longest - end
    return f"{text[:start]} … ({len(text) - longest:,} characters) … {text[-end:]}"
