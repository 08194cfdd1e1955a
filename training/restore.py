"""Loading the state of a run from a file that may hold anything: checked first, then copied."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.terminal import warn
from common.weights import check_tensors, check_weights_match
from training.run import Run

HALF_PRECISION = torch.float16, torch.bfloat16
# Where a run stands, beside its tensors.
PROGRESS = "epoch", "step", "global_step", "validation_due", "best_rsum", "bad_photos"


def load_weights(module: nn.Module, weights: dict, path: Path) -> None:
    """Copy weights into a module in place, once they are found to be those of the module.

    Weights that all are in half precision are converted to float32, with a warning.

    Args:
        module: the module.
        weights: by name, as of `state_dict`.
        path: the file that they come from, for the message of an error.

    Raises:
        InputError: weights are missing, left over, of another shape or type, or not finite; the
            message lists them.
    """
    check_tensors(weights, path)
    expected = module.state_dict()
    if weights and all(value.dtype in HALF_PRECISION for value in weights.values()):
        warn(f"{path} holds weights in half precision: they are converted to float32")
        weights = {key: value.float() for key, value in weights.items()}
    unlike = [f"{key} {shape_and_type(weights[key])}, expected {shape_and_type(expected[key])}"
              for key in expected.keys() & weights.keys()
              if shape_and_type(weights[key]) != shape_and_type(expected[key])]
    missing = sorted(expected.keys() - weights.keys())
    left_over = sorted(weights.keys() - expected.keys())
    check_weights_match(path, missing, left_over, sorted(unlike))
    broken = [key for key, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise InputError(f"{path} holds NaN or infinity in {broken[0]}: take an earlier "
                         "checkpoint")
    module.load_state_dict(weights)


def load_number(parameter: Tensor, value: Tensor) -> None:
    """Copy a learned number or buffer in place, once it has the shape and type of its target.

    Raises:
        ValueError: shape or type differ, or the value is not finite.
    """
    if not isinstance(value, Tensor) or shape_and_type(value) != shape_and_type(parameter):
        raise ValueError(f"a number is no tensor {shape_and_type(parameter)}")
    if not value.isfinite().all():
        raise ValueError("a learned number is not finite")
    parameter.data.copy_(value)


def shape_and_type(weight: Tensor) -> str:
    """Describe a tensor as it is compared and shown: "(2, 3) float32"."""
    return f"{tuple(weight.shape)} {str(weight.dtype).removeprefix('torch.')}"


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Copy an optimizer's moments and step counts in place, once they fit its parameters.

    A fused optimizer trusts their shapes: a wrong one would be read beyond its end.

    Args:
        optimizer: the run's Adam or AdamW.
        state: its `state_dict`, from the file.

    Raises:
        ValueError: another optimizer's state, or moments of another shape, type or range.
    """
    check_groups(optimizer.param_groups, state["param_groups"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
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


def check_groups(groups: list[dict], saved: list[dict]) -> None:
    """Check that the groups of a saved optimizer are those of this one, but for learning rates.

    Args:
        groups: the optimizer's own groups.
        saved: those of a `state_dict`, whose parameters are numbered through all groups.

    Raises:
        ValueError: another number of groups, other parameters or settings, or a learning rate that
            is none.
    """
    if len(saved) != len(groups):
        raise ValueError(f"the optimizer has {len(groups)} groups of parameters, not {len(saved)}")
    first = 0
    for settings, group in zip(groups, saved):
        if type(group["lr"]) is not float or not 0 <= group["lr"] < math.inf:
            raise ValueError(f"the learning rate is {group['lr']!r}")
        after = first + len(settings["params"])
        if group.keys() != settings.keys() or any(
                type(group[name]) is not type(settings[name]) or group[name] != settings[name]
                for name in settings.keys() - {"lr", "params"}) or group["params"] != list(
                    range(first, after)):
            raise ValueError("the optimizer's settings are others")
        first = after


def load_progress(run: Run, state: dict) -> None:
    """Set where a run stands, in place.

    Args:
        run: the run.
        state: the content of a checkpoint.

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
    run.zero_shot = state.get("zero_shot")  # checkpoints of earlier versions do not have it
    if run.zero_shot is not None and not all(
            isinstance(name, str) and isinstance(value, float)
            for name, value in run.zero_shot.items()):
        raise ValueError("metrics before the first step that are no numbers")
    run.logs = [{name: torch.tensor(float(value), device=run.device)
                 for name, value in logs.items()} for logs in state["logs"]]
    if not all("loss" in logs for logs in run.logs):
        raise ValueError("a step was logged without its loss")
