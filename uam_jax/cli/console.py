"""The output of a command: messages on stderr, the summary on stdout, and the exit code."""

import io
import json
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from rich.console import Console as Screen
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from uam_jax.errors import InputError, JobFailed, Preempted, shortened
from uam_jax.files import public

OK, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

_LINE_SECONDS = 10
"""Seconds between two lines of progress where there is no terminal."""


class Console:
    """Messages of one command, on stderr."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._screen = Screen(stderr=True, highlight=False, markup=False, soft_wrap=True)
        spinner = "dots" if self._screen.encoding.startswith("utf") else "line"
        self._progress = Progress(
            SpinnerColumn(spinner), BarColumn(24), TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._screen, transient=True, disable=not self._screen.is_terminal,
        )  # fmt: skip
        self._stage = self._progress.add_task("starting", total=None)
        self._last_line = 0.0

    def say(self, message: str) -> None:
        """Prints a line."""
        self._screen.print(_shown(message))

    def stage(self, name: str) -> None:
        """Shows the current activity: beside the spinner, or as a line where there is no terminal."""
        if self._progress.disable:
            self.say(name)
        else:
            self._progress.reset(self._stage, description=_shown(name), total=None)

    def advance(self, done: int, total: int, message: str) -> None:
        """Shows the progress of a long run: as a bar, or where there is no terminal as a line every ten seconds."""
        if not self._progress.disable:
            self._progress.update(
                self._stage, description=_shown(message), completed=done, total=total
            )
        elif done == total or time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(message)

    def warn(self, message: str) -> None:
        """Prints a warning, once."""
        message = _shown(message)
        if message not in self.warnings:
            self.warnings.append(message)
            self._screen.print(f"warning: {message}", style="yellow")

    def fail(self, message: str) -> None:
        """Prints the reason of a failure."""
        self._screen.print(f"error: {_shown(message)}", style="red")

    def trace(self, error: BaseException) -> None:
        """Prints the traceback of an error."""
        self._screen.print(public("".join(traceback.format_exception(error))), end="")

    @contextmanager
    def active(self) -> Iterator[None]:
        """Shows the spinner, and shows Python's user warnings as messages; other packages' notices are dropped."""

        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            self.warn(" ".join(str(message).split()))

        with self._progress, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            warnings.filterwarnings("ignore", module="PIL")
            warnings.showwarning = show
            yield


def run(work: Callable[[Console], Mapping[str, Any]], *, as_json: bool, debug: bool) -> int:
    """Runs the work of a command, prints its summary and returns the exit code.

    Only the summary goes to stdout; all other output goes to stderr.

    Args:
      work: the work, which returns the summary.
      as_json: whether the summary is printed as one JSON document. If the work fails, the document has the key `error`.
      debug: whether the traceback of an error is printed.
    """
    _escape_what_streams_cannot_hold()
    console = Console()
    summary: dict[str, Any] = {}
    error: BaseException | None = None
    code, message = OK, ""
    with redirect_stdout(sys.stderr), console.active():
        try:
            summary.update(work(console))
        except KeyboardInterrupt as caught:
            error, code, message = caught, INTERRUPTED, "interrupted"
        except InputError as caught:
            error, code, message = caught, BAD_INPUT, str(caught)
        except Preempted as caught:
            error, code, message = caught, TERMINATED, str(caught)
        except JobFailed as caught:
            error, code, message = caught, FAILED, str(caught)
        except Exception as caught:  # the outermost frame: any error ends as one line
            error, code, message = caught, FAILED, _one_line(caught)
    if error is not None:
        console.fail(message)
        summary = {"error": _shown(message)}
        if debug:
            console.trace(error)
    outcome = {"ok": error is None, **summary, "warnings": console.warnings}
    try:
        if as_json:
            print(json.dumps(_plain(outcome), indent=2), flush=True)
        elif error is None:
            _print_summary(summary)
    except (BrokenPipeError, SystemExit):
        # The reader of stdout has closed it; Rich raises SystemExit then.
        _forget_stdout()
    except OSError as caught:  # the work itself has succeeded
        _forget_stdout()
        console.fail(f"the summary can't be printed ({caught.strerror})")
        return code or FAILED
    return code


def _shown(message: str) -> str:
    """A message without secrets and not too long, whatever values are in it."""
    return shortened(public(message))


def _escape_what_streams_cannot_hold() -> None:
    r"""Prints characters that the terminal's encoding lacks as escapes such as \u5199, so that printing never fails."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _forget_stdout() -> None:
    """Keeps Python from flushing stdout at its end, which would fail again."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    if "RESOURCE_EXHAUSTED" in first:
        return f"out of memory: try a smaller --size, or --dtype bfloat16 ({first})"
    return f"{type(error).__name__}: {first} (--debug shows where)"


def _plain(value: Any) -> Any:
    """Turns a value into one that JSON has: paths, array scalars and infinities are replaced."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str):
        return public(value)
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_summary(summary: Mapping[str, Any]) -> None:
    """Prints each value of a summary as a line, and each list of rows as a table."""
    screen = Screen(highlight=False, markup=False, soft_wrap=True)
    for name, value in summary.items():
        title = name.replace("_", " ")
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            table = Table(title=title, title_justify="left")
            for column in value[0]:
                table.add_column(column.replace("_", " "), overflow="fold")
            for row in value:
                table.add_row(*map(_text, row.values()))
            screen.print(table)
        else:
            screen.print(f"{title}: {_text(value)}")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else public(str(value))
