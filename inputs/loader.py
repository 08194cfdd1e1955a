"""The order of an epoch, and worker processes that load it.

What is random about a training example follows from (seed, epoch, position) alone, so neither the
number of workers nor a restart changes it.
"""

import contextlib
import functools
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.errors import InputError, LostWorker, one_line
from common.ranks import local_world_size
from common.terminal import warn

SHARED = "/dev/shm"  # where workers put a batch for the main process
TIME_LIMIT = 300  # seconds without a batch, after which the workers are given up
DRAWN = 2**16  # seeds of an epoch that are drawn together
AHEAD = 3  # batches of a worker that wait there at a time
FILES_OF_OURS, FILES_OF_WORKER = 64, 16  # open at a time
GRACE = 20  # seconds that a worker goes on after SIGTERM
STOPPING = signal.SIGINT, signal.SIGTERM


class EpochSampler(Sampler):
    """Gives batches of (caption index, augmentation seed), in a new order each epoch; pairs that do
    not fill a batch are dropped.

    Set `epoch` and `start` (the first batch to give) before iterating: order and seeds follow
    from (seed, epoch) alone, so an interrupted epoch goes on exactly where it stopped.

    Args:
        local_rows: the rows of each batch to give, where several processes share it; all, unless
            given.
    """

    def __init__(self, size: int, batch_size: int, seed: int, local_rows: slice = slice(None)):
        if size < batch_size:
            raise InputError(f"--batch_size_train {batch_size} is more than the {size} pairs of "
                             "the training split")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.local_rows = local_rows
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.size, generator=generator)
        order = order.to(torch.int32) if self.size < 2**31 else order  # what stays while it trains
        per_draw = max(1, DRAWN // self.batch_size)  # batches whose seeds are drawn together
        for first in range(0, len(self), per_draw):
            batches = range(first, min(first + per_draw, len(self)))
            rows = slice(first * self.batch_size, batches.stop * self.batch_size)
            # The numbers of one draw of all seeds: each takes the generator's next bits.
            seeds = torch.randint(2**62, (rows.stop - rows.start,), generator=generator)
            if batches.stop <= self.start:
                continue
            for batch in batches[max(0, self.start - first) :]:
                place = (batch - first) * self.batch_size
                whole = slice(place, place + self.batch_size)
                yield list(zip(order[rows][whole][self.local_rows].tolist(),
                               seeds[whole][self.local_rows].tolist(),
                               strict=True))


class Loader(DataLoader):
    """A DataLoader whose workers no signal reaches before they are ready for one.

    In a worker, a signal waits until `outlive_signals` is called; in this process, until all
    workers have started.
    """

    def __iter__(self):
        with signals_wait():
            batches = super().__iter__()
        return handed_over(batches) if self.num_workers else batches


def handed_over(batches: Iterator) -> Iterator:
    """Yield batches; a worker that is killed while it hands one over raises the usual error.

    Raises:
        LostWorker: a worker was killed.
    """
    try:
        yield from batches
    except (EOFError, ConnectionError) as error:  # the socket's other end is gone
        # The system's word of it raises torch's own RuntimeError, in here and not while the command
        # is on its way to its end.
        time.sleep(1)
        raise LostWorker(f"a worker went away: {one_line(error)}") from error


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back inside; afterwards the handlers that they had before get them.

    A process started inside begins with both blocked. In this one the mask alone is not enough: the
    system gives a signal to any other thread, and Python then calls the handler in the main one.
    """
    came = []
    main = threading.current_thread() is threading.main_thread()  # no other one sets handlers
    handlers = {number: signal.signal(number, lambda number, frame: came.append(number))
                for number in STOPPING if main and signal.getsignal(number) is not None}
    former = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def make_loader(
    dataset: Dataset, workers: int, pin: bool, batch_bytes: int = 0, **order
) -> DataLoader:
    """Return a loader whose workers live on between epochs.

    More workers than the machine has cores would only get in each other's way, so it takes fewer;
    as it does where more could not hand their batches over. The training processes of a machine
    share it alike.

    Args:
        workers: processes that load, at most.
        pin: give pinned memory, from which a GPU copies while it computes.
        batch_bytes: of a batch's pixels.
        order: arguments of `DataLoader` that say how items are batched.
    """
    workers = min(workers, max(1, usable_cores() // local_world_size()),
                  workers_with_room(workers, batch_bytes))
    # Its own generator: the loader must not take a number from the stream that dropout uses.
    return Loader(dataset, num_workers=workers, pin_memory=pin, generator=torch.Generator(),
                  timeout=TIME_LIMIT if workers else 0, persistent_workers=workers > 0,
                  worker_init_fn=outlive_signals, **order)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@functools.cache  # so that each validation does not say it again
def workers_with_room(workers: int, batch_bytes: int) -> int:
    """Return how many of `workers` can hand batches over: each needs shared memory, and a file for
    each tensor. Where there is too little of either, the whole would hang without a word."""
    if workers == 0 or not os.path.isdir(SHARED):
        return workers
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    room = os.statvfs(SHARED)
    by_memory = room.f_bavail * room.f_frsize // (AHEAD * max(1, batch_bytes) * local_world_size())
    by_files = (files - FILES_OF_OURS) // FILES_OF_WORKER
    can = max(0, min(workers, by_memory, workers if files < 0 else by_files))
    if can < workers:
        lack = (f"{SHARED} has too little room for their batches (docker run --shm-size 8g)"
                if can == max(0, by_memory) else "this process may open too few files (ulimit -n)")
        warn(f"--workers {workers}: only {can} are used, since {lack}")
    return can


def outlive_signals(worker: int) -> None:
    """Have a worker ignore SIGINT, and obey SIGTERM after a while.

    Ctrl-C and a scheduler's SIGTERM reach the workers as well, which the main process needs to
    finish its step. It sends SIGTERM itself to a worker that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def close_workers(loader: DataLoader) -> None:
    """End a loader's workers in order.

    The garbage collector would take their queues away first, and then wait ten seconds for each.
    """
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()
        loader._iterator = None
