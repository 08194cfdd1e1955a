"""The posterior by evidence: two similarities, and what its Gaussians are fitted to."""

import math

import numpy as np
import pytest
import torch
from helpers import oracle
from helpers.cases import FLOOR, SAMPLERS, SETTINGS, embeddings, sample_by
from helpers.runs import (
    CPU,
    assert_same,
    command,
    events,
    expect_exit,
    expect_one_line,
    final_state,
)
from helpers.stopping import signal_after
from torch._subclasses import FakeTensorMode

import checkpoint
import negative_sampling
import train
from fne_loss import NO_NEGATIVE, FNELoss, RunningBivariateGaussian, false_negative_posterior
from memory_bank import EMPTY, MemoryBank
from training.options import parse

IDS = [1, 1, 2, 3, 3, 3, 4, 5, 6, 7]  # of photos; the captions are numbered on
TEXTS = [10, 11, 20, 30, 31, 32, 40, 50, 60, 70]


def make_case(dtype=torch.float64, fitted=True):
    """A batch with several captions of a photo, a bank with others, and one that it repeats."""
    torch.manual_seed(4)
    bank = MemoryBank(30, 9).to(dtype)
    for _ in range(2):
        ids = torch.randint(1, 10, (10,))
        bank.enqueue(*embeddings(10, 9, dtype)[2:], ids, 10 * ids + torch.randint(0, 5, (10,)))
    bank.text_ids[3] = EMPTY  # a caption that is not known
    criterion = FNELoss(**SETTINGS | {"prior": 0.2}, posterior_floor=FLOOR, posterior="evidence")
    for _ in range(4):
        criterion.update_statistics(*embeddings(12, 9, dtype)[:2], torch.arange(12))
    if fitted:
        rows = torch.randn(2, 300, 2, dtype=torch.float64) * 0.15 + torch.tensor([[[0.6, 0.7]],
                                                                               [[0.4, 0.5]]])
        rows[..., 1] += 0.4 * rows[..., 0]
        for gaussian, x in zip((criterion.same, criterion.different), rows):
            gaussian.add(negative_sampling.pair_moments(*x.T, 300))
    return criterion, bank, [*embeddings(len(IDS), 9, dtype), torch.tensor(IDS)]


def draw(criterion, bank, inputs, mine=slice(None)):
    images, texts, *rest = inputs
    return criterion.draw(images[mine], texts[mine], *rest, bank, first=mine.start or 0,
                          text_ids=torch.tensor(TEXTS))


def slow_evidence(inputs, bank):
    """By direction: (s, r) of each anchor and candidate, as lists, and which are of one photo."""
    images, texts, image_keys, text_keys, _ = oracle.lists(*inputs)
    captions = text_keys + bank.text_keys.tolist()
    photos = image_keys + bank.image_keys.tolist()
    ids, numbers = IDS + bank.image_ids.tolist(), TEXTS + bank.text_ids.tolist()
    found, same = [], []
    for anchors, candidates in ((images, captions), (texts, photos)):
        rows = []
        for i, anchor in enumerate(anchors):
            known = [i] + [k for k in range(len(ids)) if ids[k] == IDS[i]
                           and numbers[k] != TEXTS[i] and numbers[k] >= 0]
            rows.append([(oracle.dot(anchor, candidates[j]), np.mean(
                [oracle.dot(captions[k], captions[j]) for k in known if k != j] or [1.0]))
                for j in range(len(ids))])
            same.append([rows[-1][j] for j in known[1:]])
        found.append(rows)
    return found, [pair for pairs in same for pair in pairs], ids


def slow_posterior(x, sides, prior):
    """Bayes' rule of two Gaussians, with the densities themselves."""
    values = []
    for mean, covariance in sides:
        gap = np.array(x) - mean
        values.append(math.exp(-0.5 * gap @ np.linalg.inv(covariance) @ gap)
                      / (2 * math.pi * math.sqrt(np.linalg.det(covariance))))
    return prior * values[0] / (prior * values[0] + (1 - prior) * values[1])


def sides_of(criterion):
    return [(g.mean.numpy(), (g.m2 / (g.count - 1)).numpy())
            for g in (criterion.same, criterion.different)]


# -------------------------------------------------------------------------------------- the formula


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("prior", [0.01, 0.4])
def test_posterior_is_bayes_rule_of_two_dimensional_gaussians(dtype, tolerance, prior):
    criterion, *_ = make_case()
    x = torch.rand(7, 20, 2, dtype=torch.float64)
    got = false_negative_posterior(
        x[..., 0].to(dtype), criterion.same, criterion.different, prior, x[..., 1].to(dtype))
    wanted = [[slow_posterior(pair, sides_of(criterion), prior) for pair in row.tolist()]
              for row in x]
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), torch.tensor(wanted, dtype=torch.float64), rtol=0,
                               atol=tolerance)
    assert 0.2 < got.double().std() / got.double().mean() and got.max() > 2 * prior


