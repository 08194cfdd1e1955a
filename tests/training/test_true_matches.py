"""The oracle: no true match is a candidate of any loss, and it is told wherever results are."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from helpers import oracle as slow
from helpers.cases import CASES, make_case
from helpers.runs import CPU, command, copy_of, expect_one_line
from helpers.steps import make_run, recorded, run_with_a_bank, set_matches
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import checkpoint
import train
from data import read_split
from fne_loss import NO_NEGATIVE, cosine, infonce_loss, rank_batch
from training.objectives.fne import FNEObjective
from training.true_matches import TrueMatches, infonce_of_matches

WAYS = [["--oracle"], ["--loss", "triplet", "--oracle"], ["--loss", "infonce", "--oracle"],
        ["--loss", "infonce", "--oracle", "positives"]]
TOLD = {"exclude": "true matches excluded", "positives": "true matches as further positives"}


# ------------------------------------------------------------------------------------ what is drawn


def drawn_in_a_run(monkeypatch, arguments):
    """(text, image) of every negative that FNE drew in a run, by their numbers in the split; those
    of the batch, and those of the bank."""
    from_batch, from_bank, drawn_negatives = [], [], FNEObjective.drawn_negatives

    def record(objective, step, *draws):
        batch, bank = step.batch, objective.bank
        texts = torch.cat([batch.text_ids, bank.text_ids]).tolist()
        images = torch.cat([batch.image_ids, bank.image_ids]).tolist()
        for pair, (i2t, t2i) in enumerate(zip(*(draw.indices.tolist() for draw in draws))):
            for found, text, image in ((i2t, texts[i2t], images[pair]),
                                       (t2i, texts[pair], images[t2i])):
                if found != NO_NEGATIVE:
                    (from_batch if found < len(batch.text_ids) else from_bank).append((text, image))
        return drawn_negatives(objective, step, *draws)

    monkeypatch.setattr(FNEObjective, "drawn_negatives", record)
    train.main(arguments)
    return from_batch, from_bank


def test_fne_draws_no_true_match_from_batch_and_bank(data, tmp_path, monkeypatch):
    """Without the oracle it does, in both places."""
    matches = read_split("shapes", "train", data).matches
    # All candidates above the cut-down, so that the batch's are drawn as well.
    wide = command(data, tmp_path / "plain", "--margin", "1.5")
    plain = drawn_in_a_run(monkeypatch, wide)
    assert all(any(matches[pair] for pair in place) for place in plain)
    helped = drawn_in_a_run(monkeypatch, command(
        data, tmp_path / "helped", "--margin", "1.5", "--oracle"))
    assert all(len(place) > 50 and not any(matches[pair] for pair in place) for place in helped)


@pytest.mark.parametrize("cut", [0.2, -2.0])
def test_no_true_match_is_drawn_nor_is_the_fallback(tmp_path, cut):
    """With random matches of half of all; the second cut leaves nothing but the fallback."""
    run, batch = run_with_a_bank(tmp_path, "--oracle", "--margin", str(max(cut, 0)))
    run.objective.criterion.margin = cut
    count = int(run.objective.bank.image_ids.max()) + 1
    matches = torch.rand(count, count) < 0.5
    set_matches(run, matches)
    run.objective.bank.text_ids.copy_(torch.randperm(count)[: len(run.objective.bank.text_ids)])
    texts = torch.cat([batch.text_ids, run.objective.bank.text_ids])
    images = torch.cat([batch.image_ids, run.objective.bank.image_ids])
    with pytest.MonkeyPatch.context() as patch:
        draws = recorded(patch, run.objective.criterion, "draw")
        train.training_step(run, batch)
    [(_, both)] = draws
    for pair in range(16):
        i2t, t2i = (int(draw.indices[pair]) for draw in both)
        assert i2t == NO_NEGATIVE or not matches[texts[i2t], images[pair]]
        assert t2i == NO_NEGATIVE or not matches[texts[pair], images[t2i]]
    assert run.logs[-1]["false_negative_share"] == 0


def test_a_text_that_the_bank_does_not_know_is_no_candidate(tmp_path):
    """The bank of a released checkpoint names photos and no captions."""
    run, batch = run_with_a_bank(tmp_path, "--oracle")
    bank, matches = run.objective.bank, TrueMatches(torch.zeros(200, 200, dtype=torch.bool))
    assert (bank.text_ids == -100).all()
    i2t, t2i = matches.among_candidates(batch, bank, slice(4, 8))
    assert i2t.shape == t2i.shape == (4, 16 + 40)
    assert not i2t[:, :16].any() and i2t[:, 16:].all() and not t2i.any()


@pytest.mark.parametrize("flags, epoch", [
    (["--loss", "triplet"], 0), (["--loss", "triplet"], 2), (["--loss", "infonce"], 2),
    (["--loss", "sigmoid"], 2)])
def test_the_in_batch_losses_repel_no_true_match(tmp_path, flags, epoch):
    """A loss moves a similarity that it repels: the gradient tells which."""
    def repelled(*more):
        run, [batch, _] = make_run(tmp_path, *flags, *more)
        set_matches(run, matches)
        similarity = torch.rand(16, 16, generator=torch.Generator().manual_seed(5)).requires_grad_()
        step = SimpleNamespace(batch=batch, similarity=similarity, epoch=epoch,
                               ranking=rank_batch(similarity, batch.image_ids))
        gradient, = torch.autograd.grad(run.objective(step).loss, similarity)
        return (gradient.T > 0).fill_diagonal_(False)  # (B, B), texts in rows as in `matches`

    matches = torch.rand(24, 24, generator=torch.Generator().manual_seed(6)) < 0.5
    true = matches[:16, :16]  # `make_run` has a batch of the first 16 pairs
    plain, helped = repelled(), repelled("--oracle")
    assert (plain & true).any() and not (helped & true).any() and helped.any()
    if flags[1] in ("infonce", "sigmoid") or epoch == 0:  # which take all that is no match
        assert torch.equal(helped, plain & ~true)


def test_statistics_and_what_is_measured_of_the_hardest(tmp_path):
    """The method's Gaussians are those of the run without; the share is of what the loss used."""
    def after_a_step(*more):
        run, batches = make_run(tmp_path, "--easy_epochs", "0", *more)
        run.model.eval()
        set_matches(run, torch.ones(24, 24, dtype=torch.bool).tril())
        train.training_step(run, batches[0])
        return run

    plain, helped = after_a_step(), after_a_step("--oracle")
    assert plain.logs[-1]["false_negative_share"] > 0
    assert helped.logs[-1]["false_negative_share"] == 0
    assert all(map(torch.equal, plain.objective.criterion.buffers(),
                   helped.objective.criterion.buffers()))
    assert plain.logs[-1]["loss"] > helped.logs[-1]["loss"]


