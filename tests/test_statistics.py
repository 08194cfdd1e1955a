"""The running Gaussians, and what a batch gives to them, against `oracle.py` and by hand."""

import pytest
import torch
from helpers import oracle
from helpers.cases import DTYPES, embeddings

import fne_loss
from fne_loss import FNELoss, RunningGaussian, cosine, rank_batch

# ------------------------------------------------------------------------------------ the Gaussians

VALUES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
SHAPES = [(0,), (1,), (5,), (2, 3), (0,), (40,)]


def batches_of_values(dtype):
    """Batches of similarities of any shape, with gradient, as embeddings would give them."""
    torch.manual_seed(0)
    return [0.3 + 0.1 * torch.randn(shape, dtype=dtype).requires_grad_() for shape in SHAPES]


def assert_equal(fitted, wanted):
    """A `RunningGaussian` holds what `oracle.Statistics` holds, in double precision."""
    assert fitted.count.item() == wanted.count
    assert fitted.mean.item() == pytest.approx(wanted.mean, rel=1e-12)
    assert fitted.m2.item() == pytest.approx(wanted.m2, rel=1e-12)
    assert fitted.variance.item() == pytest.approx(wanted.variance, rel=1e-12)


@VALUES
def test_running_gaussian_is_the_oracles(dtype):
    """After each batch, and in double precision whatever the values come in."""
    fitted, wanted = RunningGaussian(), oracle.Statistics()
    assert_equal(fitted, wanted)  # both start at 0
    for values in batches_of_values(dtype):
        fitted.update(values)
        wanted.update(values.flatten().tolist())
        assert_equal(fitted, wanted)
    assert wanted.count == 52


@VALUES
def test_a_mask_lets_in_what_the_oracle_is_given(dtype):
    """What is masked out may be anything, even infinite."""
    fitted, wanted = RunningGaussian(), oracle.Statistics()
    for values in batches_of_values(dtype):
        mask = torch.rand(values.shape) < 0.5
        fitted.update(values.masked_fill(~mask, -torch.inf), mask)
        wanted.update(values[mask].tolist())
        assert_equal(fitted, wanted)
    assert 20 < wanted.count < 40


@VALUES
def test_a_mask_that_lets_nothing_in_changes_nothing(dtype):
    fitted = RunningGaussian()
    for values in batches_of_values(dtype):
        fitted.update(values)
        before = [buffer.clone() for buffer in fitted.buffers()]
        fitted.update(torch.full_like(values, -torch.inf), torch.zeros_like(values, dtype=bool))
        assert all(map(torch.equal, fitted.buffers(), before))


@VALUES
def test_selecting_by_a_mask_and_masking_are_the_same(dtype):
    masked, selected = RunningGaussian(), RunningGaussian()
    for values in batches_of_values(dtype):
        mask = torch.rand(values.shape) < 0.5
        masked.update(values, mask)
        selected.update(values[mask])
        for got, wanted in zip(masked.buffers(), selected.buffers()):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)


def test_a_gaussian_holds_no_gradient_and_forgets():
    fitted = RunningGaussian()
    fitted.update(torch.tensor([0.1, 0.4], requires_grad=True))
    assert not any(buffer.requires_grad for buffer in fitted.buffers())
    assert all(buffer.item() for buffer in fitted.buffers())
    fitted.reset()
    assert [buffer.item() for buffer in fitted.buffers()] == [0, 0, 0]


