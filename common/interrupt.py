"""Ctrl-C before a command begins its work and after it has ended it: one line and status 130.

While packages are imported no exception may be raised, since some packages take any error for their
own; so the process ends at once. `common.errors.exit_on_input_error` switches to Python's own
handler, which raises KeyboardInterrupt, for as long as a command works.
"""

import os
import signal

from common.ranks import is_main


def exit_at_once(number: int, frame) -> None:
    """Handle Ctrl-C by ending the process at once, with one line and status 130."""
    if is_main():
        try:
            os.write(2, b"stopped at once: nothing was begun, or all is done\n")
        except OSError:  # nobody reads
            pass
    os._exit(128 + number)


def exit_on_interrupt() -> None:
    """Set `exit_at_once` as the handler of Ctrl-C, unless Ctrl-C is ignored, as by nohup."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_at_once)


def raise_on_interrupt() -> bool:
    """Set Python's own handler of Ctrl-C where `exit_at_once` is set, and return whether it was."""
    is_set = signal.getsignal(signal.SIGINT) is exit_at_once
    if is_set:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return is_set
