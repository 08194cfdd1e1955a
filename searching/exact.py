"""Exact search: the best of many embeddings for a query, block by block, whatever their number.

The embeddings may be mapped from a file: each block is read, compared and forgotten.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**23  # numbers in a block of embeddings: 32 MB
QUERIES_PER_BLOCK = 256  # queries compared at a time
MOST_RESCORED = 1_000  # rows of a block that are compared in float64 without a second selection
NORM_TOLERANCE = 1e-3  # by which the norm of a unit row may differ from 1
LARGEST_COSINE = (1 + NORM_TOLERANCE) ** 2  # of two unit rows


class Best(NamedTuple):
    """The K best rows for a query, the best first; equal ones in the order of the rows."""

    rows: np.ndarray  # (K,) int64
    scores: np.ndarray  # (K,) float64, their cosines


NO_ROWS = Best(np.empty(0, dtype=np.int64), np.empty(0))


def are_unit_rows(rows: Tensor) -> Tensor:
    """Return which rows have norm 1; those that hold NaN or infinity have not.

    Args:
        rows: (n, D) float32.

    Returns:
        (n,) bool.
    """
    return (torch.linalg.vector_norm(rows, dim=1) - 1).abs() <= NORM_TOLERANCE


def best_rows(queries: Tensor, embeds: Tensor, count: int, block: int = BLOCK) -> list[Best]:
    """Return the `count` rows of `embeds` that are most similar to each query.

    float32 products only discard rows that cannot be among the best, with their rounding allowed
    for. The rows that remain are compared in float64, each by itself, so a score depends neither on
    blocks nor on threads nor on other queries, and equal photos have equal scores.

    Args:
        queries: (Q, D) unit rows, float32.
        embeds: (N, D) unit rows, float32.
        count: K, the results of a query; all N rows are returned where there are fewer.
        block: about how many numbers of `embeds` are compared at a time.

    Returns:
        A `Best` for each query.

    Raises:
        ValueError: the rows are no unit rows.
    """
    best = [NO_ROWS] * len(queries)
    rows_per_block = max(1, block // embeds.shape[1])
    for start in range(0, len(embeds), rows_per_block):
        rows = embeds[start : start + rows_per_block]  # (n, D)
        for first in range(0, len(queries), QUERIES_PER_BLOCK):
            group = slice(first, first + QUERIES_PER_BLOCK)
            best[group] = update_best(best[group], queries[group], rows, start, count)
    return best


def update_best(
    best: list[Best], queries: Tensor, rows: Tensor, start: int, count: int
) -> list[Best]:
    """Return the best rows so far of each query, with better ones of a further block among them.

    Args:
        best: the best of the blocks before, for each query.
        queries: (Q, D) unit rows.
        rows: (n, D) unit rows of the block.
        start: number of the block's first row among all rows.
        count: K, the results of a query.
    """
    # What follows is numpy on one core: threads would wait for each other longer than they work.
    scores = np.ascontiguousarray((rows @ queries.T).numpy().T)  # (Q, n)
    if not (scores.min() >= -LARGEST_COSINE and scores.max() <= LARGEST_COSINE):  # also of NaN
        raise ValueError("embeddings that are no unit rows")
    # Two sums of D products of unit rows, each off by at most D times the rounding of float32.
    slack = 2 * rows.shape[1] * 2.0**-24
    result = []
    for query, query_scores, query_best in zip(queries.double().numpy(), scores, best):
        # Once K rows are found, almost nothing of a block is better, which no sorting has to show.
        lowest = query_best.scores[-1] if len(query_best.rows) == count else -np.inf
        candidates = np.flatnonzero(query_scores >= lowest - slack)
        if len(candidates) > max(MOST_RESCORED, count):
            kth_score = np.partition(query_scores, -count)[-count]
            lowest = max(lowest, kth_score)
            candidates = np.flatnonzero(query_scores >= lowest - slack)
        products = rows.numpy()[candidates] * query  # (c, D) float64
        # The sum of a row is computed from that row alone, whatever rows are beside it.
        found = Best(candidates + start, products.sum(axis=1))
        result.append(merge_best(query_best, found, count))
    return result


def merge_best(left: Best, right: Best, count: int) -> Best:
    """Return the `count` best rows of two results."""
    rows = np.concatenate([left.rows, right.rows])
    scores = np.concatenate([left.scores, right.scores])
    order = np.lexsort((rows, -scores))[:count]
    return Best(rows[order], scores[order])
