"""The best of many embeddings for a query: exact, in blocks, whatever their number.

Embeddings may be mapped from a file: a block is read, compared, and forgotten.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

BLOCK = 2**23  # numbers of a block of embeddings: 32 MB
TOGETHER = 256  # queries compared at a time
MANY = 1_000  # rows of a block that are compared in float64 without a second look
UNIT = 1.001  # largest cosine of unit rows, with room for rounding


class Best(NamedTuple):
    """The K best rows of a query, the best first; of equal ones, the one that comes first."""

    rows: np.ndarray  # (K,) int64
    scores: np.ndarray  # (K,) float64, their cosines


NONE = Best(np.empty(0, dtype=np.int64), np.empty(0))


def best_rows(queries: Tensor, embeds: Tensor, count: int, block: int = BLOCK) -> list[Best]:
    """The `count` best of all rows, or all of them where there are fewer, for each query.

    float32 only sorts out what cannot be among them: by less than its rounding is no row left out.
    The others are compared in float64, row by row, so that neither blocks nor threads nor the
    other queries change a score, and equal photos have equal ones.

    Args:
        queries: (Q, D); embeds: (N, D) unit rows, float32.

    Raises:
        ValueError: these are no unit rows.
    """
    found, step = [NONE] * len(queries), max(1, block // embeds.shape[1])
    for start in range(0, len(embeds), step):
        part = embeds[start : start + step]
        for first in range(0, len(queries), TOGETHER):
            some = queries[first : first + TOGETHER]
            found[first : first + len(some)] = better(
                some, part, start, found[first : first + len(some)], count)
    return found


def better(
    queries: Tensor, part: Tensor, start: int, found: list[Best], count: int
) -> list[Best]:
    """`found`, with what is better in rows (n, D) that begin at `start`."""
    # The rest is numpy's, on one core: threads would wait for each other longer than they work.
    scores = np.ascontiguousarray((part @ queries.T).numpy().T)  # (Q, n)
    if not (scores.min() >= -UNIT and scores.max() <= UNIT):  # nor NaN
        raise ValueError("embeddings that are no unit rows")
    # Two sums of D products of unit rows, each off by at most D times the rounding of float32.
    slack = 2 * part.shape[1] * 2.0**-24
    result = []
    for query, row, best in zip(queries.double().numpy(), scores, found):
        # Once there are K, next to nothing of a block is better, and no sorting is needed to see.
        low = best.scores[-1] if len(best.rows) == count else -np.inf
        at = np.flatnonzero(row >= low - slack)
        if len(at) > max(MANY, count):
            low = max(low, np.partition(row, -count)[-count])
            at = np.flatnonzero(row >= low - slack)
        products = part.numpy()[at] * query  # (n, D) float64
        # A row's sum is that row's alone, whatever is beside it.
        result.append(merged(best, Best(at + start, products.sum(axis=1)), count))
    return result


def merged(left: Best, right: Best, count: int) -> Best:
    """The `count` best of two."""
    rows = np.concatenate([left.rows, right.rows])
    scores = np.concatenate([left.scores, right.scores])
    order = np.lexsort((rows, -scores))[:count]
    return Best(rows[order], scores[order])
