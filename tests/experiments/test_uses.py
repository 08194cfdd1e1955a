"""Uses of a likely match: what is likely, from slow loops; and what each use makes of it."""

import itertools
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import assert_same, command, expect_exit, final_state
from helpers.steps import kept, make_run, recorded
from scipy import stats

import train
from data import read_split
from experiments import dose, uses
from experiments.flags import USES, WITNESS_BAR
from experiments.likely_options import LikelyOptions
from experiments.summary import METRICS, summary, uses_table
from experiments.uses import LikelyMatches, infonce_with_likely, use_in_place
from fne_loss import infonce_loss
from metrics.evidence import PRIOR_OF_EVIDENCE
from metrics.judgements import average_precision
from training.objectives import OBJECTIVES

OWNERS = torch.tensor([0, 1, 0, 2, 1, 0, 2, 3])  # photo of each caption


def unit(*shape):
    return F.normalize(torch.randn(shape), dim=-1)


class Pairs:
    """What `LikelyMatches` asks of a batch."""

    def __init__(self, texts):
        self.text_ids = torch.tensor(texts)
        self.image_ids = OWNERS[self.text_ids]


def slow_moments(pairs):
    pairs = np.array(pairs)
    return len(pairs), pairs.mean(axis=0), np.cov(pairs.T, bias=False)


def test_what_is_likely_is_that_of_a_slow_loop():
    """Over three batches, in which a caption is seen twice: r is the mean over all captions of the
    photo as they were last seen, and the statistics are those of the batches before."""
    torch.manual_seed(0)
    likely, table, same, different = LikelyMatches(OWNERS, 5, min_count=3), {}, [], []
    for texts in ([0, 1, 2, 3], [4, 5, 6, 7], [2, 4, 6, 0]):
        batch, images, embeds = Pairs(texts), unit(4, 5), unit(4, 5)
        found = likely.update(batch, images, embeds)
        table |= dict(zip(texts, embeds.double().numpy()))
        images, embeds = images.double().numpy(), embeds.double().numpy()
        captions = {photo: [text for text in table if OWNERS[text] == photo] for photo in range(4)}
        gaussians = [slow_moments(pairs) for pairs in (same, different)] if len(same) > 3 else None
        for i, own in enumerate(texts):
            photo = int(OWNERS[own])
            for text in captions[photo]:
                if text != own:
                    rest = [table[other] @ table[text] for other in captions[photo]
                            if other != text]
                    same.append((images[i] @ table[text], np.mean(rest)))
            for j, text in enumerate(texts):
                x = images[i] @ embeds[j], np.mean([table[other] @ embeds[j]
                                                    for other in captions[photo]])
                if OWNERS[text] != photo:
                    different.append(x)
                wanted = 0.0
                if gaussians and OWNERS[text] != photo:
                    odds = math.log(PRIOR_OF_EVIDENCE / (1 - PRIOR_OF_EVIDENCE))
                    for sign, (_, mean, covariance) in zip((1, -1), gaussians):
                        gap = np.array(x) - mean
                        odds -= sign * 0.5 * (gap @ np.linalg.inv(covariance) @ gap
                                              + np.log(np.linalg.det(covariance)))
                    wanted = 1 / (1 + math.exp(-odds))
                assert found[i, j] == pytest.approx(wanted, rel=1e-3, abs=1e-7)
    assert found.max() > 0
    assert likely.same.count == len(same) and likely.different.count == len(different)


def test_infonce_with_likely_is_the_formula():
    torch.manual_seed(1)
    similarity, ids = torch.randn(5, 5) / 3, torch.tensor([0, 1, 2, 1, 3])
    p = torch.rand(5, 5) * (ids[:, None] != ids)
    scale, share, losses = 2.0, 0.4, []
    for logits, likely in ((scale * similarity, p), (scale * similarity.T, p.T)):
        for i in range(5):
            rest = sum((1 - likely[i, n]) * logits[i, n].exp()
                       for n in range(5) if ids[n] != ids[i])
            of = [1.0 if j == i else share * float(likely[i, j]) for j in range(5)]
            terms = [-(logits[i, j].exp() / (logits[i, j].exp() + rest)).log() for j in range(5)]
            losses.append(sum(w * t for w, t in zip(of, terms)) / sum(of))
    found = infonce_with_likely(similarity, ids, p, torch.tensor(scale).log(), share)
    assert found == pytest.approx(float(sum(losses) / 5 / 2), rel=1e-5)
    nothing = infonce_with_likely(similarity, ids, 0 * p, torch.tensor(scale).log(), share)
    assert nothing == pytest.approx(float(infonce_loss(similarity, ids, torch.tensor(scale).log())))


