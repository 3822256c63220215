"""The one exception that means "the input is at fault": raised anywhere, turned into exit code 2 by the CLI."""


class InputError(ValueError):
    """Bad user input. The message names the file, key or value and says what to do about it."""
