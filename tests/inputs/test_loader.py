"""The order of an epoch, and worker processes: neither their number nor a signal changes it."""

import os
import resource
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from helpers.captions import pair_dataset

import inputs.loader
from common.errors import InputError, exit_on_input_error
from data import Collator
from inputs.loader import EpochSampler, close_workers, make_loader


def batches(seed=1, epoch=0, start=0, size=23, batch_size=4):
    sampler = EpochSampler(size, batch_size, seed)
    sampler.epoch, sampler.start = epoch, start
    return list(sampler)


def test_an_epoch_shows_every_pair_once_and_drops_the_rest():
    epoch = batches()
    assert [len(batch) for batch in epoch] == [4] * 5 and len(EpochSampler(23, 4, 1)) == 5
    indices, seeds = zip(*sum(epoch, []))
    assert len(set(indices)) == len(set(seeds)) == 20 and set(indices) < set(range(23))


def test_order_and_seeds_follow_from_seed_and_epoch():
    assert batches(epoch=3) == batches(epoch=3)
    different = [batches(), batches(epoch=1), batches(seed=2)]
    for part in (0, 1):  # the order, and the seeds
        assert len({tuple(pair[part] for pair in sum(epoch, [])) for epoch in different}) == 3


@pytest.mark.parametrize("start", range(6))
def test_an_interrupted_epoch_goes_on_where_it_stopped(start):
    assert batches(epoch=2, start=start) == batches(epoch=2)[start:]


def plain_batches(size, batch_size, seed, epoch, start, own):
    """From lists of the whole epoch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(size, generator=generator).tolist()
    seeds = torch.randint(2**62, (size,), generator=generator).tolist()
    pairs = list(zip(order, seeds))
    return [pairs[number * batch_size : (number + 1) * batch_size][own]
            for number in range(start, size // batch_size)]


@pytest.mark.parametrize("drawn", [1, 7, 64, 2**16])
@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (23, 4), (24, 4), (1000, 7), (1003, 100)])
def test_seeds_that_are_drawn_in_parts_are_those_of_one_draw(monkeypatch, drawn, size, batch_size):
    """To the bit, from any batch on and in any process of several."""
    monkeypatch.setattr(inputs.loader, "DRAWN", drawn)
    for seed, epoch in (1, 0), (3407, 24), (2**63 - 1, 5):
        for start in {0, 1, 2, size // batch_size // 2, size // batch_size}:
            for own in slice(None), slice(0, batch_size // 2), slice(batch_size // 2, batch_size):
                sampler = EpochSampler(size, batch_size, seed, own)
                sampler.epoch, sampler.start = epoch, start
                found = list(sampler)
                assert found == plain_batches(size, batch_size, seed, epoch, start, own)
                assert all(type(number) is int for number in sum(sum(found, []), ()))


def test_a_batch_larger_than_the_split_is_refused():
    assert len(batches(size=4)) == 1
    with pytest.raises(InputError, match="--batch_size_train 4 .* 3 pairs"):
        EpochSampler(3, 4, 1)


def test_workers_change_nothing(tmp_path):
    dataset = pair_dataset(tmp_path)
    runs = []
    for workers in (0, 2):
        sampler = EpochSampler(8, 3, seed=1)
        loader = make_loader(dataset, workers, False, batch_sampler=sampler,
                             collate_fn=Collator(dataset.captions))
        state = torch.get_rng_state()
        runs.append([])
        for sampler.epoch in range(2):
            runs[-1] += list(loader)
        assert torch.equal(torch.get_rng_state(), state)
    assert len(runs[0]) == 4
    for alone, shared_out in zip(*runs, strict=True):
        assert all(map(torch.equal, alone, shared_out))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_outlive_signals(number):
    """What they were asked for still comes, and asked to end they end in order."""
    loader = make_loader(list(range(40)), 1, False, batch_size=4)
    given, seen = iter(loader), []
    workers = list(loader._iterator._workers)
    for _ in range(10):
        seen += next(given).tolist()
        for worker in workers:
            os.kill(worker.pid, number)
        time.sleep(0.01)
    close_workers(loader)
    assert seen == list(range(40))
    assert [worker.exitcode for worker in workers] == [0]


# ------------------------------------------------------------------------------ workers that cannot


class Kills(list):
    """Its item 3 ends the process that asks for it, as the system does where memory is short."""

    def __getitem__(self, index):
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Hangs(list):
    """Its item 3 comes late, as it never would where a batch finds no room in shared memory."""

    def __getitem__(self, index):
        time.sleep(2 if index == 3 else 0)
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", [Kills, Hangs])
def test_a_worker_that_gives_nothing_ends_the_command(monkeypatch, capsys, kind):
    monkeypatch.setattr(inputs.loader, "TIME_LIMIT", 0.5)
    loader = make_loader(kind(range(8)), 1, False, batch_size=1)
    with pytest.raises(SystemExit) as caught, exit_on_input_error():
        list(loader)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert "--workers" in error and "/dev/shm more room" in error
    close_workers(loader)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"),
                                   ConnectionRefusedError(111, "Connection refused"), EOFError()])
def test_a_worker_that_is_killed_while_it_hands_a_batch_over_is_told_of_likewise(
        monkeypatch, capsys, error):
    """What the socket between the two says first, and the system a moment later."""
    def breaks():
        yield 0
        raise error

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    given = []
    with pytest.raises(SystemExit) as caught, exit_on_input_error():
        given.extend(inputs.loader.handed_over(breaks()))
    told = capsys.readouterr().err
    assert given == [0] and caught.value.code == 2 and told.count("\n") == 1
    assert "--workers" in told and "/dev/shm more room" in told


@pytest.fixture
def room(monkeypatch):
    """Sets the bytes that are free in shared memory, and how many files may be open."""
    def give(memory=2**40, files=2**16):
        inputs.loader.workers_with_room.cache_clear()
        free = SimpleNamespace(f_bavail=memory, f_frsize=1)
        monkeypatch.setattr(os, "statvfs", lambda path: free)
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
        monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: None)

    yield give
    inputs.loader.workers_with_room.cache_clear()


@pytest.mark.parametrize(("given", "workers", "told"), [
    ({}, 4, ""), ({"memory": 64 * 2**20}, 1, "/dev/shm has too little room"),
    ({"memory": 2**20}, 0, "/dev/shm"), ({"files": 100}, 2, "ulimit -n"),
    ({"files": 20}, 0, "ulimit -n"), ({"files": -1}, 4, "")])
def test_fewer_workers_where_more_would_hang(room, capsys, given, workers, told):
    """Docker's 64 MiB, and batches of 14 MB: 32 photos of 384 x 384."""
    room(**given)
    assert inputs.loader.workers_with_room(4, 3 * 384**2 * 32) == workers
    error = capsys.readouterr().err
    assert told in error and bool(error) == bool(told)
    assert "--workers 4" in error or not told
