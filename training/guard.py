"""Guards of a run: steps that are not finite are left out, and a collapse gives a warning.

The guards do not change a run in which neither happens.
"""

import torch
from torch import Tensor, nn

from common import processes
from common.errors import InputError
from common.flags import flags_of
from common.terminal import warn
from training.objectives import OBJECTIVES
from training.run import Run

SKIPS_IN_A_ROW = 5  # this many steps that are not finite end the run
COLLAPSED = 2e-3  # deviation of a batch's similarities: a run that learns has 0.05 and more


@torch.no_grad()
def all_finite(*values: Tensor) -> Tensor:
    """Tell whether every number in all of `values` is finite: () bool, on the device."""
    return torch.stack([value.isfinite().all() for value in values]).all()


def guarded_step(run: Run, image_ids: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
    """Clip the gradients and step the optimizer in place, unless a number is not finite.

    A step that is left out changes nothing: weights, moments and step count keep every bit, and
    the step is counted. The switch is the one that PyTorch's GradScaler uses: a fused optimizer
    reads `found_inf` on the device. A `state_dict` does not have it.

    Args:
        run: the run.
        image_ids: (B,) int64, photos of the batch.
        values: what must be finite beside the gradients.

    Returns:
        () norm of all gradients before clipping, and () bool, whether the step was taken.
    """
    limit = run.options.grad_clip or torch.inf
    trained = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(trained, limit)
    taken = all_finite(norm, *values)
    run.skips.update(taken, image_ids, run.global_step)
    processes.local_optimizer(run.optimizer).found_inf = (~taken).float()
    run.optimizer.step()
    return norm, taken


def check_alike(run: Run) -> None:
    """Check that the processes of a run still have the same state, to the bit.

    Each process computes the same weights and statistics from the same numbers.

    Raises:
        InputError: a tensor differs.
    """
    tensors = {}
    for part, value in {"model": run.model, "skips": run.skips, **run.objective.entries()}.items():
        if isinstance(value, nn.Module):
            tensors |= {f"{part}.{name}": tensor for name, tensor in value.state_dict().items()}
        else:
            tensors[part] = value
    name = processes.first_differing_tensor(tensors)
    if name is not None:
        raise InputError(f"step {run.global_step}: the processes no longer have the same {name}: "
                         "use machines of one kind with the same versions, and go on with --resume "
                         "auto")


def warn_or_stop(run: Run, spread: float, loss: float) -> None:
    """Warn of skipped steps and of a collapse since the last call, or stop the run.

    This reads values back from the device: call it where the run waits for the device anyway.

    Args:
        run: the run.
        spread: standard deviation of a batch's similarities, the mean since the last call.
        loss: the mean since the last call.

    Raises:
        InputError: too many steps in a row were not finite; it names the photos of the latest.
    """
    skips, now = run.skips, run.global_step
    rate = run.highest_learning_rate
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
        flags = flags_of(OBJECTIVES[run.options.loss].flags)
        margin = f" (twice the margin: {2 * run.options.margin:g})" if "margin" in flags else ""
        easy_epochs = ", or more --easy_epochs" if "easy_epochs" in flags else ""
        warn(f"step {now}: collapse: the similarities of a batch are all alike (deviation "
             f"{spread:.1e}), and the loss is {loss:.4f}{margin}. Try a lower --learning_rate"
             f"{easy_epochs}")
    elif run.collapsed and not collapsed:
        warn(f"step {now}: no more collapse: similarities differ again (deviation {spread:.1e})")
    run.collapsed = collapsed
