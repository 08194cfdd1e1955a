"""The candidates that the figures show, against slow loops from the formulas."""

import numpy as np
import pytest
import torch
from helpers import oracle
from helpers.cases import (
    CASES,
    FLOOR,
    SETTINGS,
    directions,
    draw_one_direction,
    make_case,
    oracle_weights,
)

from figures.picks import fixed_choice, picks, top_wrong_leads
from fne_loss import FNELoss
from negative_sampling import pair_moments


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [1, 3])
def test_picks_are_those_of_a_slow_loop_over_the_bank(name, count, sampled):
    """The draw is replaced by the candidate with the largest weight, which a loop can find."""
    case = make_case(name)
    images, texts, image_keys, text_keys, ids = case.inputs
    item_ids = torch.arange(len(case.candidate_ids)) // 2  # neighbours are copies of each other
    for i2t, (anchors, candidates) in zip((True, False), directions(case)):
        got = picks(case.criterion, images if i2t else texts, text_keys if i2t else image_keys,
                    case.bank.text_keys if i2t else case.bank.image_keys, ids,
                    case.bank.image_ids, item_ids, count)
        weights = oracle_weights(case, anchors, candidates)
        hardest_of = oracle.fallbacks(anchors, candidates, case.ids, case.candidate_ids)
        for row, similarity in enumerate(oracle.similarities(anchors, candidates)):
            allowed = [c for c in range(len(candidates))
                       if not oracle.is_excluded(case.ids[row], case.candidate_ids[c])]
            drawn = None if not allowed else (
                max(allowed, key=weights[row].__getitem__) if any(weights[row])
                else hardest_of[row])
            assert got[row].drawn == drawn
            assert got[row].hardest == distinct(allowed, similarity, count)
            posterior = [oracle.posterior(value, *case.statistics, SETTINGS["prior"])
                         for value in similarity]
            seen = {c // 2 for c in [drawn, *got[row].hardest[:1]] if c is not None}
            cut = case.statistics[0].mean - SETTINGS["margin"]
            suspects = [c for c in allowed
                        if posterior[c] > FLOOR and posterior[c] > SETTINGS["prior"]
                        and similarity[c] > cut and c // 2 not in seen]
            assert got[row].suspects == distinct(suspects, posterior, count)


def distinct(candidates, scores, count):
    """Return the candidates with the highest scores, one of each pair of neighbours."""
    found = []
    for candidate in sorted(candidates, key=scores.__getitem__, reverse=True):
        if candidate // 2 not in [other // 2 for other in found]:
            found.append(candidate)
    return found[:count]


def test_picks_take_no_random_number_and_change_nothing():
    case = make_case("wrapped")
    images, _, _, text_keys, ids = case.inputs
    before = torch.get_rng_state(), *(buffer.clone() for buffer in case.criterion.buffers())
    arguments = (case.criterion, images, text_keys, case.bank.text_keys, ids, case.bank.image_ids,
                 torch.arange(len(case.candidate_ids)))
    first, torch_state = picks(*arguments), torch.get_rng_state()
    torch.randn(5)
    assert [pick.drawn for pick in picks(*arguments)] == [pick.drawn for pick in first]
    after = torch_state, *case.criterion.buffers()
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_before_the_posterior_is_used_there_are_no_suspects():
    case = make_case("wrapped")
    images, _, _, text_keys, ids = case.inputs
    arguments = (images, text_keys, case.bank.text_keys, ids, case.bank.image_ids,
                 torch.arange(len(case.candidate_ids)))
    case.criterion.min_count = int(case.criterion.positive.count)
    early, control = picks(case.criterion, *arguments), picks(None, *arguments)
    assert all(pick.posterior is None and pick.suspects == [] for pick in early + control)
    assert all(pick.drawn is not None for pick in early)
    assert all(pick.drawn is None and len(pick.hardest) == 3 for pick in control)


def test_the_far_tail_of_a_wide_positive_gaussian_has_no_suspects():
    """Far below both Gaussians the wider one is larger again, where nothing is ever drawn."""
    criterion = FNELoss(prior=0.5, min_count=1)
    criterion.positive.update(torch.tensor([0.5, 0.9]))
    criterion.negative.update(torch.tensor([0.4, 0.44]))
    angles = torch.tensor([0.0, 3.0, 0.3])
    bank_keys = torch.stack([angles.cos(), angles.sin()], dim=1)
    anchor = torch.tensor([[1.0, 0.0]])
    [pick] = picks(criterion, anchor, anchor, bank_keys, torch.tensor([9]), torch.tensor([1, 2, 3]),
                   torch.arange(4))
    assert pick.posterior[2] > 0.99 and float(pick.similarity[2]) < -0.9
    assert pick.drawn != 2 and 2 not in pick.suspects and pick.hardest == [1, 3, 2]


@pytest.mark.parametrize("match_bar", [None, 0.3])
def test_picks_by_a_teacher_are_those_of_a_slow_loop(match_bar, sampled):
    """Its P(match) takes the posterior's place, and above the bar nothing is drawn or hardest."""
    case = make_case("wrapped")
    images, _, _, text_keys, ids = case.inputs
    item_ids = torch.arange(len(case.candidate_ids))
    teacher = torch.rand(len(ids), len(item_ids), generator=torch.Generator().manual_seed(1))
    teacher[:, ::3] = 0  # of these the teacher knows nothing
    chosen = picks(case.criterion, images, text_keys, case.bank.text_keys, ids,
                   case.bank.image_ids, item_ids, match_posterior=teacher.to(images.dtype),
                   match_bar=match_bar)
    anchors, candidates = directions(case)[0]
    cut, tau = case.statistics[0].mean - SETTINGS["margin"], SETTINGS["tau"]
    drawn_by_weight = barred = 0
    for row, similarity in enumerate(oracle.similarities(anchors, candidates)):
        p = teacher[row].tolist()
        others = [c for c in range(len(p))
                  if not oracle.is_excluded(case.ids[row], case.candidate_ids[c])]
        allowed = [c for c in others if match_bar is None or p[c] <= match_bar]
        weight = {c: np.exp(-tau * p[c]) if p[c] > FLOOR
                  else np.exp(-tau * (similarity[c] - similarity[row]) ** 2)
                  for c in allowed if similarity[c] > cut}
        hardest = sorted(allowed, key=similarity.__getitem__, reverse=True)
        assert chosen[row].drawn == (max(weight, key=weight.get) if weight
                                     else hardest[0] if hardest else None)
        assert chosen[row].hardest == hardest[:3]
        assert chosen[row].posterior.tolist() == pytest.approx(p)
        line = max(FLOOR, SETTINGS["prior"])
        suspects = [c for c in others if p[c] > line and similarity[c] > cut
                    and c not in [chosen[row].drawn, *hardest[:1]]]
        assert chosen[row].suspects == sorted(suspects, key=p.__getitem__, reverse=True)[:3]
        drawn_by_weight += bool(weight)
        barred += len(others) - len(allowed)
    assert drawn_by_weight and bool(barred) == (match_bar is not None)


def test_leads_of_wrong_results_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(7, 4)), rng.normal(size=(9, 4))
    right = rng.random((7, 9)) < 0.3
    right[:, 0] = True
    leads, found = top_wrong_leads(*map(torch.from_numpy, (queries, items, right)))
    for row, similarity in enumerate(queries @ items.T):
        wrong = np.where(right[row], -np.inf, similarity)
        assert found[row] == wrong.argmax()
        assert float(leads[row]) == pytest.approx(wrong.max() - similarity[right[row]].max())


def test_a_fixed_choice_is_always_the_same():
    before = torch.get_rng_state()
    assert fixed_choice(4, 100) == fixed_choice(4, 100) and len(set(fixed_choice(4, 100))) == 4
    assert fixed_choice(4, 3) and torch.equal(before, torch.get_rng_state())


def test_picks_by_evidence_are_of_both_similarities():
    """The posterior shown is that of the draw, which knows the captions too."""
    case = make_case("captions_of_one_photo")
    criterion = FNELoss(**SETTINGS, posterior_floor=FLOOR, posterior="evidence")
    for target, source in zip((criterion.positive, criterion.negative),
                              (case.criterion.positive, case.criterion.negative)):
        target.load_state_dict(source.state_dict())
    for gaussian, mean in (criterion.same, 0.7), (criterion.different, 0.4):
        x = mean + 0.1 * torch.randn(100, 2, dtype=torch.float64)
        gaussian.add(pair_moments(*x.T, 100))
    images, texts, image_keys, text_keys, ids = case.inputs
    text_ids = torch.arange(len(case.candidate_ids))
    case.bank.text_ids.copy_(text_ids[len(ids):])
    arguments = (text_keys, case.bank.text_keys, ids, case.bank.image_ids)
    captions = text_keys, case.bank.text_keys, text_ids
    chosen = picks(criterion, images, *arguments, text_ids, captions=captions)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draw = draw_one_direction(criterion, images, *arguments, captions=captions)
    for pick, negative, wanted in zip(chosen, draw.indices.tolist(), draw.posterior.tolist()):
        assert pick.drawn == negative
        assert pick.posterior[negative].item() == pytest.approx(wanted, rel=1e-9)
    other = picks(criterion, images, *arguments, text_ids)
    assert (other[0].posterior - chosen[0].posterior).abs().max() > 0.1
