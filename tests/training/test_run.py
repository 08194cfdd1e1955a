"""A run's own counts: steps, epochs, skipped steps; what an epoch's start forgets."""

import pytest
import torch
from helpers.steps import make_run, run_on_its_way

from model import DualEncoder
from training.objectives.fne import build_criterion
from training.run import Skips


def test_steps_and_epochs_are_counted(tmp_path):
    run, _ = make_run(tmp_path)
    seen = []
    for _ in range(15):
        run.finish_step({3, 7})
        seen.append((run.epoch, run.step, run.global_step, run.validation_due))
    assert [(epoch, step) for epoch, step, _, _ in seen] == [
        (number // 7, number % 7) for number in range(1, 16)]
    assert [number for _, _, number, _ in seen] == list(range(1, 16))
    assert [number for _, _, number, due in seen if due] == [3, 7, 10, 14]


def test_an_epoch_starts_without_statistics_and_histograms(tmp_path):
    run, _ = run_on_its_way(tmp_path)
    run.objective.similarity_counts = torch.ones(2, 4, dtype=torch.int64)
    run.objective.criterion.positive.update(torch.tensor([0.5, 0.6]))
    bank = len(run.objective.bank)
    run.objective.start_epoch()
    assert not run.objective.similarity_counts.any()
    assert not any(map(torch.any, run.objective.criterion.buffers()))
    assert len(run.objective.bank) == bank > 0  # which is kept over epochs


@pytest.mark.parametrize("loss", ["fne", "triplet"])
def test_training_mode_is_for_the_momentum_encoders_too(tmp_path, loss):
    run, _ = make_run(tmp_path, "--loss", loss)
    models = [run.model, *(module for module in run.objective.modules()
                           if isinstance(module, DualEncoder))]
    for model in models:
        model.eval()
    run.train_mode()
    assert all(model.training for model in models)
    assert len(models) == (1 if loss == "triplet" else 2)


def test_the_learning_rate_is_that_of_the_step(tmp_path):
    run, _ = make_run(tmp_path, "--lr_milestones", "2", "--learning_rate", "0.5")
    rates = []
    for run.global_step in (0, 13, 14):
        run.set_learning_rate()
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.5, 0.5, 0.05])


def test_skips_are_counted_and_the_latest_is_known():
    skips, rows = Skips(3), []
    for step, good in enumerate([True, False, False, True, False]):
        skips.update(torch.tensor(good), torch.tensor([step, step + 10]), step)
        rows.append([int(skips.count), int(skips.in_a_row), int(skips.step),
                     *skips.image_ids.tolist()])
    assert rows == [[0, 0, 0, 0, 0, 0], [1, 1, 2, 1, 11, 0], [2, 2, 3, 2, 12, 0],
                    [2, 0, 3, 2, 12, 0], [3, 1, 5, 4, 14, 0]]


def test_the_loss_has_the_options_numbers(tmp_path):
    flags = ["--margin", "0.3", "--tau", "0.7", "--prior", "0.02", "--posterior_floor", "0.1"]
    options = make_run(tmp_path, *flags)[0].options
    loss = build_criterion(options)
    assert (loss.margin, loss.tau, loss.prior, loss.posterior_floor, loss.min_count) == (
        0.3, 0.7, 0.02, 0.1, 2)
    options.prior = 0.5
    assert build_criterion(options).prior == 0.5