# ----------------------------------------------------------------------------- as further positives


@pytest.mark.parametrize("name", CASES)
def test_infonce_of_matches_is_that_of_a_slow_loop(name):
    case = make_case(name)
    images, texts, *_ = case.inputs
    matches = (torch.rand(len(case.ids), len(case.ids)) < 0.3).fill_diagonal_(True)
    got = infonce_of_matches(cosine(images, texts), matches, torch.tensor(1.5))
    wanted = []
    for matrix, true in zip(*map(slow.both_ways, (cosine(images, texts).tolist(),
                                                  matches.tolist()))):
        for row, found in zip(matrix, true):
            terms = [math.exp(math.exp(1.5) * value) for value in row]
            others = sum(term for term, match in zip(terms, found) if not match)
            costs = [-math.log(term / (term + others))
                     for term, match in zip(terms, found) if match]
            wanted.append(sum(costs) / len(costs))
    assert got.item() == pytest.approx(sum(wanted) / len(wanted), abs=1e-6)


def test_without_further_matches_it_is_infonce():
    similarity, scale = torch.rand(9, 9, dtype=torch.float64), torch.tensor(2.0)
    got = infonce_of_matches(similarity, torch.eye(9, dtype=torch.bool), scale)
    torch.testing.assert_close(got, infonce_loss(similarity, torch.arange(9), scale))


def test_the_gradient_of_infonce_of_matches():
    matches = (torch.rand(6, 6) < 0.3).fill_diagonal_(True)
    matches[2] = True  # an anchor without a negative
    inputs = (torch.rand(6, 6, dtype=torch.float64, requires_grad=True),
              torch.tensor(1.0, dtype=torch.float64, requires_grad=True))
    torch.autograd.gradcheck(lambda s, scale: infonce_of_matches(s, matches, scale), inputs)
    gradient, = torch.autograd.grad(infonce_of_matches(inputs[0], matches, inputs[1]), inputs[:1])
    assert (gradient[~matches] > 0).all() and (gradient[2] <= 0).all()


def test_the_share_of_the_softmax_is_that_of_a_slow_loop(tmp_path):
    """Of what InfoNCE repels, that which is true: over all anchors of both directions."""
    ids, texts = torch.tensor([3, 1, 3, 0, 2]), torch.tensor([4, 0, 2, 1, 3])
    similarity, matches = torch.rand(5, 5), torch.rand(5, 4) < 0.5
    batch = SimpleNamespace(image_ids=ids, text_ids=texts)
    run, _ = make_run(tmp_path, "--loss", "infonce")
    run.objective.log_scale.data.fill_(1.0)
    negatives = run.objective.softmax_negatives(similarity, batch, None)
    true = total = 0.0
    for way, matrix in enumerate(slow.both_ways(similarity.tolist())):
        for row in range(5):
            terms = [math.exp(math.e * value) if ids[other] != ids[row] or other == row else 0.0
                     for other, value in enumerate(matrix[row])]
            for other in range(5):
                if ids[other] != ids[row]:
                    share = terms[other] / sum(terms)
                    image, text = (row, other) if way == 0 else (other, row)
                    total += share
                    true += share * bool(matches[texts[text], ids[image]])
    share = TrueMatches(matches).share_of(*negatives)
    assert share.item() == pytest.approx(true / total, abs=1e-6)


