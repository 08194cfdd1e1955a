"""What is measured of a run, against slow loops; and that measuring changes nothing of it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import oracle
from helpers.cases import embeddings
from helpers.runs import assert_same
from helpers.steps import clone, kept, make_run, run_on_its_way

from data import NO_PHOTO, Batch
from fne_loss import NO_NEGATIVE, DrawnNegatives, FNELoss, cosine, rank_batch
from memory_bank import MemoryBank
from training import monitor
from training.objectives.base import hardest_negatives
from training.objectives.fne import BINS, count_similarities
from training.true_matches import TrueMatches

# --------------------------------------------------------------------------------------- histograms


def test_the_histograms_count_what_the_statistics_take():
    """Bin by bin against a loop, and in number and mean against the Gaussians of the same data."""
    torch.manual_seed(3)
    criterion, counts = FNELoss(), torch.zeros(2, BINS, dtype=torch.int64)
    wanted = np.zeros((2, BINS), dtype=int)
    for ids in ([4], [5, 5], [0, 0, 1, 2, 2, 3, 4], list(range(20)), list(range(30))):
        images, texts, _, _ = embeddings(len(ids), 6, torch.float32)
        ranking = rank_batch(cosine(images, texts), torch.tensor(ids))
        criterion.add_ranking(ranking)
        count_similarities(counts, ranking)
        similarity = (images @ texts.T).tolist()
        for row in range(len(ids)):
            if oracle.is_confident(similarity, row, ids):
                wanted[0, int((similarity[row][row] + 1) / 2 * BINS)] += 1
                for matrix in (similarity, oracle.transposed(similarity)):
                    for found in [oracle.negatives(matrix, row, ids)]:
                        if found:
                            wanted[1, int((max(found) + 1) / 2 * BINS)] += 1
    assert (counts.numpy() == wanted).all() and wanted[0].sum() > 10
    centres = (torch.arange(BINS) + 0.5) * 2 / BINS - 1
    for row, gaussian in zip(counts, (criterion.positive, criterion.negative)):
        assert row.sum() == gaussian.count
        assert float((row * centres).sum() / row.sum()) == pytest.approx(
            float(gaussian.mean), abs=1 / BINS)


# --------------------------------------------------------------------- share of the false negatives

IDS, TEXTS = [3, 8, 3, 5, 0], [7, 2, 6, 1, 9]  # photos and captions of a batch
BANK_IDS, BANK_TEXTS = [1, 4, 6, 2, 7, 1, 8], [0, 3, 5, 4, 8, 10, 11]


def random_matches(share):
    """(12, 9) which of 12 captions are true of which of 9 photos."""
    return torch.rand(12, 9, generator=torch.Generator().manual_seed(1)) < share


def batch_of(image_ids, text_ids):
    """Pairs without pixels and words."""
    nothing = torch.empty(len(image_ids), 0)
    return Batch(nothing, nothing, nothing, torch.tensor(image_ids), torch.tensor(text_ids),
                 torch.full((len(image_ids),), NO_PHOTO))


def drawn(negatives):
    """A draw of which only these candidate indices are known."""
    return DrawnNegatives(torch.tensor(negatives), None, None, None, None, None)


def share_of_drawn(run, batch, draws, matches):
    """The share of true matches among what FNE drew."""
    step = SimpleNamespace(batch=batch)
    return TrueMatches(matches).share_of(*run.objective.drawn_negatives(step, *draws))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("negatives", [
    ([1, 5, 11, NO_NEGATIVE, 6], [4, NO_NEGATIVE, 8, 10, NO_NEGATIVE]),
    ([NO_NEGATIVE] * 5, [7, 3, 9, 5, 2]), ([2, 3, 4, 0, 1], [5, 6, 7, 8, 9])])
def test_the_share_of_false_negatives_is_that_of_a_loop_over_the_drawn(tmp_path, share, negatives):
    """Those that were not drawn, -1, count neither as true matches nor as negatives."""
    matches, batch = random_matches(share), batch_of(IDS, TEXTS)
    run, _ = make_run(tmp_path)
    run.objective.bank = MemoryBank(7, 4)
    run.objective.bank.image_ids.copy_(torch.tensor(BANK_IDS))
    run.objective.bank.text_ids.copy_(torch.tensor(BANK_TEXTS))
    got = share_of_drawn(run, batch, map(drawn, negatives), matches)
    false = used = 0
    for pair in range(5):
        i2t, t2i = negatives[0][pair], negatives[1][pair]
        if i2t != NO_NEGATIVE:
            used += 1
            false += int(matches[(TEXTS + BANK_TEXTS)[i2t], IDS[pair]])
        if t2i != NO_NEGATIVE:
            used += 1
            false += int(matches[TEXTS[pair], (IDS + BANK_IDS)[t2i]])
    assert got.item() == pytest.approx(false / used)


@pytest.mark.parametrize("ids", [IDS, [3, 3, 3, 3, 0]])
def test_the_share_of_false_negatives_is_that_of_a_loop_over_the_hardest(ids):
    """Of the triplet loss, which takes the most similar of the batch."""
    matches, similarity, batch = random_matches(0.4), torch.rand(5, 5), batch_of(ids, TEXTS)
    ranking = rank_batch(similarity, batch.image_ids)
    got = TrueMatches(matches).share_of(*hardest_negatives(ranking, batch))
    false = []
    for pair in range(5):
        others = [other for other in range(5) if ids[other] != ids[pair]]
        text = max(others, key=lambda other: similarity[pair, other])
        image = max(others, key=lambda other: similarity[other, pair])
        false += [matches[TEXTS[text], ids[pair]], matches[TEXTS[pair], ids[image]]]
    assert got.item() == pytest.approx(sum(map(int, false)) / 10)


def test_a_batch_of_one_photo_and_an_empty_bank_have_no_share(tmp_path):
    """Nothing can be drawn, so there is nothing to have a share of."""
    embeds, matches = embeddings(3, 4, torch.float32), random_matches(1.0)
    batch, (run, _) = batch_of([3, 3, 3], TEXTS[:3]), make_run(tmp_path)
    run.objective.bank = bank = MemoryBank(7, 4)
    draws = FNELoss().draw(*embeds, batch.image_ids, bank)
    assert all(draw.indices.tolist() == [NO_NEGATIVE] * 3 for draw in draws)
    assert math.isnan(share_of_drawn(run, batch, draws, matches))
    ranking = rank_batch(cosine(*embeds[:2]), batch.image_ids)
    assert math.isnan(TrueMatches(matches).share_of(*hardest_negatives(ranking, batch)))


# --------------------------------------------------------------------------------- values for a log


def test_values_are_means_since_the_last_time_without_steps_left_out(tmp_path):
    run, _ = run_on_its_way(tmp_path)
    first, second = (float(logs["loss"]) for logs in run.logs)
    run.logs.append({name: torch.tensor(torch.nan) for name in run.logs[0]})
    values = monitor.take_values(run)
    assert values["train/loss"] == pytest.approx((first + second) / 2) and first != second
    assert all(type(value) is float for value in values.values())
    assert {tag.split("/")[0] for tag in values} == {"train", "statistics", "bank", "time"}
    assert values["bank/fill"] == pytest.approx(32 / 40)
    assert run.logs == [] and not monitor.logs_due(run)


def test_logs_are_due_every_so_many_steps_and_not_without_any(tmp_path):
    run, _ = run_on_its_way(tmp_path, "--log_step", "4")
    due = []
    for run.global_step in range(1, 9):
        due.append(monitor.logs_due(run))
    assert due == [False, False, False, True] * 2
    run.logs.clear()
    assert not monitor.logs_due(run)


def test_taking_values_changes_nothing_of_the_run(tmp_path):
    run, _ = run_on_its_way(tmp_path)
    before, state = clone(kept(run)), torch.get_rng_state()
    parts = run.objective.criterion, run.objective.bank
    statistics = [buffer.clone() for part in parts for buffer in part.buffers()]
    monitor.take_values(run)
    assert torch.equal(torch.get_rng_state(), state)
    buffers = [buffer for part in parts for buffer in part.buffers()]
    assert all(map(torch.equal, statistics, buffers))
    assert_same(kept(run), before)