TRAIN_SET = SimpleNamespace(
    split=SimpleNamespace(image_of_text=np.append(np.arange(24), 0), matches=None,
                          images=range(24), captions=range(25), source=Path("train.json")),
    photos=[Path(f"{number}.jpg") for number in range(24)], captions=range(25))


def run_by(name, loss, folder, *flags):
    """A run at its start by a use of likely matches, and two batches for it."""
    with use_in_place(name, loss) as more:
        return make_run(folder, *flags, *more, train_set=TRAIN_SET)


@pytest.mark.parametrize("loss, name", [("fne", "filter"), ("infonce", "positive")])
def test_where_nothing_is_likely_a_step_is_the_usual_one(tmp_path, loss, name):
    states = []
    for way in "usual", "use":
        flags = ["--loss", loss, "--warmup_epochs", "5", "--easy_epochs", "0", "--max_violation"]
        if way == "usual":
            run, batches = make_run(tmp_path, *flags)
        else:
            run, batches = run_by(name, loss, tmp_path, *flags)
        for batch in batches[:1] * 2:
            train.training_step(run, batch)
        states.append(kept(run))
    for name, value in states[0].items():
        if loss == "fne":
            assert_same(value, states[1][name], name)
        elif name == "model":
            for key in value:
                torch.testing.assert_close(states[1][name][key], value[key], rtol=1e-4, atol=1e-5)


def test_what_is_likely_is_no_hardest_negative(tmp_path, monkeypatch):
    """All but one candidate are likely: each anchor repels that one."""
    run, batches = run_by("filter", "fne", tmp_path, "--warmup_epochs", "5", "--easy_epochs", "0",
                          "--max_violation")
    posterior = torch.ones(16, 16)
    posterior[:, 3] = posterior[3, :] = 0.0
    posterior[3, 4] = posterior[4, 3] = 0.0
    monkeypatch.setattr(run.objective.warm_up.likely, "update", lambda *given: posterior)
    steps = recorded(monkeypatch, run.objective, "forward")
    loss = train.training_step(run, batches[0])
    [((step,), _)] = steps
    similarity, own = step.similarity, step.similarity.diagonal()
    left = [torch.relu(0.2 + matrix[i, 3] - own[i]) for matrix in (similarity, similarity.T)
            for i in range(16) if i != 3]
    of_three = sum(torch.relu(0.2 + matrix[3, n] - own[3]).max()
                   for matrix in (similarity, similarity.T)
                   for n in [matrix[3].index_fill(0, torch.tensor([3]), -2).argmax()])
    assert float(loss) == pytest.approx(float((sum(left) + of_three).detach()) / 16, rel=1e-5)


def test_every_use_runs_and_is_told(tmp_path, capsys):
    dose.main(["--quick", "--jobs", "0", "--doses", "10", "--seeds", "1", "--again", "0", "--work",
               str(tmp_path), "--uses", *USES])
    found = (tmp_path / "results.md").read_text()
    for use in USES.values():
        if use.witness is None:
            assert f"| {use.label} | 1 |" in found
    assert len(re.findall(r"^\| 10.* % \| (?:triplet|infonce) \| 0\.\d\d \| 1 \|", found,
                          re.MULTILINE)) == sum(use.witness is not None for use in USES.values())
    names = {path.stem for path in (tmp_path / "results").glob("*.json")}
    assert {f"dose10_seed1_{use.loss}_{name}" for name, use in USES.items()} < names
    assert len(names) == len(USES) + 7
    assert uses_table({"uses": []}).count("\n") == 2


def test_the_bank_with_a_filter_draws_the_hardest_that_is_not_likely(tmp_path):
    run, _ = run_by("bank_filter", "fne", tmp_path, "--posterior", "evidence")
    posterior = torch.tensor([[0.9, 0.5, 0.1, 0.2]])
    run.objective.criterion.posterior = lambda similarity, texts: posterior
    weights = run.objective.criterion.weigh(
        torch.tensor([[0.9, 0.5, 0.4, 0.8]]), torch.tensor([0.6]),
        torch.tensor([[False, False, False, True]]), posterior)
    assert weights[0, 0] == 0 and weights[0, 3] == 0
    assert weights[0, 1] / weights[0, 2] == pytest.approx(math.exp(10), rel=1e-3)


@pytest.mark.parametrize("flags, named", [
    ([], "--loss triplet"), (["--loss", "triplet", "--resume", "auto"], "--resume"),
    (["--loss", "triplet", "--oracle"], "--oracle")])
