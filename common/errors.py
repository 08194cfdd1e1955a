"""How a command ends on a user's mistake or wish: one line on standard error, and its status.

2 after a mistake, a full disk or a folder that cannot be written; 130 after Ctrl-C and 143 after
SIGTERM, as shells and schedulers expect.
"""

import contextlib
import errno
import signal
import sys
import threading
from collections.abc import Iterator

# What the machine refuses wherever a file is written. Any other OSError is a fault of the program.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


class InputError(ValueError):
    """A user's mistake: a flag, a file, a folder. Its message is one line, and says what to do."""


class Stopped(BaseException):
    """A signal ends the run. No `except Exception` on the way may take it for an error."""

    def __init__(self, number: int, told: str = "nothing was being trained"):
        super().__init__(number, told)
        self.number, self.told = signal.Signals(number), told


def one_line(error: BaseException | str) -> str:
    """An error's message in one line, what is not printable escaped; or its kind, without one."""
    message = " ".join(str(error).split())
    shown = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message)
    return "".join(shown) or type(error).__name__


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn an `InputError`, also one from a worker process, into that line and exit status 2."""
    threading.excepthook = quiet_excepthook
    try:
        yield
        return
    except InputError as error:
        # A worker's error arrives with its traceback in front.
        line, status = f"error: {str(error).rpartition('errors.InputError: ')[2]}", 2
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        line, status = f"error: {error}: free some space, or name another folder", 2
    except Stopped as stop:
        line, status = f"stopped by {stop.number.name}: {stop.told}", 128 + stop.number
    except KeyboardInterrupt:
        line, status = "stopped at once: what was last saved is whole", 128 + signal.SIGINT
    print(one_line(line), file=sys.stderr)
    sys.exit(status)


def quiet_excepthook(failure) -> None:
    """TensorBoard's thread hands an error of the disk on to the main one: one telling will do."""
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in NO_ROOM):
        threading.__excepthook__(failure)
