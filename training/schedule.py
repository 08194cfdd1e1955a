"""The learning rate and the steps at which to validate, which follow from the step alone.

These are pure functions, so there is no scheduler whose state could be lost.
"""

import math

from training.options import TrainOptions


def position(epoch: int, step: int, steps_per_epoch: int) -> tuple[int, int]:
    """Give the epoch of the last step, counted from 1, and the steps done in it.

    Args:
        epoch: whole epochs done.
        step: steps done beyond them.
        steps_per_epoch: steps of an epoch.
    """
    return (epoch, steps_per_epoch) if epoch and not step else (epoch + 1, step)


def learning_rate_factor(options: TrainOptions, step: int, steps_per_epoch: int) -> float:
    """Give the share of the learning rate at a step: a linear rise at the start, then a fall.

    With W = `--lr_warmup` and T steps of the whole run, the rise is (step + 1) / (W + 1) up to step
    W. The fall is tenfold at each milestone, from the start of the run on; or it goes from 1 at
    step W to 0 at step T, as a line or as half a cosine.

    Args:
        options: the run's options.
        step: steps done before it.
        steps_per_epoch: steps of an epoch.
    """
    rise = min(1.0, (step + 1) / (options.lr_warmup + 1))
    if options.lr_schedule != "steps":
        falling = max(1, options.num_epochs * steps_per_epoch - options.lr_warmup)
        left = 1 - max(0, step - options.lr_warmup) / falling
        cosine = options.lr_schedule == "cosine"
        return rise * ((1 - math.cos(math.pi * left)) / 2 if cosine else left)
    epoch = step // steps_per_epoch
    if options.lr_update:
        falls = epoch // options.lr_update
    else:
        falls = sum(epoch >= milestone for milestone in options.lr_milestones)
    return rise * 0.1**falls


def validation_steps(options: TrainOptions, steps: int) -> set[int]:
    """Give the steps of an epoch, counted from 1, after which to validate.

    They are evenly spread, and the last step is always one. A run begins with another validation,
    before its first step: see `Run.validation_due`.

    Args:
        options: the run's options.
        steps: steps of an epoch.
    """
    if options.val_step:
        return {*range(options.val_step, steps, options.val_step), steps}
    times = min(max(options.val_times, 1), steps)  # 0 as 1: only at the end
    return {steps * number // times for number in range(1, times + 1)} - {0}
