"""What is measured of a run while it trains, for TensorBoard.

No weight, statistic, key or random number changes here, so a run is the same without it.
"""

import torch
from torch import Tensor

from training.objectives.base import Outcome, Step
from training.run import Run


@torch.no_grad()
def log_step(run: Run, step: Step, outcome: Outcome, norm: Tensor, taken: Tensor) -> None:
    """Add a step to the run's logs in place.

    A step that was not taken logs NaN, which no mean includes.

    Args:
        run: the run.
        step: what the objective was given.
        outcome: what the objective gave.
        norm: () norm of the gradient before clipping.
        taken: () bool, whether the step changed the weights.
    """
    logs = {"loss": outcome.batch_loss, "gradient_norm": norm,
            "similarity_spread": step.similarity.std(correction=0), **outcome.logs}
    if run.objective.matches.known:
        logs["false_negative_share"] = run.objective.matches.share_of(*outcome.negatives)
    run.logs.append({name: value.detach().float().where(taken, torch.nan)
                     for name, value in logs.items()})


def logs_due(run: Run) -> bool:
    """Tell whether it is time to write the logs, every `--log_step` steps."""
    return bool(run.logs) and run.global_step % run.options.log_step == 0


def take_values(run: Run) -> dict[str, float]:
    """Compute all that TensorBoard gets every `--log_step` steps, by tag, and empty the logs.

    This is the only place that waits for the device while a run trains, since it reads values back.
    """
    values = mean_values(run) | state_values(run) | time_values(run)
    run.logs.clear()
    run.clock.lap(None)
    return {name: float(value) for name, value in values.items()}


def mean_values(run: Run) -> dict[str, Tensor]:
    """Compute the means of the logs over the steps that were taken, by tag."""
    means = {}
    for name in run.logs[-1]:
        steps = torch.stack([logs[name] for logs in run.logs if name in logs])
        means[f"train/{name}"] = steps.nanmean()
    return means


def state_values(run: Run) -> dict[str, Tensor | float]:
    """Give the learning rate and the state of the objective as they are now, by tag."""
    return {"train/skipped_steps": run.skips.count,
            "train/learning_rate": run.highest_learning_rate,
            **run.objective.values()}


def time_values(run: Run) -> dict[str, float]:
    """Compute milliseconds a step by part, and photos a second, since the last call, by tag.

    Empty where a resumed run writes the logs that its predecessor had to leave.
    """
    steps = sum(name == "data" for name, _ in run.clock.marks)
    seconds = run.clock.seconds()
    if not steps:
        return {}
    values = {f"time/{name}_ms": 1000 * total / steps for name, total in seconds.items()}
    photos = steps * run.options.batch_size_train
    return values | {"train/photos_per_second": photos / seconds.total()}
