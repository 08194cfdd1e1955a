"""SIGTERM and Ctrl-C, which wait until the run can be saved."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from common import processes
from common.errors import Stopped


class Signals:
    """Remember a SIGTERM or Ctrl-C that comes while a run trains, until the run can be saved.

    A second Ctrl-C ends the program at once. Launchers pass the first Ctrl-C on, so another one
    within a second counts as the same.

    Attributes:
        number: number of the first signal that has come, or 0.
        first_ctrl_c: time of the first Ctrl-C in seconds, or None.
    """

    def __init__(self):
        self.number = 0
        self.first_ctrl_c: float | None = None

    def catch(self, number: int, frame) -> None:
        """Handle a signal by remembering it."""
        self.number = self.number or number
        if number != signal.SIGINT:
            return
        if self.first_ctrl_c is None:
            self.first_ctrl_c = time.monotonic()
        elif time.monotonic() - self.first_ctrl_c > 1:
            raise KeyboardInterrupt

    def stop_if_asked(self) -> None:
        """Stop the run, which can be saved now, if a signal has come to any of its processes.

        All processes have to call this at the same place, since they exchange their numbers.

        Raises:
            Stopped: a signal has come.
        """
        stop_if(processes.max_over_processes(self.number))


def stop_if(number: int) -> None:
    """Stop the run by a signal that all of its processes know of.

    Args:
        number: of the signal, or 0.

    Raises:
        Stopped: the number is not 0.
    """
    if number:
        raise Stopped(number)


@contextlib.contextmanager
def stop_on_signals(save: Callable[[], str]) -> Iterator[Signals]:
    """Have signals wait inside the `with` until the run can be saved, and save it then.

    Args:
        save: saves the run and returns a line that says how to go on.

    Raises:
        Stopped: with what `save` returned.
    """
    signals = Signals()
    # Python lets only the main thread set handlers; a run in another one does without.
    in_main_thread = threading.current_thread() is threading.main_thread()
    caught = (signal.SIGTERM, signal.SIGINT) if in_main_thread else ()
    former = {number: signal.signal(number, signals.catch) for number in caught}
    try:
        yield signals
        signals.stop_if_asked()
    except Stopped as stop:
        raise Stopped(stop.number, save()) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
