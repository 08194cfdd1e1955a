"""The order of an epoch, and worker processes that load it.

What is random about a training example follows from (seed, epoch, position) alone, so neither the
number of workers nor a restart changes it.
"""

import os
import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.errors import InputError

GRACE = 20  # seconds that a worker goes on after SIGTERM


class EpochSampler(Sampler):
    """Batches of (caption index, augmentation seed), a new order each epoch; the rest is dropped.

    Set `epoch` and `start` (the first batch to give) before iterating: order and seeds follow
    from (seed, epoch) alone, so an interrupted epoch goes on exactly where it stopped.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        if size < batch_size:
            raise InputError(f"--batch_size_train {batch_size} is more than the {size} pairs of "
                             "the training split")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.size, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.size,), generator=generator).tolist()
        pairs = list(zip(order, seeds, strict=True))
        for batch in range(self.start, len(self)):
            yield pairs[batch * self.batch_size : (batch + 1) * self.batch_size]


def make_loader(dataset: Dataset, workers: int, pin: bool, **order) -> DataLoader:
    """A DataLoader whose workers live on between epochs; `order` is its batching.

    More workers than the machine has cores would only get in each other's way, so it takes fewer.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(workers, cores)
    # Its own generator: the loader must not take a number from the stream that dropout uses.
    return DataLoader(dataset, num_workers=workers, pin_memory=pin, generator=torch.Generator(),
                      persistent_workers=workers > 0, worker_init_fn=outlive_signals, **order)


def outlive_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the workers as well, which the main process needs to
    finish its step. It sends SIGTERM itself to one that hangs, so that is obeyed after a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))


def close_workers(loader: DataLoader) -> None:
    """End a loader's workers in order. The garbage collector takes their queues away first, and
    then waits ten seconds for each."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()
        loader._iterator = None
