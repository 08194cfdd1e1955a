"""What follows from a step or an epoch alone: the loss, the learning rate, the validations."""

import pytest

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


def test_validation_steps():
    def steps(number, *more):
        return sorted(validation_steps(options_of(*more), number))

    assert steps(100) == [33, 66, 100]  # three, the last at the end
    assert steps(2) == [1, 2]
    assert steps(100, "--val_times", "4") == [25, 50, 75, 100]
    assert steps(100, "--val_times", "1") == steps(100, "--val_times", "0") == [100]
    assert steps(100, "--val_step", "40") == [40, 80, 100]
