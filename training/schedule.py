"""What follows from a step or an epoch alone: the loss in use, learning rate, validations.

Pure functions, so that there is no scheduler whose state could be lost.
"""

from training.options import TrainOptions

# Phases of a run, as they are shown: the in-batch triplet loss, the method, the InfoNCE control.
ALL_NEGATIVES, HARDEST_NEGATIVE = "triplet, all negatives", "triplet, hardest negative"
FNE, INFONCE = "FNE", "InfoNCE"


def phase(options: TrainOptions, epoch: int) -> str:
    """The loss of an epoch, counted from 0: one of the four above."""
    if options.loss == "infonce":
        return INFONCE
    if options.loss == "fne" and epoch >= options.warmup_epochs:
        return FNE
    hardest = options.max_violation and epoch >= options.easy_epochs
    return HARDEST_NEGATIVE if hardest else ALL_NEGATIVES


def phases(options: TrainOptions) -> list[tuple[int, int, str]]:
    """First and last epoch of each phase, counted from 1, and its name."""
    found = []
    for epoch in range(options.num_epochs):
        name = phase(options, epoch)
        if found and found[-1][2] == name:
            found[-1] = found[-1][0], epoch + 1, name
        else:
            found.append((epoch + 1, epoch + 1, name))
    return found


def position(epoch: int, step: int, steps_per_epoch: int) -> tuple[int, int]:
    """The epoch of the last step, counted from 1 as people do, and the steps done in it.

    Args:
        epoch, step: of a `Run`: whole epochs done, and steps beyond them.
    """
    return (epoch, steps_per_epoch) if epoch and not step else (epoch + 1, step)


def learning_rate_factor(options: TrainOptions, step: int, steps_per_epoch: int) -> float:
    """The share of --learning_rate at a step: a rise at the start, then tenfold falls."""
    epoch = step // steps_per_epoch
    falls = (epoch // options.lr_update if options.lr_update
             else sum(epoch >= milestone for milestone in options.lr_milestones))
    return min(1.0, (step + 1) / (options.lr_warmup + 1)) * 0.1**falls


def validation_steps(options: TrainOptions, steps: int) -> set[int]:
    """After which of an epoch's `steps` to validate: evenly spread, and always after the last.

    A run begins with another one, before its first step: see `Run.validation_due`.
    """
    if options.val_step:
        return {*range(options.val_step, steps, options.val_step), steps}
    parts = min(max(options.val_times, 1), steps)  # 0 as 1: only at the end
    return {steps * part // parts for part in range(1, parts + 1)} - {0}
