"""Posterior, weights and draws against `oracle.py` and closed forms."""

import math

import pytest
import torch
from helpers import oracle
from helpers.cases import (
    CASES,
    DTYPES,
    SAMPLERS,
    SETTINGS,
    directions,
    draw_one_direction,
    embeddings,
    gaussian,
    make_case,
    oracle_weights,
    sample_by,
)

import fne_loss
import negative_sampling
from fne_loss import NO_NEGATIVE, FNELoss
from memory_bank import EMPTY, MemoryBank

# Posterior and weights

GAUSSIANS = {
    "apart": (gaussian(0.7, 0.004), gaussian(0.35, 0.006)),
    "equal": (gaussian(0.6, 0.01), gaussian(0.3, 0.01)),
    "narrow_negative": (gaussian(0.5, 0.02), gaussian(0.4, 0.001)),
    "needles": (gaussian(0.9, 1e-6), gaussian(0.1, 2e-6)),
}


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize("prior", [1e-4, 0.3])
def test_posterior_is_the_oracles_in_the_middle_and_in_both_tails(name, prior, dtype, tolerance):
    values = torch.cat([torch.linspace(-1, 1, 41), torch.tensor([-1e3, -10.0, 10.0, 1e3])])
    values = values.to(dtype).reshape(9, 5)
    got = fne_loss.false_negative_posterior(values, *GAUSSIANS[name], prior)
    sides = [oracle.Statistics(g.count.item(), g.mean.item(), g.m2.item()) for g in GAUSSIANS[name]]
    wanted = [[oracle.posterior(v, *sides, prior) for v in row] for row in values.tolist()]
    assert got.dtype == dtype and (got >= 0).all() and (got <= 1).all()
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_posterior_in_the_tails_belongs_to_the_wider_gaussian(dtype):
    tails = torch.tensor([-1e3, 1e3], dtype=dtype)
    for name, wanted in {"apart": [0, 0], "narrow_negative": [1, 1], "equal": [0, 1]}.items():
        assert fne_loss.false_negative_posterior(tails, *GAUSSIANS[name], 1e-4).tolist() == wanted


def test_posterior_with_equal_variances_is_a_rising_logistic_curve():
    values = torch.linspace(-1, 2, 61, dtype=torch.float64)
    got = fne_loss.false_negative_posterior(values, *GAUSSIANS["equal"], 0.1)
    slope, middle = (0.6 - 0.3) / 0.01, (0.6 + 0.3) / 2
    wanted = torch.sigmoid(slope * (values - middle) + math.log(0.1 / 0.9))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    assert (got.diff() >= 0).all() and got[0] < 1e-6 and got[-1] > 1 - 1e-6


def test_posterior_of_statistics_without_spread_is_finite():
    values = torch.tensor([-1.0, 0.3, 0.5, 1.0])
    for counts in [(0, 0), (1, 1), (300, 300)]:
        sides = gaussian(0.5, 0.0, counts[0]), gaussian(0.3, 0.0, counts[1])
        got = fne_loss.false_negative_posterior(values, *sides, 1e-4)
        assert got.tolist() == [0, 0, 1, 1]  # the nearer of two needles


@pytest.mark.parametrize("name", CASES)
def test_excluded_are_the_own_photo_and_empty_slots(name):
    case = make_case(name)
    got = fne_loss.excluded_candidates(case.inputs[-1], torch.tensor(case.candidate_ids))
    assert got.tolist() == [[oracle.is_excluded(own, other) for other in case.candidate_ids]
                            for own in case.ids]