def test_posterior_of_evidence_is_finite_where_it_has_no_spread_and_in_the_tails():
    criterion, *_ = make_case(fitted=False)
    for count in 0, 1, 300:
        for gaussian in (criterion.same, criterion.different):
            gaussian.reset()
            gaussian.add(negative_sampling.pair_moments(*torch.full((2, count), 0.5), count))
        tails = torch.tensor([-1e3, -1.0, 0.5, 1.0, 1e3])
        got = false_negative_posterior(tails, criterion.same, criterion.different, 0.01, tails)
        assert ((got >= 0) & (got <= 1)).all()


def test_running_evidence_has_the_moments_of_all_that_it_was_given():
    torch.manual_seed(0)
    fitted = RunningBivariateGaussian()
    batches = [torch.randn(n, 2).double() @ torch.rand(2, 2).double() + 5
               for n in (1, 0, 7, 300, 0, 2)]
    for batch in batches:
        fitted.add(negative_sampling.pair_moments(batch[:, 0], batch[:, 1], len(batch)))
    whole = torch.cat(batches).numpy()
    assert fitted.count == len(whole) == 310
    np.testing.assert_allclose(fitted.mean.numpy(), whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(fitted.m2.numpy() / 309, np.cov(whole.T), rtol=1e-9)
    before = [buffer.clone() for buffer in fitted.buffers()]
    fitted.add(negative_sampling.pair_moments(torch.tensor([0.1, torch.nan]), torch.ones(2), 2))
    assert all(map(torch.equal, fitted.buffers(), before))  # a step that is not finite
    fitted.reset()
    assert not any(buffer.any() for buffer in fitted.buffers())


# -------------------------------------------------------------------------------------- in the loss


def look(monkeypatch, way, part):
    sample_by(monkeypatch, way, part)
    monkeypatch.setattr(negative_sampling, "PROPOSALS", 40)  # nearly always enough


@pytest.mark.parametrize(("way", "part"), SAMPLERS)
def test_draws_report_the_posterior_by_evidence(monkeypatch, way, part):
    look(monkeypatch, way, part)
    criterion, bank, inputs = make_case()
    evidence, _, _ = slow_evidence(inputs, bank)
    for rows, found in zip(evidence, draw(criterion, bank, inputs)):
        for i, negative in enumerate(found.indices.tolist()):
            assert negative != NO_NEGATIVE
            wanted = slow_posterior(rows[i][negative], sides_of(criterion), criterion.prior)
            assert found.posterior[i].item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("way", "part"), SAMPLERS)
@pytest.mark.parametrize("barred", [False, True])
def test_what_draws_saw_is_what_the_gaussians_get(monkeypatch, way, part, barred):
    """Of one photo and two captions, and of different photos: what a slow loop sees, in both
    directions; without what is barred further."""
    look(monkeypatch, way, part)
    criterion, bank, inputs = make_case(fitted=False)
    evidence, same, ids = slow_evidence(inputs, bank)
    further = torch.rand(2, len(IDS), len(ids)) < (0.4 if barred else -1.0)
    draws = criterion.draw(*inputs, bank, also_excluded=further if barred else (None, None),
                           text_ids=torch.tensor(TEXTS))
    criterion.add_evidence(draws[0].evidence + draws[1].evidence)
    different = [rows[i][j] for rows, out in zip(evidence, further) for i in range(len(IDS))
                 for j in range(len(ids)) if not (oracle.is_excluded(IDS[i], ids[j]) or out[i][j])]
    for gaussian, pairs in ((criterion.same, same), (criterion.different, different)):
        assert gaussian.count == len(pairs) > 20
        np.testing.assert_allclose(gaussian.mean.numpy(), np.mean(pairs, axis=0), rtol=1e-8)
        np.testing.assert_allclose(gaussian.m2.numpy() / (len(pairs) - 1),
                                   np.cov(np.array(pairs).T), rtol=1e-6)


@pytest.mark.parametrize(("way", "part"), [("exact", 2**18), ("rejection", 200)])
def test_draw_frequencies_are_the_weights_by_evidence(monkeypatch, way, part):
    sample_by(monkeypatch, way, part)
    criterion, bank, inputs = make_case()
    criterion.tau, criterion.margin = 3.0, 0.9
    evidence, _, ids = slow_evidence(inputs, bank)
    counts = torch.zeros(2, len(ids))
    torch.manual_seed(0)
    for _ in range(1000):
        for side, found in enumerate(draw(criterion, bank, inputs)):
            counts[side, found.indices[3]] += 1
    for rows, drawn in zip(evidence, counts):
        own = rows[3][3][0]
        weights = []
        for j, (s, r) in enumerate(rows[3]):
            p = slow_posterior((s, r), sides_of(criterion), criterion.prior)
            out = oracle.is_excluded(IDS[3], ids[j]) or s <= criterion.positive.mean - 0.9
            weights.append(0.0 if out else math.exp(-3 * (p if p > FLOOR else (s - own) ** 2)))
        weights = torch.tensor(weights)
        expected = 1000 * weights / weights.sum()
        assert not drawn[weights == 0].any() and max(weights) > 4 * min(weights[weights > 0])
        kept = weights > 0
        statistic = ((drawn - expected).square()[kept] / expected[kept]).sum()
        assert statistic < kept.sum() + 4 * math.sqrt(2 * kept.sum())  # once in 10,000 by chance


