"""What follows from a step or an epoch alone: the loss, the learning rate, the validations."""

import pytest
import torch
import transformers
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from training.objectives import objective_class
from training.options import parse
from training.schedule import learning_rate_factor, validation_steps

ALL_NEGATIVES, HARDEST_NEGATIVE = "triplet, all negatives", "triplet, hardest negative"
FNE, INFONCE = "FNE", "InfoNCE"


def options_of(*flags):
    return parse("", ["--dataset", "flickr", *flags])[0]


@pytest.mark.parametrize(("flags", "phases"), [
    ([], [ALL_NEGATIVES, FNE, FNE, FNE]),
    (["--max_violation"], [HARDEST_NEGATIVE, FNE, FNE, FNE]),
    (["--max_violation", "--warmup_epochs", "0"], [FNE] * 4),
    (["--max_violation", "--warmup_epochs", "3"], [HARDEST_NEGATIVE] * 3 + [FNE]),
    (["--max_violation", "--warmup_epochs", "3", "--easy_epochs", "2"],
     [ALL_NEGATIVES, ALL_NEGATIVES, HARDEST_NEGATIVE, FNE]),
    (["--max_violation", "--warmup_epochs", "1", "--easy_epochs", "3"],
     [ALL_NEGATIVES] + [FNE] * 3),
    (["--loss", "triplet"], [ALL_NEGATIVES] * 4),
    (["--loss", "triplet", "--max_violation"], [HARDEST_NEGATIVE] * 4),
    (["--loss", "triplet", "--max_violation", "--easy_epochs", "1"],
     [ALL_NEGATIVES] + [HARDEST_NEGATIVE] * 3),
    (["--loss", "infonce", "--max_violation", "--easy_epochs", "2"], [INFONCE] * 4),
    (["--loss", "sigmoid"], ["sigmoid"] * 4)])
def test_phases_of_the_losses_by_epoch(flags, phases):
    options = options_of(*flags)
    objective = objective_class(options.loss)
    assert [objective.phase(options, epoch) for epoch in range(4)] == phases


def test_learning_rate_falls():
    def factors(*more):
        options = options_of(*more)
        return [learning_rate_factor(options, step, 10) for step in (0, 4, 39, 40, 50)]

    milestones = ["--lr_milestones", "4", "5"]
    assert factors(*milestones) == pytest.approx([1, 1, 1, 0.1, 0.01])
    assert factors(*milestones, "--lr_warmup", "9") == pytest.approx([0.1, 0.5, 1, 0.1, 0.01])
    assert factors("--lr_update", "2") == pytest.approx([1, 1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_schedules_without_warm_up_are_those_of_torch(steps):
    """Over one epoch of so many steps, from the closed forms that PyTorch's schedulers step by."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    for name, scheduler in (
            ("cosine", lambda optimizer: CosineAnnealingLR(optimizer, steps)),
            ("linear", lambda optimizer: LinearLR(optimizer, 1.0, 0.0, steps))):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        following = scheduler(optimizer)
        options = options_of("--lr_schedule", name, "--num_epochs", "1")
        for step in range(steps):
            wanted = optimizer.param_groups[0]["lr"]
            assert learning_rate_factor(options, step, steps) == pytest.approx(wanted, abs=1e-9)
            optimizer.step()
            following.step()


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_schedules_with_warm_up_are_those_of_transformers(name):
    """But for the first step, whose learning rate is not 0 here."""
    warmup, steps = 5, 24
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    following = getattr(transformers, f"get_{name}_schedule_with_warmup")(
        optimizer, warmup, steps)
    options = options_of("--lr_schedule", name, "--num_epochs", "3", "--lr_warmup", "5")
    for step in range(steps):
        found = learning_rate_factor(options, step, 8)
        if step < warmup:
            assert found == pytest.approx((step + 1) / (warmup + 1))
        else:
            assert found == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        following.step()


def test_a_warm_up_longer_than_the_run_only_rises():
    options = options_of("--lr_schedule", "cosine", "--num_epochs", "1", "--lr_warmup", "9")
    assert [learning_rate_factor(options, step, 3) for step in range(3)] == [0.1, 0.2, 0.3]


def test_validation_steps():
    def steps(number, *more):
        return sorted(validation_steps(options_of(*more), number))

    assert steps(100) == [33, 66, 100]  # three, the last at the end
    assert steps(2) == [1, 2]
    assert steps(100, "--val_times", "4") == [25, 50, 75, 100]
    assert steps(100, "--val_times", "1") == steps(100, "--val_times", "0") == [100]
    assert steps(100, "--val_step", "40") == [40, 80, 100]
