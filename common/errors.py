"""How a command ends on a user's mistake or wish: one line on standard error, and its exit status.

2 after a mistake, a full disk or a folder that cannot be written; 1 after another process of the
run was lost; 130 after Ctrl-C and 143 after SIGTERM, as shells and schedulers expect.
"""

import contextlib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator

from common.interrupt import exit_on_interrupt, raise_on_interrupt

TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}
# What the machine refuses wherever a file is written. Any other OSError is a fault of the program.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = NO_ROOM | {errno.EROFS, errno.EACCES, errno.EPERM}

# Errors are told apart by type and number. Libraries raise a bare RuntimeError for the cases below,
# so these are known by their words, but only by whole messages, or from the first word on: a file
# may have any name, and a message that names one must not be taken for one of these.
NOT_DETERMINISTIC = re.compile(r"(\w+) does not have a deterministic implementation, but you set ")
OUT_OF_MEMORY = re.compile(
    r"\[enforce fail( at alloc_cpu\.cpp:\d+)?\] ([^/\n]* )?DefaultCPUAllocator: "
    r"|(CUDA|HIP) out of memory\. |(CUDA|HIP) error: (out of memory\n|CUBLAS_STATUS_ALLOC_FAILED)"
    r"|could not create a (primitive|memory object)( descriptor.*)?\Z"
    r"|can't start new thread\Z|std::bad_alloc\Z"
    r"|unable to mmap \d+ bytes from file <.*>: Cannot allocate memory \(12\)\Z", re.DOTALL)
NO_MEMORY_IN_RUST = "Cannot allocate memory (os error 12)"  # safetensors' OSError without a number
# How the message of an ImportError ends.
NO_MEMORY_FOR_LIBRARY = ": failed to map segment from shared object", ": Cannot allocate memory"
LOST_WORKER = re.compile(
    r"DataLoader worker \(pid(\(s\))? [\d, ]+\) |DataLoader timed out after \d"
    r"|unable to (mmap \d+ bytes from|open shared memory object|resize|write to) .*/torch_\d+"
    r"|received \d+ items of ancdata\Z", re.DOTALL)
# What a DataLoader puts before the message of an error that one of its workers raised.
WORKER_TRACEBACK = re.compile(
    r"Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback ")


output_errors: list[OSError] = []  # of what could not be written to standard output


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


class LostWorker(RuntimeError):
    """A process that loads photos was killed, or hangs."""


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


def message_of(error: BaseException) -> str:
    """Return the message of an error, without the traceback that comes before it where a worker
    process of a `DataLoader` raised it."""
    text = str(error)
    if not WORKER_TRACEBACK.match(text):
        return text
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else (
        f"{kind.__module__}.{kind.__qualname__}")
    # The lines of the traceback itself are indented.
    return text.partition(f"\n{name}: ")[2].removesuffix("\n") or text


def message_and_status(error: BaseException) -> tuple[str, int] | None:
    """Return the line and the exit status with which a command ends on an error.

    Returns:
        The line and the status; None if the error is a fault of the program, whose traceback is
        wanted.
    """
    if isinstance(error, InputError):
        return f"error: {message_of(error)}", 2
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
    output_errors.clear()
    try:
        yield
        if output_errors:
            raise InputError(f"standard output cannot be written ({one_line(output_errors[0])}): "
                             "free some space, or name another place")
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
    operation = nondeterministic_operation(error)
    if operation is not None:
        return (f"--deterministic: {operation} does not have a deterministic implementation: "
                "leave the flag out")
    number = error.errno if isinstance(error, OSError) else None
    if number in TOO_MANY_FILES:
        return f"{error}: close some, or use fewer --workers"
    if number in NO_ROOM:
        return f"{error}: free some space, or name another folder"
    if number in NOT_WRITABLE:
        return f"{error}: give yourself the permission, or name another folder"
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
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or error.errno is None and error.args == (
            NO_MEMORY_IN_RUST,)
    if isinstance(error, ImportError):
        return str(error).endswith(NO_MEMORY_FOR_LIBRARY)
    return isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.match(message_of(error)))


def is_lost_worker(error: Exception) -> bool:
    """Return whether an error says that a worker process of a `DataLoader` was lost.

    PyTorch learns of it by a signal, so the error may arise anywhere in the program.
    """
    return isinstance(error, LostWorker) or (
        isinstance(error, RuntimeError) and bool(LOST_WORKER.match(message_of(error))))


def nondeterministic_operation(error: BaseException) -> str | None:
    """Return the operation that PyTorch refuses under `--deterministic`, or None for any other
    error."""
    refusal = NOT_DETERMINISTIC.match(str(error)) if isinstance(error, RuntimeError) else None
    return refusal and refusal[1]


def quiet_excepthook(failure) -> None:
    """Print the traceback of an error in a thread, unless it is one of the disk.

    TensorBoard's thread passes an error of the disk on to the main thread, which reports it.

    Args:
        failure: What `threading.excepthook` is called with.
    """
    if isinstance(failure.exc_value, OSError) and failure.exc_value.errno in NOT_WRITABLE:
        return
    threading.__excepthook__(failure)