@pytest.mark.parametrize(("way", "part"), SAMPLERS)
def test_two_processes_draw_and_see_what_one_does(monkeypatch, way, part):
    sample_by(monkeypatch, way, part)
    monkeypatch.setattr(negative_sampling, "PROPOSALS", 1)
    found = []
    for mine in slice(0, 10), slice(0, 4), slice(4, 10):
        criterion, bank, inputs = make_case()
        torch.manual_seed(3)
        found.append(draw(criterion, bank, inputs, mine))
    for whole, *halves in zip(*found):
        assert torch.equal(torch.cat([half.indices for half in halves]), whole.indices)
        torch.testing.assert_close(torch.cat([half.posterior for half in halves]), whole.posterior)
        torch.testing.assert_close(sum(half.evidence for half in halves), whole.evidence)


def test_the_published_posterior_asks_for_no_caption():
    published, (criterion, bank, inputs) = FNELoss(), make_case()
    assert len(published.state_dict()) == 6 and len(criterion.state_dict()) == 12
    assert not published.draw(*inputs, bank)[0].evidence.any()
    with pytest.raises(ValueError, match="text_ids"):
        criterion(*inputs, bank)
    with pytest.raises(ValueError, match="published or evidence, got both"):
        FNELoss(posterior="both")


def test_evidence_counts_from_the_next_step_on_and_up_to_min_count_not():
    criterion, bank, inputs = make_case(fitted=False)
    torch.manual_seed(0)
    criterion.min_count = 100
    criterion.positive.count.fill_(101)  # confident pairs, which it asks for as well
    used = []
    for _ in range(8):
        criterion(*inputs, bank, text_ids=torch.tensor(TEXTS))
        used.append((int(criterion.same.count),
                     bool(draw(criterion, bank, inputs)[0].posterior.any())))
    assert [count > 100 for count, _ in used] == [flag for _, flag in used]
    assert {flag for _, flag in used} == {False, True}
    criterion.reset_statistics()
    assert not any(buffer.any() for buffer in criterion.buffers())


# ------------------------------------------------------------------------------------------- a run


def test_a_run_by_evidence_keeps_its_choice_and_goes_on_to_the_bit(
        data, tmp_path, monkeypatch, capsys):
    """In the middle of an epoch, where all Gaussians are half full; its curves have them."""
    arguments = command(data, tmp_path / "whole", "--posterior", "evidence")
    train.main(arguments)
    assert {"statistics/same_mean", "statistics/different_texts_mean",
            "statistics/same_count"} <= events(tmp_path / "whole").keys()
    parts = command(data, tmp_path / "parts", "--posterior", "evidence", "--resume", "auto")
    with monkeypatch.context() as patch:
        signal_after(patch, 11)
        expect_exit(parts, 143, capsys, ["step 11 is done and saved"])
    state = checkpoint.read(tmp_path / "parts" / "checkpoint.pth.tar")
    assert state["criterion"]["same.count"] > 20 and state["options"]["prior"] == 0.01
    assert state["options"]["posterior"] == "evidence"
    train.main(parts)
    assert_same(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))
    path = str(tmp_path / "parts" / "checkpoint.pth.tar")
    expect_one_line(["--resume", path, *CPU, "--data_path", str(data), "--posterior", "published"],
                    "--posterior published does not fit", capsys)


def test_the_prior_by_evidence_is_a_hundredth_unless_it_is_given():
    for flags, prior in (([], 0.03), (["--posterior", "evidence"], 0.01),
                         (["--posterior", "evidence", "--prior", "0.2"], 0.2)):
        assert parse("", ["--dataset", "shapes", *flags])[0].prior == prior


def test_a_step_by_evidence_reads_no_number_back():
    """Fake tensors have no data, so whatever would make a GPU wait for a number raises here."""
    with FakeTensorMode():
        criterion, bank = FNELoss(posterior="evidence"), MemoryBank(20, 6)
        images, texts = (torch.rand(8, 6, requires_grad=True) for _ in range(2))
        keys, ids = torch.rand(2, 8, 6), torch.arange(8) // 2
        criterion.update_statistics(images, texts, ids)
        criterion(images, texts, *keys, ids, bank, text_ids=torch.arange(8)).backward()
        bank.enqueue(*keys, ids, torch.arange(8))
