"""How a command ends on a user's mistake: one line on standard error, and exit status 2."""

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """A user's mistake: a flag, a file, a folder. Its message is one line, and says what to do."""


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn an `InputError`, also one from a worker process, into that line and exit status 2."""
    try:
        yield
    except InputError as error:
        # A worker's error arrives with its traceback in front; the last line is the message.
        message = str(error).splitlines()[-1].removeprefix("errors.InputError: ")
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
