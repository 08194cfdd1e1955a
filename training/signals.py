"""Signals: SIGTERM and Ctrl-C wait until the run can be saved."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from common import processes
from common.errors import Stopped


class Signals:
    """SIGTERM and Ctrl-C while a run trains: they wait until it can be saved.

    A second Ctrl-C ends the program at once. Launchers pass the first one on, so one that comes
    within a second is the same.
    """

    def __init__(self):
        self.number, self.time = 0, 0.0

    def catch(self, number: int, frame) -> None:
        """The handler: it remembers."""
        if number == self.number == signal.SIGINT and time.monotonic() - self.time > 1:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self.time = number, time.monotonic()

    def stop_if_asked(self) -> None:
        """The run can be saved as it is: stop it, if a signal has come to any of its processes.
        All of them have to call this at the same place.

        Raises:
            Stopped: one has come.
        """
        if number := processes.max_over_processes(self.number):
            raise Stopped(number)


@contextlib.contextmanager
def stop_on_signals(save: Callable[[], str]) -> Iterator[Signals]:
    """Inside, signals wait for `Signals.stop_if_asked`; then `save` is called and says how to go
    on.

    Raises:
        Stopped: with what `save` said.
    """
    signals = Signals()
    caught = signal.SIGTERM, signal.SIGINT
    # Python lets only the main thread set handlers; a run in another one does without.
    main = threading.current_thread() is threading.main_thread()
    former = {number: signal.signal(number, signals.catch) for number in caught if main}
    try:
        yield signals
        signals.stop_if_asked()
    except Stopped as stop:
        raise Stopped(stop.number, save()) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
