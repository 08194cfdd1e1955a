"""The memory bank against a plain Python queue."""

import random
from collections import deque

import pytest
import torch
from helpers.steps import all_finite

from memory_bank import EMPTY, MemoryBank


def rows(count, dim=3, dtype=torch.float32):
    return torch.randn(count, dim, dtype=dtype)


def stored(bank):
    """The slots oldest first, as a list of (image key, text key, image id, text id)."""
    size, oldest = len(bank.image_ids), int(bank.pointer)
    order = [(oldest + step) % size for step in range(size)]
    slots = [
        (bank.image_keys[i].tolist(), bank.text_keys[i].tolist(),
         int(bank.image_ids[i]), int(bank.text_ids[i]))
        for i in order
    ]
    return [slot for slot in slots if slot[2] != EMPTY]


def enqueue(bank, queue, batch, first_id):
    """Put one random batch into the bank and into its model."""
    images, texts = rows(batch), rows(batch)
    image_ids = torch.arange(first_id, first_id + batch)
    text_ids = image_ids + 1000
    bank.enqueue(images, texts, image_ids, text_ids)
    queue.extend(zip(images.tolist(), texts.tolist(), image_ids.tolist(), text_ids.tolist(),
                     strict=True))


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_is_first_in_first_out_at_any_batch_size(size):
    torch.manual_seed(size)
    sizes = [1, size] + [random.Random(size).randint(1, size) for _ in range(20)] + [size, 1]
    bank, queue = MemoryBank(size, 3), deque(maxlen=size)
    for step, batch in enumerate(sizes):
        enqueue(bank, queue, batch, 100 * step)
        assert stored(bank) == list(queue)
        assert len(bank) == len(queue)
        assert int(bank.pointer) == sum(sizes[: step + 1]) % size


def test_slots_are_written_in_order_and_wrap():
    bank = MemoryBank(4, 3)
    bank.enqueue(rows(3), rows(3), torch.tensor([10, 11, 12]))
    assert bank.image_ids.tolist() == [10, 11, 12, EMPTY] and len(bank) == 3
    bank.enqueue(rows(3), rows(3), torch.tensor([13, 14, 15]))
    assert bank.image_ids.tolist() == [14, 15, 12, 13]


def test_starts_empty_and_marks_what_it_does_not_know():
    bank = MemoryBank(4, 3)
    assert len(bank) == 0
    assert bank.image_ids.tolist() == bank.text_ids.tolist() == [EMPTY] * 4
    assert bank.image_ids.dtype == bank.text_ids.dtype == torch.int64
    assert not bank.image_keys.any() and not bank.text_keys.any()
    bank.enqueue(rows(4), rows(4), torch.arange(4), torch.arange(4))
    bank.enqueue(rows(2), rows(2), torch.tensor([7, 8]))  # overwrites known captions
    assert bank.image_ids.tolist() == [7, 8, 2, 3]
    assert bank.text_ids.tolist() == [EMPTY, EMPTY, 2, 3]


def test_keeps_no_gradient():
    bank = MemoryBank(4, 3)
    weight = rows(2).requires_grad_()
    bank.enqueue(weight, 2 * weight, torch.tensor([0, 1]))
    for buffer in bank.buffers():
        assert not buffer.requires_grad and buffer.grad_fn is None
    assert torch.equal(bank.text_keys[:2], 2 * weight.detach())


def test_keeps_a_copy():
    bank, images = MemoryBank(2, 3), rows(2)
    bank.enqueue(images, rows(2), torch.tensor([0, 1]))
    before = bank.image_keys.clone()
    images.zero_()
    assert torch.equal(bank.image_keys, before)


def test_bfloat16_keys_enter_a_float32_bank():
    bank, images = MemoryBank(4, 3), rows(2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        bank.enqueue(images, 2 * images, torch.tensor([0, 1]))
    assert bank.image_keys.dtype == bank.text_keys.dtype == torch.float32
    assert torch.equal(bank.image_keys[:2], images.float())
    assert torch.equal(bank.text_keys[:2], 2 * images.float())


def test_state_dict_round_trip_continues_the_queue():
    bank, queue = MemoryBank(5, 3), deque(maxlen=5)
    enqueue(bank, queue, 3, 0)
    enqueue(bank, queue, 4, 10)
    loaded = MemoryBank(5, 3)
    loaded.load_state_dict(bank.state_dict())
    assert stored(loaded) == list(queue)
    enqueue(loaded, queue, 2, 20)
    assert stored(loaded) == list(queue)


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        ((5, 3), (5, 3), r"batch of 5 does not fit a memory bank of 4 slots"),
        ((2, 2), (2, 3), r"shape \(2, 3\), got \(2, 2\) and \(2, 3\)"),
        ((2, 3), (2, 4), r"shape \(2, 3\), got \(2, 3\) and \(2, 4\)"),
        ((2, 3), (1, 3), r"shape \(2, 3\), got \(2, 3\) and \(1, 3\)"),
    ],
)
def test_refuses_what_does_not_fit_and_stays_as_it_was(images, texts, message):
    bank = MemoryBank(4, 3)
    with pytest.raises(ValueError, match=message):
        bank.enqueue(torch.ones(images), torch.ones(texts), torch.arange(images[0]))
    assert len(bank) == 0 and not bank.image_keys.any() and int(bank.pointer) == 0


@pytest.mark.parametrize(("size", "dim"), [(0, 3), (4, 0)])
def test_refuses_a_bank_of_nothing(size, dim):
    with pytest.raises(ValueError, match=f"above 0, got {size} and {dim}"):
        MemoryBank(size, dim)


@pytest.mark.parametrize("ids", [
    {"image_ids": torch.zeros(3, 1, dtype=torch.int64)},
    {"text_ids": torch.zeros(2, dtype=torch.int64)},
])
def test_refuses_ids_of_another_shape_and_keeps_the_bank_whole(ids):
    bank, keys = MemoryBank(4, 2), torch.ones(3, 2)
    with pytest.raises(ValueError, match="ids of shape"):
        bank.enqueue(keys, keys, **{"image_ids": torch.arange(3)} | ids)
    assert len(bank) == 0 and not bank.image_keys.any()


def test_the_bank_leaves_the_slot_of_a_bad_key_empty():
    bank, ids = MemoryBank(6, 3), torch.arange(4)
    images, texts = torch.ones(4, 3), torch.ones(4, 3)
    images[1, 2], texts[3, 0] = torch.nan, torch.inf
    bank.enqueue(images, texts, ids, ids + 10)
    assert bank.image_ids.tolist() == [0, EMPTY, 2, EMPTY, EMPTY, EMPTY]
    assert bank.text_ids.tolist() == [10, EMPTY, 12, EMPTY, EMPTY, EMPTY]
    assert int(bank.pointer) == 4 and len(bank) == 2
    assert all_finite(bank.state_dict())
