"""What a run takes over from a file, which may hold anything: looked at first, then copied."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.weights import check_tensors, check_weights_match
from memory_bank import EMPTY, MemoryBank
from training.run import Run

# Where a run stands, beside its tensors.
PROGRESS = "epoch", "step", "global_step", "validation_due", "best_rsum", "bad_photos"


def load_weights(module: nn.Module, weights: dict, path: Path) -> None:
    """Copy weights in, once they are those of the module.

    Raises:
        InputError: it lists all that are missing, left over, or of another shape or type; or that
            hold NaN or infinity.
    """
    check_tensors(weights, path)
    own = module.state_dict()
    check_weights_match(
        path, sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys()),
        sorted(f"{key} {told(weights[key])}, expected {told(own[key])}"
               for key in own.keys() & weights.keys() if told(own[key]) != told(weights[key])))
    broken = [key for key, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise InputError(f"{path} holds NaN or infinity in {broken[0]}: take an earlier "
                         "checkpoint")
    module.load_state_dict(weights)


def told(weight: Tensor) -> str:
    """Shape and type, as they are compared and shown: "(2, 3) float32"."""
    return f"{tuple(weight.shape)} {str(weight.dtype).removeprefix('torch.')}"


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Copy Adam's moments and step counts in, once they are those of its parameters.

    A fused Adam trusts their shapes: a wrong one is read beyond its end.

    Raises:
        ValueError: another optimizer's state, or moments of another shape, type or range.
    """
    own = optimizer.param_groups[0]
    (group,) = state["param_groups"]
    if type(group["lr"]) is not float or not 0 <= group["lr"] < math.inf:
        raise ValueError(f"the learning rate is {group['lr']!r}")
    if group.keys() != own.keys() or any(
            type(group[name]) is not type(own[name]) or group[name] != own[name]
            for name in own.keys() - {"lr", "params"}) or group["params"] != list(
                range(len(own["params"]))):
        raise ValueError("the optimizer's settings are others")
    parameters = own["params"]
    for number, moments in state["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"the optimizer has no parameter {number!r}")
        expected = {"exp_avg": parameters[number].shape, "exp_avg_sq": parameters[number].shape,
                    "step": torch.Size()}
        if moments.keys() != expected.keys() or not all(
                isinstance(value, Tensor) and value.shape == expected[name]
                and value.dtype == torch.float32 and value.isfinite().all()
                for name, value in moments.items()) or (
                    moments["step"] < 0 or (moments["exp_avg_sq"] < 0).any()):
            raise ValueError(f"the optimizer's moments of parameter {number} do not fit it")
    # Copies, since a fused step writes into them and the loaded ones are mapped from the file.
    optimizer.load_state_dict({"param_groups": state["param_groups"], "state": {
        number: {name: value.clone() for name, value in moments.items()}
        for number, moments in state["state"].items()}})


def load_progress(run: Run, state: dict) -> None:
    """Take over where the run stood.

    Raises:
        TypeError, ValueError: values that no run can come to.
    """
    for name in PROGRESS:
        if type(state[name]) is not type(getattr(run, name)):
            raise TypeError(f"{name} is {state[name]!r}")
        setattr(run, name, state[name])
    if not (run.epoch >= 0 and 0 <= run.step < run.steps_per_epoch
            and run.global_step == run.epoch * run.steps_per_epoch + run.step):
        raise ValueError(f"epoch {run.epoch}, step {run.step} and global step {run.global_step} do "
                         "not belong together")
    if not -1 <= run.best_rsum <= 600:
        raise ValueError(f"best_rsum is {run.best_rsum}")
    if not all(type(photo) is int and 0 <= photo < len(run.photos) for photo in run.bad_photos):
        raise ValueError("a bad photo that the training split does not have")
    run.logs = [{name: torch.tensor(float(value), device=run.device)
                 for name, value in logs.items()} for logs in state["logs"]]
    if not all("loss" in logs for logs in run.logs):
        raise ValueError("a step was logged without its loss")


def check_bank(bank: MemoryBank, photos: int | None, captions: int | None) -> None:
    """Raise ValueError where a bank's numbers are none that it can have.

    Args:
        photos, captions: how many the training split has; None where nobody will look them up.
    """
    if not 0 <= bank.pointer < len(bank.image_ids):
        raise ValueError("the memory bank's pointer is none of its slots")
    for what, ids, count in (("photos", bank.image_ids, photos),
                             ("captions", bank.text_ids, captions)):
        known = ids[ids != EMPTY]
        if (known < 0).any() or count is not None and (known >= count).any():
            raise ValueError(f"the memory bank holds {what} that the training split does not have")