@pytest.mark.parametrize("way", ["exact", "rejection"])
@pytest.mark.parametrize("part", [3, 2**18])  # a few slots at a time, or all together
@pytest.mark.parametrize("name", CASES)
def test_what_is_excluded_further_has_no_weight_and_is_never_drawn(name, part, way, monkeypatch):
    """Neither among the batch nor in the bank, nor as the hardest where no candidate has weight."""
    case = make_case(name)
    sample_by(monkeypatch, way, part * len(case.ids))
    excluded = torch.rand(2, len(case.ids), len(case.candidate_ids)) < 0.6
    own = [[oracle.is_excluded(ids, other) for other in case.candidate_ids] for ids in case.ids]
    allowed = ~(excluded | torch.tensor(own))
    for margin in SETTINGS["margin"], -2.0:  # which cuts all
        case.criterion.margin = margin
        expected = [torch.tensor(oracle_weights(case, anchors, keys, margin=margin)) * mine
                    for mine, (anchors, keys) in zip(allowed, directions(case))]
        for _ in range(50):
            draws = case.criterion.draw(*case.inputs, case.bank, also_excluded=excluded)
            for draw, mine, weights in zip(draws, allowed, expected):
                assert draw.counts.tolist() == [weights.count_nonzero(), mine.sum()]
                for anchor, drawn in enumerate(draw.indices.tolist()):
                    assert mine[anchor, drawn] if mine[anchor].any() else drawn == NO_NEGATIVE
                    assert weights[anchor, drawn] > 0 or not weights[anchor].any()


@pytest.mark.parametrize("way", ["exact", "rejection"])
def test_one_direction_alone_may_have_excluded_further(monkeypatch, way):
    sample_by(monkeypatch, way, 2**18)
    case = make_case("wrapped")
    shape = len(case.ids), len(case.candidate_ids)
    for side in 0, 1:
        mask = [None, None]
        mask[side] = torch.ones(shape, dtype=torch.bool)
        draws = case.criterion.draw(*case.inputs, case.bank, also_excluded=mask)
        assert (draws[side].indices == NO_NEGATIVE).all()
        assert (draws[1 - side].indices >= 0).all()


def test_the_bound_of_the_cut_down_is_mean_minus_margin():
    bound = fne_loss.cut_down_bound(gaussian(0.7, 0.01), 0.2)
    assert bound.shape == () and bound.item() == pytest.approx(0.5, abs=1e-15)


def small_weights(similarity, positive, negative, **changes):
    options = {"margin": 0.25, "tau": 2.0, "prior": 0.5, "posterior_floor": 0.5, "min_count": 200}
    similarity = torch.tensor([similarity])
    return fne_loss.sampling_weights(
        similarity, torch.tensor([0.75]), similarity < -1, positive, negative, **options | changes
    )[0].tolist()


def test_posterior_is_used_from_one_confident_pair_more_than_min_count():
    for count, wanted in ((199, 0.02), (200, 0.02), (201, 1.0), (202, 1.0)):
        sides = gaussian(0.8, 0.001, count), gaussian(0.3, 0.001)
        got = small_weights([0.85], *sides, margin=0.2)
        exponent = 2.0 * (0.01 if wanted < 1 else 1.0)  # tau times distance squared or posterior
        assert got == pytest.approx([math.exp(-exponent)], rel=1e-5)


def test_borders_belong_to_the_cut_and_to_true_negatives():
    """s == mean - margin is cut; a posterior equal to the floor is not suspicious."""
    same = gaussian(0.5, 0.01), gaussian(0.5, 0.01)  # posterior = prior = 0.5 exactly
    got = small_weights([0.125, 0.25, 0.5, 1.0], *same)
    assert got == pytest.approx([0, 0, math.exp(-2 * 0.0625), math.exp(-2 * 0.0625)])
    assert small_weights([0.5], *same, posterior_floor=0.49) == pytest.approx([math.exp(-1)])


def test_reported_posterior_is_zero_until_it_is_used():
    case = make_case("wrapped")
    count = case.criterion.positive.count.item()
    for min_count, used in ((count, False), (count - 1, True)):
        case.criterion.min_count = min_count
        images, _, _, text_keys, ids = case.inputs
        draw = draw_one_direction(
            case.criterion, images, text_keys, case.bank.text_keys, ids, case.bank.image_ids)
        assert draw.posterior.any().item() == used


# Draws


def chi_square(drawn, weights):
    """Pearson's statistic of drawn indices against probabilities weights / sum."""
    counts = torch.bincount(drawn, minlength=len(weights)).double()
    weights = torch.as_tensor(weights, dtype=torch.float64)
    assert not counts[weights == 0].any(), "drew a candidate without weight"
    expected = len(drawn) * weights / weights.sum()
    return (((counts - expected).square() / expected)[weights > 0]).sum().item()


