"""The deliberate difference 13: negatives below 0, ties, and far tails of the posterior.

What the released program computes there is written down below as formulas.
"""

import math

import pytest
import torch

from fne_loss import (
    FNELoss,
    RunningGaussian,
    confident_pairs,
    false_negative_posterior,
    rank_batch,
    sampling_weights,
)
from metrics.retrieval import retrieval_ranks


def released_hardest(similarity):
    """Return (B,): the diagonal is multiplied by 0, so that it takes part as a negative of 0."""
    return (similarity * (1 - torch.eye(len(similarity)))).amax(dim=1)


def released_confident(similarity):
    """Return (B,) bool: the first of several best ones is the best."""
    numbers = torch.arange(len(similarity))
    return (similarity.argmax(dim=1) == numbers) & (similarity.argmax(dim=0) == numbers)


def released_posterior(similarity, positive, negative, prior):
    """Return Bayes' rule on the densities themselves, in float32."""
    def density(gaussian):
        variance = gaussian.variance
        return (-(similarity - gaussian.mean) ** 2 / (2 * variance)).exp() / (
            2 * math.pi * variance).sqrt()

    return prior * density(positive) / (
        prior * density(positive) + (1 - prior) * density(negative))


def fitted(mean, deviation):
    """Return a Gaussian fitted to 300 values."""
    gaussian = RunningGaussian()
    values = torch.linspace(-1, 1, 300, dtype=torch.float64)
    gaussian.update((mean + deviation * values / values.std()).float())
    return gaussian


# ---------------------------------------------------------------------------------- 13 (a): below 0


@pytest.mark.parametrize("negative, released", [(-0.3, 0.0), (0.1, 0.1)])
def test_fidelity_note_13_a_hardest_negative_may_lie_below_0(negative, released):
    """Where it lies above 0, both programs agree."""
    similarity = torch.full((4, 4), negative).fill_diagonal_(0.9)
    criterion = FNELoss()
    criterion.add_ranking(rank_batch(similarity, torch.arange(4)))
    assert criterion.negative.count == 8
    assert float(criterion.negative.mean) == pytest.approx(negative)
    assert released_hardest(similarity).tolist() == pytest.approx([released] * 4)


# ------------------------------------------------------------------------------------- 13 (b): ties


def test_fidelity_note_13_of_two_photos_with_one_caption_no_pair_is_confident():
    """Photos 0 and 1 have the same caption; photo 2 has its own, on which both agree."""
    similarity = torch.tensor([[0.8, 0.8, 0.1], [0.7, 0.7, 0.1], [0.2, 0.2, 0.9]])
    assert confident_pairs(similarity, torch.arange(3)).tolist() == [False, False, True]
    assert released_confident(similarity).tolist() == [True, False, True]


def test_fidelity_note_13_the_rank_of_a_tie_does_not_depend_on_its_position():
    """As released, the caption that stands first is ranked first of two that are equal."""
    images, texts = torch.eye(2), torch.tensor([[0.6, 0.8], [0.6, 0.8]])
    first, _ = retrieval_ranks(images, texts, torch.tensor([0, 1]))
    last, _ = retrieval_ranks(images, texts, torch.tensor([1, 0]))
    assert first.tolist() == last.tolist() == [1, 1]
    by_position = (-(images @ texts.T)).argsort(dim=1, stable=True).tolist()
    assert by_position == [[0, 1], [0, 1]]  # so caption 0 has rank 0, and caption 1 rank 1


# ------------------------------------------------------------------------------- 13 (c): far tails


def test_fidelity_note_13_in_a_far_tail_the_posterior_is_1_and_the_weight_that_of_a_match():
    """Both densities are 0 in float32 at a similarity of 0.99; nearer, both programs agree."""
    positive, negative = fitted(0.6, 0.02), fitted(0.2, 0.03)
    near, far = torch.tensor([0.55, 0.6]), torch.tensor([0.99])
    assert torch.allclose(false_negative_posterior(near, positive, negative, 1e-4),
                          released_posterior(near, positive, negative, 1e-4), atol=1e-5)
    assert released_posterior(far, positive, negative, 1e-4).isnan().all()
    assert false_negative_posterior(far, positive, negative, 1e-4) == 1
    own = torch.tensor([0.7])
    [[weight]] = sampling_weights(
        far[None], own, torch.zeros(1, 1, dtype=torch.bool), positive, negative, margin=0.2,
        tau=0.5, prior=1e-4, posterior_floor=1e-3, min_count=200).tolist()
    assert weight == pytest.approx(math.exp(-0.5 * 1))  # of p = 1
    # NaN is above no floor, so that it counts as a true negative there.
    released = math.exp(-0.5 * (0.99 - 0.7) ** 2)
    assert abs(weight - released) > 0.3
