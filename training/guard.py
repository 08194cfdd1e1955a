"""What guards a run against numbers that are not finite, and tells of a collapse.

A run that nothing befalls is not changed by it.
"""

import torch
from torch import Tensor, nn

from common import processes
from common.errors import InputError
from common.terminal import warn
from training.run import Run

SKIPS_IN_A_ROW = 5  # this many steps that are not finite end the run
COLLAPSED = 2e-3  # deviation of a batch's similarities: a run that learns has 0.05 and more


@torch.no_grad()
def finite(*values: Tensor) -> Tensor:
    """() bool, on the device: whether every number in all of `values` is finite."""
    return torch.stack([value.isfinite().all() for value in values]).all()


def guarded_step(run: Run, image_ids: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
    """Clip the gradients and step the optimizer, unless a number is not finite.

    Then the step does nothing: weights, moments and step count keep every bit, and it is counted.
    The switch is the one that PyTorch's GradScaler uses: a fused optimizer reads `found_inf` on the
    device. A `state_dict` does not have it.

    Args:
        image_ids: (B,) photos of the batch.
        values: what must be finite beside the gradients.

    Returns:
        () norm of all gradients before clipping, and () bool, whether the step was taken.
    """
    limit = run.options.grad_clip or torch.inf
    norm = nn.utils.clip_grad_norm_(run.optimizer.param_groups[0]["params"], limit)
    good = finite(norm, *values)
    run.skips.update(good, image_ids, run.global_step)
    processes.local_optimizer(run.optimizer).found_inf = (~good).float()
    run.optimizer.step()
    return norm, good


def check_alike(run: Run) -> None:
    """Raise InputError where the processes of a run have come apart: each computes the same weights
    and statistics from the same numbers, so they are equal to the bit."""
    parts = {"model": run.model, "momentum_model": run.momentum_model, "criterion": run.criterion,
             "bank": run.bank, "skips": run.skips}
    name = processes.first_differing_tensor({
        f"{part}.{name}": value for part, module in parts.items() if module is not None
        for name, value in module.state_dict().items()} | {"log_scale": run.log_scale})
    if name is not None:
        raise InputError(f"step {run.global_step}: the processes no longer have the same {name}: "
                         "use machines of one kind with the same versions, and go on with --resume "
                         "auto")


def warn_or_stop(run: Run, spread: float, loss: float) -> None:
    """Look at the steps since the last time, where the run waits for the device anyway.

    Args:
        spread, loss: means since then; `spread` is the deviation of a batch's similarities.

    Raises:
        InputError: too many of them in a row were not finite; it names the photos of the latest.
    """
    skips, now = run.skips, run.global_step
    rate = run.optimizer.param_groups[0]["lr"]
    if skips.longest >= SKIPS_IN_A_ROW:
        names = ", ".join(run.photos[image].name for image in skips.image_ids.tolist())
        raise InputError(
            f"step {int(skips.step)}: loss, gradient or embeddings were not finite in "
            f"{int(skips.longest)} steps in a row, at a learning rate of {rate:g}, so none of "
            "them was taken: lower --learning_rate, or look at the photos of the latest batch: "
            f"{names}")
    skips.longest.zero_()
    if now - run.options.log_step < skips.step <= now:
        warn(f"step {int(skips.step)} was not finite and left out, {int(skips.count)} so far")
    collapsed = spread < COLLAPSED
    if collapsed and not run.collapsed:
        warn(f"step {now}: collapse: the similarities of a batch are all alike (deviation "
            f"{spread:.1e}), and the loss is {loss:.4f} (twice the margin: "
            f"{2 * run.options.margin:g}). Try a lower --learning_rate, or more --easy_epochs")
    elif run.collapsed and not collapsed:
        warn(f"step {now}: no more collapse: similarities differ again (deviation {spread:.1e})")
    run.collapsed = collapsed