def test_a_slip_of_the_command_is_told_in_a_line(data, tmp_path, capsys, flags, named):
    expect_exit(["filter", *command(data, tmp_path / "run"), *flags], 2, capsys, [named],
                uses.main)
    assert not (tmp_path / "run").exists()


def test_the_command_trains_as_usual_up_to_the_epoch_after_which_the_use_begins(data, tmp_path):
    flags = command(data, tmp_path / "use", "--loss", "infonce", "--num_epochs", "2")
    before = dict(OBJECTIVES)
    uses.main(["denominator", "--after", "2", *flags])
    train.main(command(data, tmp_path / "usual", "--loss", "infonce", "--num_epochs", "2"))
    state = final_state(tmp_path / "use")
    for name in LikelyOptions.__annotations__:
        del state["options"][name]
    assert_same(state, final_state(tmp_path / "usual"))
    assert before == OBJECTIVES


def result(loss, seed, rsum, use=""):
    """What the summary reads of a run; runs from before there were uses do not name one."""
    configuration = {"dose": "3", "seed": seed, "loss": loss, "oracle": "off", "again": False}
    return {"configuration": configuration | ({"use": use} if use else {}), "true_matches": 2.9,
            "false_negatives": 10.0 + seed, "test": {metric: rsum for metric in METRICS}}


def test_a_use_is_set_beside_its_own_loss_and_the_best_one_seed_by_seed():
    plain = {"triplet": (100, 110, 90), "infonce": (150, 160, 130), "fne": (140, 170, 120)}
    results = [result(loss, seed, value) for loss, values in plain.items()
               for seed, value in enumerate(values)]
    assert summary(results)["uses"] == []
    results += [result("triplet", seed, value, "filter")
                for seed, value in enumerate((103, 113))]
    [row] = summary(results)["uses"]
    assert (row["use"], row["seeds"], row["false_negatives"]) == ("filter", [0, 1], 10.5)
    assert row["rsum"]["plain"] == {"values": [100, 110], "difference": 3.0, "interval": 0.0}
    # Of the seeds that the use has, both others have a mean of 155: the first of the two is taken.
    assert row["rsum"]["best_loss"] == "infonce" and row["rsum"]["best"]["difference"] == -47.0
    assert "| triplet | hardest in the batch, p <= .5 | 2 | 10.5 % | 108.0 | **+3.0 ± 0.0** | " in (
        uses_table(summary(results)))


# ---------------------------------------------------------------------- a witness of given quality


@pytest.mark.parametrize("distance", [1.0, 3.0])
def test_what_a_witness_says_is_bayes_rule_of_its_score(distance):
    """By the densities of both kinds of pairs, from the noise that the witness has."""
    matches = torch.rand(60, 40, generator=torch.Generator().manual_seed(1)) < 0.1
    noise = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    prior = matches.float().mean().item()
    found = torch.sigmoid(uses.witness_log_odds(matches, distance))
    for text, image in itertools.product(range(60), range(40)):
        score = noise[text, image] + distance * matches[text, image]
        likely = prior * stats.norm.pdf(score - distance)
        wanted = likely / (likely + (1 - prior) * stats.norm.pdf(score))
        assert float(found[text, image]) == pytest.approx(float(wanted), rel=1e-3, abs=1e-6)
    called = uses.witnessed_matches(SimpleNamespace(matches=matches.numpy()), distance)
    assert torch.equal(called, found > WITNESS_BAR)


def test_the_further_apart_the_better_a_witness():
    matches = torch.rand(200, 50, generator=torch.Generator().manual_seed(1)) < 0.1
    precision = [average_precision(
        matches.numpy().ravel(), uses.witness_log_odds(matches, distance).numpy().ravel())
        for distance in (0.0, 1.0, 2.0, 3.0, 9.0)]
    assert precision == sorted(precision) and precision[0] < 0.15 and precision[-1] > 0.999


@pytest.mark.parametrize("use", ["witness_2_triplet", "witness_2_infonce"])
def test_what_a_witness_calls_a_match_is_repelled_by_no_loss(data, tmp_path, monkeypatch, use):
    excluded = recorded(monkeypatch, uses.Witnessed, "excluded_in_batch")
    with use_in_place(use, USES[use].loss) as flags:
        train.main(command(data, tmp_path, "--loss", USES[use].loss, "--num_epochs", "1", *flags))
    assert excluded
    called = uses.witnessed_matches(read_split("shapes", "train", data), 2.0)
    for (_, step), result in excluded:
        for row, column in itertools.product(range(16), repeat=2):
            assert result[row, column] == called[step.batch.text_ids[column],
                                                 step.batch.image_ids[row]]
