"""A signal that comes while a loader's workers start, as one to the whole group does."""

import os
import signal
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader

from inputs.loader import close_workers, make_loader


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_does_not_end_a_worker_that_is_not_ready_yet(monkeypatch, number):
    """PyTorch gives each worker handlers that end it, before it calls ours."""
    start = torch.set_num_threads

    def slow_start(count):  # what a worker calls between the two
        time.sleep(0.5)
        start(count)

    loader = make_loader(list(range(40)), 1, False, batch_size=4)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_num_threads", slow_start)
        batches = iter(loader)
    time.sleep(0.2)
    workers = list(loader._iterator._workers)
    for worker in workers:
        os.kill(worker.pid, number)
    assert [value for batch in batches for value in batch.tolist()] == list(range(40))
    close_workers(loader)
    assert [worker.exitcode for worker in workers] == [0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("threads", [0, 1])
def test_a_signal_to_the_main_process_waits_and_is_not_lost(monkeypatch, number, threads):
    """It waits while the workers are started, and comes right after; also where another thread,
    as TensorBoard's, takes it from the system."""
    came, end = [], threading.Event()
    others = [threading.Thread(target=end.wait) for _ in range(threads)]
    for thread in others:
        thread.start()
    former = signal.signal(number, lambda number, frame: came.append(number))
    try:
        loader = make_loader(list(range(8)), 1, False, batch_size=4)
        whole = DataLoader.__iter__

        def send(self):
            os.kill(os.getpid(), number)
            iterator = whole(self)
            assert came == []
            return iterator

        monkeypatch.setattr(DataLoader, "__iter__", send)
        batches = iter(loader)
        assert came == [number]
        assert len(list(batches)) == 2
        close_workers(loader)
    finally:
        signal.signal(number, former)
        end.set()
        for thread in others:
            thread.join()
