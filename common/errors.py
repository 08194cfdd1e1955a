"""How a command ends on a user's mistake or wish: one line on standard error, and its status.

2 after a mistake, a full disk or a folder that cannot be written; 1 after another process of the
run was lost; 130 after Ctrl-C and 143 after SIGTERM, as shells and schedulers expect.
"""

import contextlib
import errno
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator

LEAST_ADDRESSES = 5 * 2**30  # bytes; with its libraries loaded, a small run has mapped as much
NO_FILES = {errno.EMFILE, errno.ENFILE}  # too many open ones
# What the machine refuses wherever a file is written. Any other OSError is a fault of the program.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


NOT_DETERMINISTIC = "does not have a deterministic implementation"  # as PyTorch says it


class InputError(ValueError):
    """A user's mistake: a flag, a file, a folder. Its message is one line, and says what to do."""


class Stopped(BaseException):
    """A signal ends the run. No `except Exception` on the way may take it for an error."""

    def __init__(self, number: int, told: str = "nothing was being trained"):
        super().__init__(number, told)
        self.number, self.told = signal.Signals(number), told


def printable(text: str) -> str:
    """The same text, what is not printable escaped: names from files may hold anything, such as
    sequences that a terminal obeys."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(error: BaseException | str) -> str:
    """An error's message in one line, what is not printable escaped; or its kind, without one."""
    return printable(" ".join(str(error).split())) or type(error).__name__


class LostProcess(Exception):
    """Another process of the run was killed, or hangs."""


def line_and_status(error: BaseException) -> tuple[str, int] | None:
    """How a command tells of an error, in one line, and its exit status; None where it is a fault
    of the program, whose traceback is wanted."""
    if isinstance(error, InputError):
        # A worker's error arrives with its traceback in front.
        return f"error: {str(error).rpartition('errors.InputError: ')[2]}", 2
    if isinstance(error, OSError | MemoryError | RuntimeError) and (told := told_of(error)):
        return f"error: {told}", 2
    if isinstance(error, LostProcess):
        return f"error: {error}", 1
    if isinstance(error, Stopped):
        return f"stopped by {error.number.name}: {error.told}", 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once: what was last saved is whole", 128 + signal.SIGINT
    return None


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn an `InputError`, also one from a worker process, into that line and exit status 2; and
    what else `line_and_status` knows of."""
    threading.excepthook = quiet_excepthook
    open_streams()
    try:
        yield
        return
    except BaseException as error:
        told = line_and_status(error)
        if told is None:
            raise
    line, status = told
    with contextlib.suppress(OSError):
        print(one_line(line), file=sys.stderr)
    sys.exit(status)


def told_of(error: Exception) -> str | None:
    """What the machine refused, in a line with a way out; None of any other error."""
    if out_of_memory(error):
        return ("out of memory: make --batch_size_train, --batch_size_test, --image_res or "
                "--queue_size smaller, or use fewer --workers")
    if lost_a_worker(error):
        return ("--workers: a process that loads photos was killed or gave nothing for too long "
                f"({str(error)[:200]}): use fewer, or give /dev/shm more room (docker run "
                "--shm-size 8g)")
    if NOT_DETERMINISTIC in str(error):
        return f"--deterministic: {str(error).partition(',')[0]}: leave the flag out"
    number = error.errno if isinstance(error, OSError) else None
    if number in NO_FILES:
        return f"{error}: close some, or use fewer --workers"
    return f"{error}: free some space, or name another folder" if number in NO_ROOM else None


def reraise_out_of_memory(error: BaseException) -> None:
    """Raise an error of memory again: of no file and no model is it a fault."""
    if out_of_memory(error):
        raise error


def tell_of_imports() -> None:
    """From here on a package that is missing, or that memory does not suffice for, is told in one
    line with status 2. For commands alone: it sets `sys.excepthook`.

    A limit on addresses that is too low is told at once: libraries under PyTorch may wait for ever
    for a thread that finds no room.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < LEAST_ADDRESSES:
        print(f"error: ulimit -v {limit // 1024}: PyTorch needs {LEAST_ADDRESSES // 1024} and "
              "more: raise the limit, and bound memory in another way", file=sys.stderr, flush=True)
        os._exit(2)

    def hook(kind, error, trace):
        if isinstance(error, ModuleNotFoundError):
            line = f"no Python package {error.name}: pip install -r requirements.txt"
        elif out_of_memory(error):
            line = "out of memory while packages are loaded: raise the limit (ulimit -v)"
        else:
            return sys.__excepthook__(kind, error, trace)
        print(f"error: {one_line(line)}", file=sys.stderr, flush=True)
        os._exit(2)

    sys.excepthook = hook


def open_streams() -> None:
    """Have standard output and error take any text: closed ones go nowhere, and what an encoding
    does not have is escaped."""
    for name in "stdout", "stderr":
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says: torch has its own kinds for CPU and GPU, oneDNN, thread
    libraries and the linker have theirs."""
    told = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory",
            "could not create a primitive", "std::bad_alloc", "failed to map segment",
            "can't start new thread")
    return isinstance(error, MemoryError) or any(words in str(error) for words in told)


def lost_a_worker(error: Exception) -> bool:
    """Whether a DataLoader says so. It is told by a signal, anywhere in the program."""
    told = "DataLoader worker", "DataLoader timed out", "unable to mmap", "items of ancdata"
    return any(words in str(error) for words in told)


def quiet_excepthook(failure) -> None:
    """TensorBoard's thread hands an error of the disk on to the main one: one telling will do."""
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in NO_ROOM):
        threading.__excepthook__(failure)
