"""The exchange between the processes of a run before each step, on the CPU."""

import torch

from common.processes import gather_several
from common.ranks import world_size
from data import Batch


def exchange_ids(batch: Batch, signal: int) -> tuple[Batch, int]:
    """Exchange the ids of a batch's pairs, and whether a signal has come to any process.

    Args:
        batch: the local b pairs, still on the CPU.
        signal: number of the signal that has come to this process, or 0.

    Returns:
        The batch with the ids of all B pairs, and the largest number of all processes.
    """
    if world_size() == 1:
        return batch, signal
    ids = torch.stack([batch.image_ids, batch.text_ids, batch.bad_photos], dim=1)  # (b, 3)
    ids, signals = gather_several(ids, torch.tensor([[signal]]))  # (B, 3), (N, 1)
    image_ids, text_ids, bad_photos = ids.T.contiguous()
    batch = batch._replace(image_ids=image_ids, text_ids=text_ids, bad_photos=bad_photos)
    return batch, int(signals.max())
