"""Exact search finds what a slow loop finds, in any blocks, and keeps equal photos in order."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from searching import exact
from searching.exact import best_rows


def unit_rows(count, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator), dim=1)


def slowly(query, embeds, count):
    """Return (cosine, row) in double precision, the best first; equal cosines by row."""
    products = [(sum(float(a) * float(b) for a, b in zip(query, row)), number)
                for number, row in enumerate(embeds.tolist())]
    return sorted(products, key=lambda pair: (-round(pair[0], 12), pair[1]))[:count]


@pytest.mark.parametrize("count", [1, 5, 60, 1000])
@pytest.mark.parametrize("block", [8, 100, 8 * 23, 10**6])
def test_a_slow_loop_finds_the_same(block, count):
    embeds, queries = unit_rows(60, 8), unit_rows(7, 8, seed=1)
    for query, best in zip(queries, best_rows(queries, embeds, count, block)):
        wanted = slowly(query.tolist(), embeds, count)
        assert best.rows.tolist() == [row for _, row in wanted]
        assert best.scores == pytest.approx([score for score, _ in wanted], abs=1e-12)


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("block", [16, 5 * 16, 10**6])
def test_equal_photos_come_in_their_order_with_one_score(block, count):
    """Equal photos may be in different blocks, whose products a library may round differently."""
    embeds = unit_rows(50, 16)
    embeds[[3, 17, 18, 29, 41, 49]] = embeds[30].clone()
    [best] = best_rows(embeds[30:31], embeds, count, block)
    assert best.rows.tolist()[:7] == [3, 17, 18, 29, 30, 41, 49][:count]
    assert len(set(best.scores[:7].tolist())) == 1 and best.scores[0] == pytest.approx(1)


def test_other_queries_and_blocks_change_no_score():
    embeds, queries = unit_rows(3000, 96), unit_rows(300, 96, seed=1)
    all_at_once = best_rows(queries, embeds, 20)
    for number in 0, 255, 256, 299:
        [alone] = best_rows(queries[number : number + 1], embeds, 20, block=96 * 7)
        assert np.array_equal(alone.rows, all_at_once[number].rows)
        assert np.array_equal(alone.scores, all_at_once[number].scores)


def test_rows_that_are_equal_in_float32_are_ranked_in_float64():
    """The rows differ by less than the rounding of float32 products."""
    random = torch.Generator().manual_seed(0)
    base = unit_rows(1, 512)
    embeds = F.normalize(base + 1e-7 * torch.randn(400, 512, generator=random), dim=1)
    wanted = (embeds.double() @ base[0].double())
    [best] = best_rows(base, embeds, 10, block=512 * 33)
    assert best.scores == pytest.approx(wanted.sort(descending=True).values[:10].numpy(), abs=1e-15)
    assert len(set(best.rows.tolist())) == 10


def test_blocks_that_get_better_and_better_are_searched(monkeypatch):
    """Each block is better than all before it, and more rows are near the best than are rescored.
    """
    monkeypatch.setattr(exact, "MOST_RESCORED", 5)
    query = unit_rows(1, 8)
    steps = torch.linspace(0.9, 0.1, 300)[:, None]
    embeds = F.normalize(query + steps * unit_rows(300, 8, seed=2), dim=1)
    order = (embeds.double() @ query[0].double()).argsort()
    [best] = best_rows(query, embeds[order], 12, block=8 * 20)
    assert best.rows.tolist() == list(range(299, 287, -1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3.0])
def test_rows_that_are_no_embeddings_are_refused(bad):
    embeds = unit_rows(10, 4)
    embeds[7, 2] = bad
    with pytest.raises(ValueError):
        best_rows(unit_rows(2, 4, seed=1), embeds, 3)
