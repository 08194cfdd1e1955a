"""P(match) of a teacher in each objective: bars that nothing passes, and negatives that count less.

The teacher here is a table of random probabilities, so that every number can be computed slowly.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import oracle
from helpers.cases import SAMPLERS, make_case, sample_by
from helpers.steps import make_run, recorded, run_with_a_bank
from torch import nn

import train
from fne_loss import NO_NEGATIVE, rank_batch

CAPTIONS = 200
BAR = 0.4
IN_BATCH = [(["--loss", "triplet"], 0), (["--loss", "triplet"], 2), (["--loss", "infonce"], 2),
            (["--loss", "sigmoid"], 2), ([], 0)]  # the last is FNE's warm-up
TEACHER = "--teacher", "captions"


class TableTeacher(nn.Module):
    """P(match) from a table (captions, photos)."""

    def __init__(self):
        super().__init__()
        self.table = torch.rand(CAPTIONS, CAPTIONS, generator=torch.Generator().manual_seed(7))

    def posterior(self, image_ids, text_ids):
        known = (image_ids >= 0)[:, None] & (text_ids >= 0)
        return self.table[text_ids.clamp(min=0)[None], image_ids.clamp(min=0)[:, None]] * known


def with_table(run):
    teacher = TableTeacher()
    run.objective.set_teacher(teacher)
    return teacher.table


def step_of(run, batch, epoch):
    """A step with random similarities, for a loss of the batch alone; and their leaf."""
    similarity = torch.rand(16, 16, generator=torch.Generator().manual_seed(5)).requires_grad_()
    step = SimpleNamespace(batch=batch, similarity=similarity, epoch=epoch, number=0,
                           ranking=rank_batch(similarity, batch.image_ids))
    return step, similarity


def objective_of(run):
    """The loss of the batch alone: that of FNE's warm-up, where there is one."""
    return getattr(run.objective, "warm_up", run.objective)


@pytest.mark.parametrize("flags, epoch", IN_BATCH)
def test_nothing_above_the_bar_is_repelled(tmp_path, flags, epoch):
    """A loss moves a similarity that it repels: the gradient tells which."""
    def repelled(*more):
        run, [batch, _] = make_run(tmp_path, *flags, *more)
        table = with_table(run)
        step, similarity = step_of(run, batch, epoch)
        outcome = objective_of(run)(step)
        gradient, = torch.autograd.grad(outcome.loss, similarity)
        counted = torch.zeros(16, 16).index_put_(
            tuple(ids.expand(outcome.negatives.weights.shape) for ids in
                  (outcome.negatives.text_ids, outcome.negatives.image_ids)),
            outcome.negatives.weights.float(), accumulate=True)
        return (gradient.T > 0).fill_diagonal_(False), counted > 0, table[:16, :16], outcome.logs

    plain, _, table, logs = repelled()
    barred, counted, _, barred_logs = repelled(*TEACHER, "--match_bar", str(BAR))
    above = table > BAR
    assert (plain & above).any() and not (barred & above).any() and barred.any()
    assert counted.any() and not (counted & above).fill_diagonal_(False).any()
    if epoch == 0 or flags[1] in ("infonce", "sigmoid"):
        assert torch.equal(barred, plain & ~above)
    share = above.clone().fill_diagonal_(False).sum() / (16 * 15)
    assert not logs and float(barred_logs["excluded_share"]) == pytest.approx(float(share))


def slow_loss(name, similarity, weights, margin, scale, bias, hardest):
    """A loss whose negatives have weights, in loops over (B, B) lists, images in rows."""
    count, total = len(similarity), 0.0
    s, w = similarity, weights
    for i in range(count):
        others = [j for j in range(count) if j != i]
        if name == "triplet":
            for costs in ([w[i][j] * max(0.0, margin + s[i][j] - s[i][i]) for j in others],
                          [w[j][i] * max(0.0, margin + s[j][i] - s[i][i]) for j in others]):
                total += max(costs) if hardest else sum(costs)
        elif name == "infonce":
            own = math.exp(scale * s[i][i])
            for terms in ([w[i][j] * math.exp(scale * s[i][j]) for j in others],
                          [w[j][i] * math.exp(scale * s[j][i]) for j in others]):
                total -= math.log(own / (own + sum(terms))) / 2
        else:
            total += math.log1p(math.exp(-(scale * s[i][i] + bias)))
            total += sum(w[i][j] * math.log1p(math.exp(scale * s[i][j] + bias)) for j in others)
    return total / count


@pytest.mark.parametrize("flags, epoch", IN_BATCH)
def test_a_negative_counts_one_minus_p(tmp_path, flags, epoch):
    run, [batch, _] = make_run(tmp_path, *flags, *TEACHER)
    assert run.options.posterior == "teacher"
    table = with_table(run)
    step, similarity = step_of(run, batch, epoch)
    objective = objective_of(run)
    outcome = objective(step)
    name = flags[1] if flags else "triplet"
    scale, bias = (float(torch.as_tensor(getattr(objective, key, 0.0)).detach())
                   for key in ("log_scale", "bias"))
    wanted = slow_loss(name, similarity.tolist(), (1 - table[:16, :16].T).tolist(),
                       run.options.margin, math.exp(scale), bias, epoch > 0)
    assert float(outcome.loss.detach()) == pytest.approx(wanted, rel=1e-5)