@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_draw_frequencies_are_the_weights(scale):
    torch.manual_seed(0)
    weights = torch.tensor([1, 0, 0.9, 0.6, 0.01, 0.3, 0.5, 0.5, 0.2, 0.05, 0.7, 0])
    rows = (scale * weights).expand(200_000, 12)
    drawn = fne_loss.sample_negatives(rows, torch.full((200_000,), 1))
    # 10 candidates with weight: 9 degrees of freedom, exceeded by chance once in a thousand.
    assert chi_square(drawn, weights) < 27.88


def test_rows_without_weight_take_their_fallback():
    weights = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.0]])
    fallback = torch.tensor([2, 0, NO_NEGATIVE])
    assert fne_loss.sample_negatives(weights, fallback).tolist() == [2, 1, NO_NEGATIVE]


@pytest.mark.parametrize(("way", "part", "proposals"), [
    (*look, count) for look in SAMPLERS for count in ((1, 6) if look[0] == "rejection" else (6,))])
def test_draw_frequencies_through_the_loss_leave_out_excluded_and_empty_slots(
        monkeypatch, way, part, proposals):
    """100 equal anchors of one photo, so only the bank has candidates. In it the photo itself
    (slot 9) and two empty slots are as similar as can be, and must not be drawn."""
    sample_by(monkeypatch, way, part)  # 12 slots at a time, 4 or 1
    monkeypatch.setattr(negative_sampling, "PROPOSALS", proposals)  # half are not accepted
    case = make_case("wrapped")
    case.criterion.tau, case.criterion.prior = 3.0, 0.5
    axes = torch.eye(7, dtype=torch.float64)
    cosines = torch.tensor([0.1, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 0.95, 1, 1, 1])[:, None]
    bank_keys = cosines * axes[0] + (1 - cosines**2).sqrt() * axes[1]
    bank_ids = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 0, EMPTY, EMPTY])
    key = 0.8 * axes[0] + 0.6 * axes[2]
    anchors, keys = axes[0].expand(100, 7), key.expand(100, 7)
    ids = torch.zeros(100, dtype=torch.int64)
    torch.manual_seed(0)
    draws = [draw_one_direction(case.criterion, anchors, keys, bank_keys, ids, bank_ids)
             for _ in range(200)]
    slots = torch.cat([draw.indices for draw in draws]) - 100  # (20000,)
    case.ids, case.candidate_ids = [0], [0, *bank_ids.tolist()]
    candidates = oracle.lists(key, *bank_keys)
    weights = oracle_weights(case, oracle.lists(axes[0]), candidates, tau=3.0, prior=0.5)[0][1:]
    assert [weight > 0 for weight in weights] == [False] + 8 * [True] + 3 * [False]
    assert max(weights) > 4 * min(weights[1:9])
    assert (slots >= 0).all()
    assert chi_square(slots, weights) < 24.32  # 7 degrees of freedom, by chance 1 in 1000


@pytest.mark.parametrize(("way", "part"), [("exact", 2**18), ("exact", 50),
                                           ("rejection", 2**18), ("rejection", 50)])
@pytest.mark.parametrize("name", ["partly_filled", "captions_of_one_photo"])
def test_every_candidate_with_weight_is_drawn_and_no_other(monkeypatch, name, way, part):
    sample_by(monkeypatch, way, part)
    case = make_case(name)
    seen = [[set() for _ in case.ids] for _ in range(2)]
    for _ in range(300):
        draws = case.criterion.draw(*case.inputs, case.bank)
        for direction, draw in zip(seen, draws):
            for row, negative in zip(direction, draw.indices.tolist()):
                row.add(negative)
    for (anchors, candidates), direction in zip(directions(case), seen):
        fallback = oracle.fallbacks(anchors, candidates, case.ids, case.candidate_ids)
        for i, weights in enumerate(oracle_weights(case, anchors, candidates)):
            wanted = {c for c, weight in enumerate(weights) if weight} or {fallback[i]}
            assert direction[i] == wanted


