"""Signals: SIGTERM and Ctrl-C wait until the run can be saved."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from common.errors import Stopped


class Signals:
    """SIGTERM and Ctrl-C while a run trains: they wait until it can be saved.

    A second Ctrl-C ends the program at once. Launchers pass the first one on, so one that comes
    within a second is the same.
    """

    def __init__(self):
        self.number, self.time, self.open = None, 0.0, False

    def catch(self, number: int, frame) -> None:
        """The handler: it remembers, and stops the run where that is allowed."""
        if number == self.number == signal.SIGINT and time.monotonic() - self.time > 1:
            raise KeyboardInterrupt
        if self.number is None:
            self.number, self.time = number, time.monotonic()
        if self.open:
            raise Stopped(self.number)

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """The run can be saved as it is in here: stop it if a signal waits, or when one comes."""
        self.open = True
        try:
            if self.number is not None:
                raise Stopped(self.number)
            yield
        finally:
            self.open = False


@contextlib.contextmanager
def stop_on_signals(save: Callable[[], str]) -> Iterator[Signals]:
    """Inside, signals wait for `Signals.allowed`; then `save` is called and says how to go on.

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
        with signals.allowed():
            pass
    except Stopped as stop:
        raise Stopped(stop.number, save()) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