def test_mean_moves_before_the_deviations_are_taken():
    """By hand: 0 and 2 give m2 = 2; a 4 moves the mean to 2 and adds 4. (Welford's gives 8.)"""
    fitted = RunningGaussian()
    fitted.update(torch.tensor([0.0, 2.0]))
    fitted.update(torch.tensor([4.0]))
    assert (fitted.count.item(), fitted.mean.item(), fitted.m2.item()) == (3, 2, 6)
    assert fitted.variance.item() == 3


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("ids", [[4], [0, 1], [5, 5], [0, 0, 1, 2, 2, 2, 3, 4], list(range(9))])
def test_update_statistics_is_the_oracles(ids, dtype, tolerance):
    torch.manual_seed(len(ids))
    criterion, wanted = FNELoss(), (oracle.Statistics(), oracle.Statistics())
    for _ in range(3):
        images, texts, _, _ = embeddings(len(ids), 5, dtype)
        criterion.update_statistics(images, texts, torch.tensor(ids))
        oracle.update_statistics(*wanted, *oracle.lists(images, texts), ids)
    for got, side in zip((criterion.positive, criterion.negative), wanted):
        assert got.count.item() == side.count
        assert got.mean.item() == pytest.approx(side.mean, abs=tolerance)
        assert got.m2.item() == pytest.approx(side.m2, abs=tolerance)
    criterion.reset_statistics()
    assert not any(buffer.item() for buffer in criterion.buffers())


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 2, 2, 2, 3, 4]])
def test_confident_pairs_are_the_oracles(ids):
    torch.manual_seed(1)
    found = []
    for _ in range(20):
        similarity = torch.rand(8, 8) + 0.5 * torch.eye(8)
        got = fne_loss.confident_pairs(similarity, torch.tensor(ids)).tolist()
        assert got == oracle.confident_pairs(similarity.tolist(), ids)
        found += got
    assert 20 < sum(found) < len(found) - 20


def test_a_tie_is_not_confident():
    similarity = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.5]])
    assert fne_loss.confident_pairs(similarity, torch.arange(3)).tolist() == [False, True, True]
    assert fne_loss.confident_pairs(similarity.T, torch.arange(3)).tolist() == [False, True, True]


# --------------------------------------------------------------------------------- ranks in a batch

BATCHES = pytest.mark.parametrize("ids", [
    [4], [0, 1], [5, 5], [0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 2, 2, 2, 3, 4]])


@BATCHES
def test_rank_batch_is_the_oracles(ids):
    """Pairs, hardest negatives in both directions and where they are, confident pairs."""
    torch.manual_seed(2)
    for _ in range(20):
        similarity = torch.rand(len(ids), len(ids)) + 0.3 * torch.eye(len(ids))
        got = rank_batch(similarity.requires_grad_(), torch.tensor(ids))
        assert all(value.grad_fn is None for value in got)
        rows = similarity.tolist()
        assert got.positive.tolist() == [rows[pair][pair] for pair in range(len(ids))]
        assert got.confident.tolist() == oracle.confident_pairs(rows, ids)
        for direction, matrix in enumerate((rows, oracle.transposed(rows))):
            for pair in range(len(ids)):
                hardest = max(oracle.negatives(matrix, pair, ids), default=-torch.inf)
                assert got.hardest[direction, pair].item() == hardest
                if hardest > -torch.inf:
                    where = got.hardest_at[direction, pair].item()
                    assert matrix[pair][where] == hardest and ids[where] != ids[pair]


@BATCHES
def test_what_is_excluded_further_is_not_ranked(ids):
    torch.manual_seed(4)
    similarity = torch.rand(len(ids), len(ids))
    barred = torch.rand(len(ids), len(ids)) < 0.5
    got = rank_batch(similarity, torch.tensor(ids), barred)
    ways = zip(oracle.both_ways(similarity.tolist()), oracle.both_ways(barred.tolist()))
    for direction, (matrix, out) in enumerate(ways):
        for pair in range(len(ids)):
            rivals = oracle.negatives(matrix, pair, ids, out)
            assert got.hardest[direction, pair] == max(rivals, default=-torch.inf)
            assert not got.confident[pair] or matrix[pair][pair] > max(rivals, default=-torch.inf)


@BATCHES
def test_a_batch_adds_to_the_statistics_by_its_ranks(ids):
    """`update_statistics` of embeddings is `add_ranking` of their ranks."""
    torch.manual_seed(3)
    by_embeddings, by_ranks = FNELoss(), FNELoss()
    for _ in range(3):
        images, texts, _, _ = embeddings(len(ids), 5, torch.float32)
        by_embeddings.update_statistics(images, texts, torch.tensor(ids))
        by_ranks.add_ranking(rank_batch(cosine(images, texts), torch.tensor(ids)))
    assert all(map(torch.equal, by_embeddings.buffers(), by_ranks.buffers()))
    assert by_ranks.positive.count > 0