@pytest.mark.parametrize("part", [1, 20, 77])
@pytest.mark.parametrize("name", ["partly_filled", "wrapped", "captions_of_one_photo"])
def test_a_bank_looked_at_in_parts_gives_the_same(monkeypatch, sampled, name, part):
    """Weights, share that is cut, and the hardest candidate where all weights are 0."""
    case = make_case(name)

    def look(part):
        sample_by(monkeypatch, "exact", part)
        sampled.clear()
        draws = case.criterion.draw(*case.inputs, case.bank)
        count = len(sampled) // 2  # parts, each of both directions
        weights = [torch.cat([weights for weights, _ in sampled[side::2]], dim=1)
                   for side in (0, 1)]
        return count, weights, [draw.cut_share for draw in draws], [draw.indices for draw in draws]

    _, weights, cut, _ = look(2**18)
    count, weights_in_parts, cut_in_parts, _ = look(part)
    assert count > 1
    torch.testing.assert_close(weights_in_parts, weights, rtol=1e-12, atol=1e-12)
    assert cut_in_parts == cut
    case.criterion.positive.mean.fill_(10.0)  # all is cut, so the hardest is drawn everywhere
    torch.testing.assert_close(look(part)[-1], look(2**18)[-1])


@pytest.mark.parametrize(("way", "part"), SAMPLERS[3:])
@pytest.mark.parametrize("barred", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_rejection_counts_and_falls_back_as_exact_sampling_does(
        monkeypatch, name, barred, way, part):
    """Candidates that are allowed and that have weight; the hardest where all weights are 0."""
    case = make_case(name)
    further = torch.rand(2, len(case.ids), len(case.candidate_ids)) < 0.3 if barred else [None] * 2

    def look(way, part):
        sample_by(monkeypatch, way, part)
        return case.criterion.draw(*case.inputs, case.bank, also_excluded=further)

    wanted = look("exact", 2**18), look(way, part)
    for whole, draw in zip(*wanted):
        assert torch.equal(draw.counts, whole.counts)
        assert torch.equal(draw.indices == NO_NEGATIVE, whole.indices == NO_NEGATIVE)
    case.criterion.positive.mean.fill_(10.0)
    for whole, draw in zip(look("exact", 2**18), look(way, part)):
        assert torch.equal(draw.indices, whole.indices)
        assert torch.equal(draw.counts, whole.counts) and draw.counts[0] == 0


def test_same_photo_candidates_are_those_that_are_excluded():
    """Also where ids are far apart but end in the same 16 bits."""
    torch.manual_seed(0)
    ids = torch.randint(0, 9, (30,)) + 2**16 * torch.randint(0, 3, (30,))
    candidates = ids[torch.randint(0, 30, (200,))] + 2**16 * torch.randint(0, 2, (200,))
    for empty in False, True:
        (anchors, listed), empties = negative_sampling.same_photo_candidates(
            negative_sampling.Candidates((), torch.cat([ids, candidates]), slice(len(ids))))
        wanted = fne_loss.excluded_candidates(ids, torch.cat([ids, candidates]))
        got = torch.zeros_like(wanted)
        got[anchors, listed] = True
        assert (listed.diff() >= 0).all() and 80 < len(listed) < 2000
        assert (empties is not None) == empty
        assert torch.equal(got | empties if empty else got, wanted)
        candidates[::7] = EMPTY


@pytest.mark.parametrize(("way", "part"), SAMPLERS)
def test_an_anchor_that_is_not_finite_draws_nothing_and_no_other_is_disturbed(
        monkeypatch, way, part):
    sample_by(monkeypatch, way, part)
    case = make_case("wrapped")
    images, *rest = case.inputs
    images[2] = torch.nan
    i2t, t2i = case.criterion.draw(images, *rest, case.bank)
    assert i2t.indices[2] == NO_NEGATIVE
    assert (i2t.indices[[0, 1, 3, 4, 5, 6, 7]] >= 0).all() and (t2i.indices >= 0).all()


@pytest.mark.parametrize("name", CASES)
def test_both_directions_together_draw_what_one_after_the_other_does(monkeypatch, name):
    """With the same random numbers, so that a run is repeated by any version that draws so."""
    sample_by(monkeypatch, "exact", 2**18)
    case = make_case(name)
    images, texts, image_keys, text_keys, ids = case.inputs
    for seed in range(20):
        torch.manual_seed(seed)
        together = [draw.indices for draw in case.criterion.draw(*case.inputs, case.bank)]
        torch.manual_seed(seed)
        apart = [draw_one_direction(
                     case.criterion, anchors, keys, bank_keys, ids, case.bank.image_ids).indices
                 for anchors, keys, bank_keys in ((images, text_keys, case.bank.text_keys),
                                                  (texts, image_keys, case.bank.image_keys))]
        torch.testing.assert_close(together, apart, rtol=0, atol=0)


def test_large_steps_on_a_cpu_draw_by_rejection(monkeypatch):
    samplers = []

    def record(sampler):
        def call(*arguments):
            samplers.append(sampler.__name__)
            return sampler(*arguments)
        monkeypatch.setattr(negative_sampling, sampler.__name__, call)

    record(negative_sampling.sample_exact)
    record(negative_sampling.sample_by_rejection)
    for size in 8100, 8224:  # the published bank is of the second
        bank, ids = MemoryBank(size, 4), torch.arange(32)
        FNELoss()(*embeddings(32, 4, torch.float32), ids, bank)
    assert samplers == ["sample_exact", "sample_by_rejection"]


# ------------------------------------------------------------------- several processes, half a bank


@pytest.mark.parametrize("name", ["wrapped", "captions_of_one_photo", "two_of_one_photo"])
@pytest.mark.parametrize(("way", "part", "proposals"), [
    ("exact", 2**18, 6), ("exact", 7, 6), ("rejection", 2**18, 1), ("rejection", 7, 1),
    ("rejection", 7, 6)])
def test_a_share_of_a_batch_draws_what_the_whole_does(monkeypatch, name, way, part, proposals):
    """The first pair alone, then the rest, with the random numbers of the whole; and it leaves the
    random numbers that come then, whether a proposal was taken or not."""
    sample_by(monkeypatch, way, part)
    monkeypatch.setattr(negative_sampling, "PROPOSALS", proposals)
    case, after = make_case(name), []
    images, texts, image_keys, text_keys, ids = case.inputs

    def draws(mine):
        torch.manual_seed(3)
        found = case.criterion.draw(images[mine], texts[mine], image_keys, text_keys, ids,
                                    case.bank, first=mine.start)
        after.append(torch.rand(()))
        return found, case.criterion.hinge_of(images[mine], texts[mine], *found) * (
            mine.stop - mine.start)

    (whole, loss), *shares = map(draws, (slice(0, len(ids)), slice(0, 1), slice(1, len(ids))))
    assert sum(share for _, share in shares).item() == pytest.approx(loss.item())
    for side in 0, 1:
        parts = [found[side] for found, _ in shares]
        assert torch.equal(torch.cat([draw.indices for draw in parts]), whole[side].indices)
        # A product of one row may be rounded otherwise than one of several rows.
        torch.testing.assert_close(torch.cat([draw.posterior for draw in parts]),
                                   whole[side].posterior, rtol=1e-12, atol=0)
        assert torch.equal(sum(draw.counts for draw in parts), whole[side].counts)
    assert len({*map(float, after)}) == 1


@pytest.mark.parametrize("dim, size", [(128, 1024), (768, 8224)])
def test_a_bank_in_half_precision_draws_nearly_alike(dim, size):
    """With the same random numbers, from keys that are rounded to eight bits."""
    torch.manual_seed(0)
    images, texts, *_ = embeddings(size, dim, torch.float32)
    banks = MemoryBank(size, dim), MemoryBank(size, dim, torch.bfloat16)
    assert banks[0].text_keys.nbytes == 2 * banks[1].text_keys.nbytes
    criterion, drawn = FNELoss(), []
    criterion.positive, criterion.negative = gaussian(0.6, 0.01), gaussian(0.5, 0.01)
    for bank in banks:
        bank.enqueue(images, texts, torch.arange(size) + 1000)
        torch.manual_seed(1)
        drawn.append(draw_one_direction(
            criterion, images[:64], texts[:64], bank.text_keys, torch.arange(64),
            bank.image_ids).indices)
    assert (images @ (banks[0].text_keys - banks[1].text_keys).T).abs().max() < 1e-3
    assert (drawn[0] == drawn[1]).float().mean() > 0.8
