"""Work that several processes of this machine share, item by item."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from common.errors import InputError


def map_in_processes(
    function: Callable, items: Iterable, processes: int, activity: str, chunk: int = 1
) -> Iterator:
    """Yield `function(item)` for each item in order, computed by several processes.

    Args:
        function: A function that can be pickled.
        items: Its arguments.
        processes: The number of processes. With fewer than two this process computes all.
        activity: What the processes do, for the error message: "reading photos", say.
        chunk: The number of items that a process gets at a time.

    Raises:
        InputError: If `function` raises one, or if a process is killed.
    """
    if processes < 2:
        yield from map(function, items)
        return
    try:
        with ProcessPoolExecutor(processes, initializer=exit_with_parent,
                                 initargs=(os.getpid(),)) as pool:
            try:
                yield from pool.map(function, items, chunksize=chunk)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise InputError(f"a process that was {activity} was killed: give the machine more memory"
                         ) from error


def exit_with_parent(parent: int) -> None:
    """Have this process end when the process that started it ends, however that ends.

    Ctrl-C reaches all processes at once. It is ignored here, since the parent ends its children in
    order.

    Args:
        parent: The process id of the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
