"""How a command ends on a user's mistake or wish: one line on standard error, and its exit status.

2 after a mistake, a full disk or a folder that cannot be written; 1 after another process of the
run was lost; 130 after Ctrl-C and 143 after SIGTERM, as shells and schedulers expect.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator

from common.interrupt import exit_on_interrupt, raise_on_interrupt

TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}
# What the machine refuses wherever a file is written. Any other OSError is a fault of the program.
NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
NOT_DETERMINISTIC = "does not have a deterministic implementation"  # PyTorch's words

# Libraries have no exception type of their own for these cases, so they are known by their words.
OUT_OF_MEMORY_WORDS = (
    "out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory",
    "could not create a primitive", "std::bad_alloc", "failed to map segment",
    "can't start new thread")
LOST_WORKER_WORDS = (
    "DataLoader worker", "DataLoader timed out", "unable to mmap", "items of ancdata")


class InputError(ValueError):
    """A user's mistake in a flag, a file or a folder.

    Its message is one line that names the flag or file, the value, and the way out.
    """


class Stopped(BaseException):
    """A signal ends the run. It is no `Exception`, so that no handler takes it for an error.

    Args:
        number: The number of the signal.
        message: What the line that the command prints says about the run.
    """

    def __init__(self, number: int, message: str = "nothing was being trained"):
        super().__init__(number, message)
        self.number = signal.Signals(number)
        self.message = message


class LostProcess(Exception):
    """Another process of the run was killed, or hangs."""


def printable(text: str) -> str:
    """Return the text with all characters escaped that are not printable.

    Names from files may hold anything, such as control sequences that a terminal obeys.
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(error: BaseException | str) -> str:
    """Return the message of an error in one printable line, or the error's type if it is empty."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def message_and_status(error: BaseException) -> tuple[str, int] | None:
    """Return the line and the exit status with which a command ends on an error.

    Returns:
        The line and the status; None if the error is a fault of the program, whose traceback is
        wanted.
    """
    if isinstance(error, InputError):
        # The error of a worker process arrives with its traceback in front.
        return f"error: {str(error).rpartition('errors.InputError: ')[2]}", 2
    if isinstance(error, OSError | MemoryError | RuntimeError):
        message = machine_error_message(error)
        if message is not None:
            return f"error: {message}", 2
    if isinstance(error, LostProcess):
        return f"error: {error}", 1
    if isinstance(error, Stopped):
        return f"stopped by {error.number.name}: {error.message}", 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once: what was last saved is whole", 128 + signal.SIGINT
    return None


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """End the program with one line and a status if the body raises a known error.

    Known is what `message_and_status` knows: `InputError`, also from a worker process, what the
    machine refuses, a lost process, and signals. Other errors pass through.
    """
    threading.excepthook = quiet_excepthook
    accept_any_text()
    is_command = raise_on_interrupt()
    try:
        yield
        return
    except BaseException as error:
        known = message_and_status(error)
        if known is None:
            raise
    finally:
        if is_command:  # again, while the interpreter ends
            exit_on_interrupt()
    message, status = known
    with contextlib.suppress(OSError):
        print(one_line(message), file=sys.stderr)
    sys.exit(status)


def print_last_line(line: str) -> None:
    """Print the line with which a command ends on standard error, if that can be written."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(one_line(line), file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()


def machine_error_message(error: Exception) -> str | None:
    """Return one line with a way out for what the machine refused, or None for any other error.

    That is memory, processes that load photos, deterministic operations, open files and disks.
    """
    if is_out_of_memory(error):
        return ("out of memory: make --batch_size_train, --batch_size_test, --image_res or "
                "--queue_size smaller, or use fewer --workers")
    if is_lost_worker(error):
        return ("--workers: a process that loads photos was killed or gave nothing for too long "
                f"({str(error)[:200]}): use fewer, or give /dev/shm more room (docker run "
                "--shm-size 8g)")
    if NOT_DETERMINISTIC in str(error):
        return f"--deterministic: {str(error).partition(',')[0]}: leave the flag out"
    number = error.errno if isinstance(error, OSError) else None
    if number in TOO_MANY_FILES:
        return f"{error}: close some, or use fewer --workers"
    if number in NOT_WRITABLE:
        return f"{error}: free some space, or name another folder"
    return None


def reraise_out_of_memory(error: BaseException) -> None:
    """Raise `error` again if it says that memory is short; return otherwise.

    Handlers that blame a file or a model for any error call it first, because short memory is the
    fault of neither.
    """
    if is_out_of_memory(error):
        raise error


def accept_any_text() -> None:
    """Make standard output and standard error accept any text.

    A closed stream is replaced by one that discards everything, and characters that a stream's
    encoding lacks are escaped.
    """
    for name in "stdout", "stderr":
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is short.

    Python, PyTorch on CPU and GPU, oneDNN, thread libraries and the linker each say so in another
    way.
    """
    if isinstance(error, MemoryError):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def is_lost_worker(error: Exception) -> bool:
    """Return whether an error says that a worker process of a `DataLoader` was lost.

    PyTorch learns of it by a signal, so the error may arise anywhere in the program.
    """
    return any(words in str(error) for words in LOST_WORKER_WORDS)


def quiet_excepthook(failure) -> None:
    """Print the traceback of an error in a thread, unless it is one of the disk.

    TensorBoard's thread passes an error of the disk on to the main thread, which reports it.

    Args:
        failure: What `threading.excepthook` is called with.
    """
    if isinstance(failure.exc_value, OSError) and failure.exc_value.errno in NOT_WRITABLE:
        return
    threading.__excepthook__(failure)
