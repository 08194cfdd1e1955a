"""Random numbers of a step. They follow from `--seed` and the step, so none of them is saved."""

import numpy as np
import torch

from common.ranks import rank


def seed_dropout(seed: int, step: int) -> None:
    """Seed PyTorch for the dropout of a step, differently in each process.

    Args:
        seed: of `--seed`.
        step: steps done before this one.
    """
    seed_stream(seed, step, 1, rank())


def seed_draws(seed: int, step: int) -> None:
    """Seed PyTorch for the negatives drawn in a step, alike in all processes.

    Args:
        seed: of `--seed`.
        step: steps done before this one.
    """
    seed_stream(seed, step, 0, 0)


def seed_stream(*entropy: int) -> None:
    """Seed PyTorch's default generators from several numbers."""
    numbers = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    torch.manual_seed(int(numbers[0] >> 1))
