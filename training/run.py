"""A run: all that changes while it trains, and how it is set up."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from common.device import place_on_device
from common.processes import broadcast_tensors, with_summed_gradients
from data import LoadedSplit
from encoders.processors import image_statistics, photo_fit
from encoders.stored import describe_encoders
from inputs.fitting import PhotoFit
from model import (
    DualEncoder,
    check_deterministic_gradients,
    compile_encoders,
    enable_gradient_checkpointing,
)
from teacher.posterior import TeacherPosterior
from training.clock import StepClock
from training.objectives import objective_class
from training.objectives.base import Objective, compile_losses
from training.optimizer import build_optimizer
from training.options import TrainOptions
from training.schedule import learning_rate_factor, position


class Skips(nn.Module):
    """Count the steps that changed nothing because something in them was not finite.

    The buffers stay on the device, so that no step waits to see them:
        count: () int64, all such steps.
        in_a_row: () int64, such steps in a row up to the last step.
        longest: () int64, the most in a row since this process looked; not saved.
        step: () int64, number of the latest, from 1.
        image_ids: (B,) int64, photos of the latest.

    Args:
        batch: B, pairs in a step.
    """

    def __init__(self, batch: int):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("in_a_row", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("longest", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("image_ids", torch.zeros(batch, dtype=torch.int64))

    @property
    def last_step_taken(self) -> Tensor:
        """() bool, whether the last step changed the weights."""
        return self.in_a_row == 0

    @torch.no_grad()
    def update(self, taken: Tensor, image_ids: Tensor, step: int) -> None:
        """Count a step in place.

        Args:
            taken: () bool, whether the step changed the weights.
            image_ids: (B,) int64, its photos.
            step: steps done before it.
        """
        self.count += ~taken
        self.in_a_row.copy_((self.in_a_row + 1) * ~taken)
        self.longest.copy_(self.longest.maximum(self.in_a_row))
        self.step.copy_(self.step.where(taken, step + 1))
        latest = self.image_ids[: len(image_ids)]
        latest.copy_(latest.where(taken, image_ids))


@dataclass
class Run:
    """The state of a run; `checkpoint.pack` saves what of it changes."""

    options: TrainOptions
    device: torch.device
    model: DualEncoder
    encode_pairs: nn.Module  # the model, or what sums the gradients of several processes around it
    objective: Objective
    optimizer: torch.optim.Optimizer
    learning_rates: list[float]  # of each group of the optimizer, before warm-up and schedule
    pixel_statistics: Tensor  # (2, 3) mean and std of the channels, on `device`
    photo_fit: PhotoFit  # how photos are fitted into a square where they are not augmented
    steps_per_epoch: int
    photos: Sequence[Path]  # (N_i,) files of the training split
    captions: int | None  # N_t of the training split; None in a trial without data
    skips: Skips
    clock: StepClock
    encoders: dict  # what `encoders.stored` has a checkpoint hold of them
    # Features of the training split, which `training.features` has frozen encoders make once.
    image_features: Tensor | None = None  # (N_i, W), of photos that are not augmented
    text_features: Tensor | None = None  # (N_t, W)
    teacher: TeacherPosterior | None = None  # P(match) of the training split by --teacher
    epoch: int = 0  # epochs done
    step: int = 0  # steps done in this epoch
    global_step: int = 0
    validation_due: bool = True  # before the first step or after the last one, and not done yet
    best_rsum: float = -1.0
    zero_shot: dict[str, float] | None = None  # metrics of the validation before the first step
    bad_photos: list[int] = field(default_factory=list)  # that could not be read, by index
    collapsed: bool = False  # whether the last warning told of a collapse
    logs: list[dict[str, Tensor]] = field(default_factory=list)  # since they were last written

    @property
    def phase(self) -> str:
        """The name of the loss of the next step."""
        return self.objective.phase(self.options, self.epoch)

    @property
    def position(self) -> str:
        """Where the run stands: "epoch 3/10, step 78/156"."""
        epoch, step = position(self.epoch, self.step, self.steps_per_epoch)
        return f"epoch {epoch}/{self.options.num_epochs}, step {step:,}/{self.steps_per_epoch:,}"

    def set_learning_rate(self) -> None:
        """Set the learning rate of each group of the optimizer for the next step, in place."""
        factor = learning_rate_factor(self.options, self.global_step, self.steps_per_epoch)
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = rate * factor

    @property
    def highest_learning_rate(self) -> float:
        """The learning rate of the last step, the highest one of the optimizer's groups."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def finish_step(self, validate_at: set[int]) -> None:
        """Count a step, and an epoch at its end, in place.

        Args:
            validate_at: of `schedule.validation_steps`.
        """
        self.validation_due = self.step + 1 in validate_at
        self.step += 1
        self.global_step += 1
        if self.step == self.steps_per_epoch:
            self.epoch, self.step = self.epoch + 1, 0

    def train_mode(self) -> None:
        """Switch dropout on, in the momentum encoders too, as published."""
        self.model.train()
        self.objective.train()


def build_run(
    options: TrainOptions, model: DualEncoder, tokenizer, steps_per_epoch: int,
    train_set: LoadedSplit | None = None, teacher: TeacherPosterior | None = None,
) -> Run:
    """Build a run at its start around a model.

    Args:
        options: the run's options.
        model: the online model; moved to the device in place.
        tokenizer: of the text encoder, for the checkpoint to keep.
        steps_per_epoch: whole batches of the training split.
        train_set: the training split; None in a trial without data.
        teacher: P(match) of the training split by --teacher, on the run's device.
    """
    device = place_on_device(model, options)
    broadcast_tensors(*model.parameters(), *model.buffers())
    model.chunk = options.chunk
    split = None if train_set is None else train_set.split
    objective = objective_class(options.loss)(options, model, split).to(device)
    objective.set_teacher(teacher)
    if options.grad_checkpointing:
        enable_gradient_checkpointing(model)
    if options.deterministic:
        check_deterministic_gradients(model, options, device)
    if options.compile:
        compile_encoders(model, *(module for module in objective.modules()
                                  if isinstance(module, DualEncoder)))
        compile_losses(objective)
    check_entries_named(objective)
    statistics, fit = image_statistics(options), photo_fit(options)
    return Run(
        options, device, model, with_summed_gradients(model, options.comm_dtype),
        objective,
        *build_optimizer(options, model, objective), torch.tensor(statistics, device=device),
        fit, steps_per_epoch, () if train_set is None else train_set.photos,
        None if train_set is None else len(train_set.captions),
        Skips(options.batch_size_train).to(device), StepClock(device),
        describe_encoders(model, tokenizer, *statistics, fit), teacher=teacher)


def check_entries_named(objective: Objective) -> None:
    """Check that the checkpoint keeps every parameter that an objective trains.

    Raises:
        TypeError: `Objective.entries` lacks one, so that a run that goes on would lose it.
    """
    saved = set()
    for value in objective.entries().values():
        saved |= set(value.parameters() if isinstance(value, nn.Module) else [value])
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad and parameter not in saved:
            raise TypeError(f"{type(objective).__name__}.entries does not name {name}, which is "
                            "trained: a run that goes on would lose it")