# -------------------------------------------------------------------------- what is told, and where


@pytest.mark.parametrize("flags", WAYS, ids=" ".join)
def test_it_is_told_by_outline_results_checkpoint_tensorboard_and_test(
        data, tmp_path, capsys, flags):
    folder = tmp_path / "run"
    arguments = command(data, folder, "--num_epochs", "2", *flags)
    train.main(arguments)
    kind = flags[-1] if flags[-1] in TOLD else "exclude"
    told, printed = f"oracle: {TOLD[kind]}", capsys.readouterr().out
    assert printed.count(told) == 2  # before it starts, and with the test's table
    results = json.loads((folder / "test_results.json").read_text())
    assert results["oracle"].startswith(told) and results["rsum"] > 0
    assert checkpoint.read(folder / "checkpoint.pth.tar")["options"]["oracle"] == kind
    tags = EventAccumulator(str(folder)).Reload()
    assert told.encode() in tags.Tensors("run/oracle/text_summary")[0].tensor_proto.string_val[0]
    train.main(["--test", "--resume", str(folder / "model_best.pth.tar"), "--data_path", str(data),
                "--workers", "0", *CPU])
    assert told in capsys.readouterr().out


def test_without_it_nothing_is_told(finished):
    assert "oracle" not in json.loads((finished / "test_results.json").read_text())
    tags = EventAccumulator(str(finished)).Reload().Tags()["tensors"]
    assert "run/options/text_summary" in tags and "run/oracle/text_summary" not in tags


def test_a_run_may_go_on_with_the_oracle_and_again_without(data, finished, tmp_path, capsys):
    """As the command line says, and else as the checkpoint does."""
    path = finished / "checkpoint.pth.tar"
    for epochs, more, wanted in (("4", ["--oracle"], "exclude"), ("5", [], "exclude"),
                                 ("6", ["--oracle", "off"], "off")):
        folder = tmp_path / epochs
        train.main(["--resume", str(path), "--data_path", str(data), "--logger_name", str(folder),
                    "--num_epochs", epochs, *CPU, "--workers", "0", *more])
        path = folder / "checkpoint.pth.tar"
        assert checkpoint.read(path)["options"]["oracle"] == wanted
        assert ("oracle" in capsys.readouterr().out) == (wanted == "exclude")


# ---------------------------------------------------------------------------------- where it is not


@pytest.mark.parametrize("flags", WAYS, ids=" ".join)
def test_it_is_refused_where_matches_are_not_known(data, tmp_path, capsys, flags):
    copy = copy_of(data, tmp_path)
    (copy / "shapes_train_matches.json").unlink()
    expect_one_line(command(copy, tmp_path / "run", *flags),
                    "shapes_train.json", capsys)
    assert not (tmp_path / "run").exists()


def test_own_data_with_matches_will_do_and_without_is_refused(data, tmp_path, capsys):
    copy = copy_of(data, tmp_path)
    for split in "train", "val", "test":
        (copy / f"shapes_{split}.json").rename(copy / f"{split}.json")
    arguments = command(copy, tmp_path / "run", "--dataset", "custom", "--oracle", "--num_epochs",
                        "2", "--text_encoder", "tiny-bert", "--vocab", "vocab/shapes.txt",
                        "--image_encoder", "small-convnext", "--image_res", "64")
    expect_one_line(arguments, "--oracle exclude", capsys)
    (copy / "shapes_train_matches.json").rename(copy / "train_matches.json")
    train.main(arguments)
    assert "true matches excluded" in capsys.readouterr().out


@pytest.mark.parametrize("more, named", [
    (["--oracle", "positives"], "--oracle positives"),
    (["--oracle", "positives", "--loss", "triplet"], "--oracle positives"),
    (["--oracle", "perhaps"], "--oracle")])
def test_what_it_cannot_be_is_refused(data, tmp_path, capsys, more, named):
    expect_one_line(command(data, tmp_path / "run", *more), named, capsys)
    assert not (tmp_path / "run").exists()


def test_a_test_cannot_claim_it(finished, data, capsys):
    expect_one_line(["--test", "--resume", str(finished / "model_best.pth.tar"), "--data_path",
                     str(data), "--oracle"], "--oracle exclude", capsys)
