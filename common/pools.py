"""Work that several processes of this machine share, item by item."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from common.errors import InputError


def in_processes(
    function: Callable, items: Iterable, processes: int, what: str, chunk: int = 1
) -> Iterator:
    """What `function` gives for each item, in their order, from as many processes; with fewer than
    two from this one.

    Args:
        what: names the processes' work in an error.
        chunk: items that a process gets at once.

    Raises:
        InputError: of `function`; or a process was killed.
    """
    if processes < 2:
        yield from map(function, items)
        return
    try:
        with ProcessPoolExecutor(processes, initializer=follow, initargs=(os.getpid(),)) as pool:
            try:
                yield from pool.map(function, items, chunksize=chunk)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise InputError(f"a process that was {what} was killed: give the machine more memory"
                         ) from error


def follow(parent: int) -> None:
    """End with the process that has started this one, however that ends. Ctrl-C comes to all of
    them, and it ends the others in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
