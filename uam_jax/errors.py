"""What ends a command: bad input (exit code 2), a job without results (1), a machine that is taken away (143)."""


class InputError(ValueError):
    """Bad user input. The message names the file, key or value and says what to do about it."""


class Preempted(Exception):
    """The process was asked to end and has brought what it had in hand to an end. The message tells how to go on."""


class JobFailed(Exception):
    """A job has ended, or was stopped, without what it was to make. The message gives the reason and the way on."""