def test_of_weighted_costs_the_highest_is_told(tmp_path):
    """The negatives that are logged are those that the loss repels."""
    run, [batch, _] = make_run(tmp_path, "--loss", "triplet", *TEACHER)
    with_table(run)
    step, similarity = step_of(run, batch, 2)
    outcome = run.objective(step)
    gradient, = torch.autograd.grad(outcome.loss, similarity)
    repelled = (gradient > 0).fill_diagonal_(False)
    told = torch.zeros(16, 16, dtype=torch.bool)
    counted = outcome.negatives.weights > 0
    told[outcome.negatives.image_ids[counted], outcome.negatives.text_ids[counted]] = True
    assert torch.equal(told, repelled)


# ---------------------------------------------------------------------------------------------- FNE


@pytest.mark.parametrize("cut", [0.2, -2.0])
def test_nothing_above_the_bar_is_drawn_from_batch_and_bank(tmp_path, cut):
    """The second cut leaves nothing but the fallback."""
    run, batch = run_with_a_bank(tmp_path, *TEACHER, "--match_bar", str(BAR), "--margin",
                                 str(max(cut, 0)))
    run.objective.criterion.margin = cut
    table, bank = with_table(run), run.objective.bank
    bank.text_ids.copy_(torch.randperm(CAPTIONS)[: len(bank.text_ids)])
    bank.text_ids[:3] = -100  # captions that are not known are barred by nobody
    texts = torch.cat([batch.text_ids, bank.text_ids])
    images = torch.cat([batch.image_ids, bank.image_ids])
    with pytest.MonkeyPatch.context() as patch:
        draws = recorded(patch, run.objective.criterion, "draw")
        train.training_step(run, batch)
    [(_, both)] = draws
    for pair in range(16):
        i2t, t2i = (int(draw.indices[pair]) for draw in both)
        p = [0.0 if i2t == NO_NEGATIVE or texts[i2t] < 0 else table[texts[i2t], images[pair]],
             0.0 if t2i == NO_NEGATIVE else table[texts[pair], images[t2i]]]
        assert max(p) <= BAR
        for draw, value in zip(both, p):
            assert float(draw.posterior[pair]) == pytest.approx(float(value))
    assert 0.3 < run.logs[-1]["excluded_share"] < 0.8


@pytest.mark.parametrize("sampler, block", [row for row in SAMPLERS if row[1] > 1])
def test_draws_follow_the_weights_of_the_given_posterior(monkeypatch, sampler, block):
    """In both samplers: shares of 1,000 draws against the formula."""
    case = make_case("captions_of_one_photo")
    sample_by(monkeypatch, sampler, block)
    case.criterion.tau, case.criterion.margin = 3.0, 1.0
    count, size = len(case.ids), len(case.candidate_ids)
    generator = torch.Generator().manual_seed(2)
    given = tuple(torch.rand(count, size, generator=generator, dtype=torch.float64)
                  for _ in range(2))
    images, texts, image_keys, text_keys, ids = case.inputs
    times, counts = 1000, torch.zeros(count, size)
    torch.manual_seed(3)
    for _ in range(times):
        i2t, _ = case.criterion.draw(images, texts, image_keys, text_keys, ids, case.bank,
                                     match_posterior=given)
        counts[torch.arange(count), i2t.indices] += 1
    anchors, candidates = images.tolist(), text_keys.tolist() + case.bank.text_keys.tolist()
    bound = float(case.criterion.cut_down_bound())
    for row in range(count):
        weights = []
        for column in range(size):
            s = oracle.dot(anchors[row], candidates[column])
            s_own = oracle.dot(anchors[row], candidates[row])
            p = float(given[0][row, column])
            exponent = p if p > case.criterion.posterior_floor else (s - s_own) ** 2
            allowed = (case.candidate_ids[column] not in (case.ids[row], -100)) and s > bound
            weights.append(math.exp(-3.0 * exponent) * allowed)
        wanted = torch.tensor(weights) / sum(weights)
        spread = (wanted * (1 - wanted) / times).sqrt()
        assert ((counts[row] / times - wanted).abs() <= 5 * spread + 1e-9).all()


def test_forward_takes_it_too():
    case = make_case("wrapped")
    given = tuple(torch.rand(len(case.ids), len(case.candidate_ids)) for _ in range(2))
    torch.manual_seed(1)
    loss = case.criterion(*case.inputs, case.bank, match_posterior=given)
    torch.manual_seed(1)
    draws = case.criterion.draw(*case.inputs, case.bank, match_posterior=given)
    assert float(loss) == float(case.criterion.hinge_of(*case.inputs[:2], *draws))
    for draw, values in zip(draws, given):
        drawn = values.gather(1, draw.indices.clamp(min=0)[:, None])[:, 0]
        assert torch.equal(draw.posterior, drawn.where(draw.indices >= 0, 0.0))
