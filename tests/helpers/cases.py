"""Inputs that the tests of the loss share, in the names and shapes of `oracle.py`."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

import negative_sampling
from fne_loss import FNELoss, RunningGaussian
from helpers import oracle
from memory_bank import MemoryBank

DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
SETTINGS = {"margin": 0.4, "tau": 0.7, "prior": 0.05, "min_count": 10}
FLOOR = 0.02
# name: D, M, batches put into the bank before, image ids of the batch
CASES = {
    "alone": (4, 5, [], [3]),
    "alone_with_bank": (5, 6, [4], [3]),
    "two": (5, 4, [], [3, 8]),
    "two_of_one_photo": (5, 4, [3], [3, 3]),
    "partly_filled": (7, 30, [9, 9], [3, 8, 9, 2, 5, 0]),
    "wrapped": (7, 11, [8, 8, 11, 5], [3, 8, 9, 2, 5, 0, 7, 6]),
    "captions_of_one_photo": (9, 25, [10, 10], [1, 1, 2, 3, 3, 3, 4, 5, 6, 7]),
}


def embeddings(count, dim, dtype):
    """Two online and two momentum views of the same `count` things, around a common direction."""
    base = torch.randn(count, dim, dtype=dtype) + 0.8
    return [F.normalize(base + 0.6 * torch.randn_like(base), dim=1) for _ in range(4)]


def make_case(name, dtype=torch.float64):
    """A batch, a bank that shows some of its photos, and a loss with fitted statistics."""
    torch.manual_seed(sum(map(ord, name)))
    dim, size, earlier, ids = CASES[name]
    bank = MemoryBank(size, dim).to(dtype)
    for batch in earlier:
        _, _, images, texts = embeddings(batch, dim, dtype)
        bank.enqueue(images, texts, torch.randint(0, 12, (batch,)))
    criterion = FNELoss(**SETTINGS, posterior_floor=FLOOR)
    statistics = oracle.Statistics(), oracle.Statistics()
    for _ in range(4):
        images, texts, _, _ = embeddings(12, dim, dtype)
        criterion.update_statistics(images, texts, torch.arange(12))
        oracle.update_statistics(*statistics, *oracle.lists(images, texts), list(range(12)))
    inputs = [*embeddings(len(ids), dim, dtype), torch.tensor(ids)]
    return SimpleNamespace(
        inputs=inputs, bank=bank, ids=ids, criterion=criterion, statistics=statistics,
        candidate_ids=ids + bank.image_ids.tolist(),
    )


def excluded_in_batch(case):
    """(B, B) bool that excludes a third of a batch's pairs, the matching ones among them."""
    return torch.rand(len(case.ids), len(case.ids)) < 1 / 3


# How negatives are drawn, and from blocks of how many similarities.
SAMPLERS = [("exact", 2**18), ("exact", 500), ("exact", 1),
            ("rejection", 2**18), ("rejection", 500), ("rejection", 1)]


def sample_by(monkeypatch, sampler, block):
    """Have `FNELoss` draw as an entry of `SAMPLERS` says, whatever the number of candidates."""
    monkeypatch.setattr(negative_sampling, "EXACT_UP_TO", 0 if sampler == "rejection" else 2**62)
    monkeypatch.setattr(negative_sampling, "BLOCK_ON_CPU", block)
    monkeypatch.setattr(negative_sampling, "LEAST_WIDTH", 1)
    monkeypatch.setattr(negative_sampling, "GROUPS", 3)


def draw_one_direction(criterion, anchors, keys, bank_keys, image_ids, bank_ids, **more):
    """What a loss draws in one direction alone."""
    direction = negative_sampling.Direction(anchors, keys, bank_keys)
    [draw] = criterion.draw_directions((direction,), image_ids, bank_ids, **more)
    return draw


def directions(case):
    """Anchors (B) and candidates (C) of i2t, then of t2i, as lists."""
    images, texts, image_keys, text_keys, _ = oracle.lists(*case.inputs)
    image_bank, text_bank = oracle.lists(case.bank.image_keys, case.bank.text_keys)
    return (images, text_keys + text_bank), (texts, image_keys + image_bank)


def oracle_weights(case, anchors, candidates, **changes):
    """The oracle's sampling weights (B, C) in a case, with some of its settings changed."""
    settings = SETTINGS | {"floor": FLOOR} | changes
    return oracle.weights(
        anchors, candidates, case.ids, case.candidate_ids, *case.statistics, **settings
    )


def gaussian(mean, variance, count=300):
    """N(mean, variance) as if fitted to `count` values."""
    fitted = RunningGaussian()
    fitted.count.fill_(count)
    fitted.mean.fill_(mean)
    fitted.m2.fill_(variance * (count - 1))
    return fitted


def step_of_the_method(criterion, bank, device):
    """Everything that the method does in a step of 8 pairs, D 6, on any device."""
    images, texts = (torch.rand(8, 6, device=device, requires_grad=True) for _ in range(2))
    image_keys, text_keys = torch.rand(2, 8, 6, device=device)
    ids = torch.arange(8, device=device)
    criterion.update_statistics(images, texts, ids)
    loss = criterion(images, texts, image_keys, text_keys, ids, bank)
    bank.enqueue(image_keys, text_keys, ids, ids)
    loss.backward()
