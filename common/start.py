"""How every command starts: from its first statement on, whatever ends it is told in one line.

A command begins with these lines, before it imports anything else:

    if __name__ == "__main__":
        from common.start import begin_command
        begin_command()

Packages that are missing or broken, and Ctrl-C while they are loaded, then end the command as
`common.errors` says. Further modules are imported only once Ctrl-C is caught.
"""

import os
import sys

from common.interrupt import exit_on_interrupt

# Bytes of address space; a small run maps about as much once its libraries are loaded.
MIN_ADDRESS_SPACE = 5 * 2**30


def begin_command() -> None:
    """Prepare the process for a command, before its packages are imported.

    From now on an error that is known, or that a package raises while it is imported, ends the
    program in one line, and so does Ctrl-C, at once until `exit_on_input_error` is entered. Figures
    are only drawn into files, whatever MPLBACKEND names. Only for commands: it sets
    `sys.excepthook` and the handler of Ctrl-C.

    A limit on the address space that is too low ends the program at once, because libraries under
    PyTorch may wait for ever for a thread that finds no room.
    """
    exit_on_interrupt()
    import resource
    import warnings

    from common.errors import print_last_line

    sys.excepthook = end_in_one_line
    os.environ["MPLBACKEND"] = "agg"
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # the error follows
    try:
        os.getcwd()
    except OSError:
        print_last_line("error: the working folder is gone: change to one that exists")
        os._exit(2)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < MIN_ADDRESS_SPACE:
        print_last_line(f"error: ulimit -v {limit // 1024}: PyTorch needs "
                        f"{MIN_ADDRESS_SPACE // 1024} and more: raise the limit, and bound memory "
                        "in another way")
        os._exit(2)


def end_in_one_line(kind: type[BaseException], error: BaseException, trace) -> None:
    """End the program in one line if the error is known; print the traceback otherwise.

    It is called as `sys.excepthook`, when all `with` blocks and `finally` clauses are done.
    """
    from common.errors import message_and_status, print_last_line
    from common.packages import import_error_message

    message = import_error_message(error)
    known = message_and_status(error) if message is None else (f"error: {message}", 2)
    if known is None:
        return sys.__excepthook__(kind, error, trace)
    line, status = known
    print_last_line(line)
    os._exit(status)
