"""A run: all that changes while it trains."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import InputError
from common.ranks import rank
from data import LoadedSplit
from fne_loss import FNELoss
from memory_bank import MemoryBank
from model import DualEncoder, MomentumUpdate
from training.clock import StepClock
from training.objectives.options import FNEOptions
from training.options import TrainOptions
from training.schedule import learning_rate_factor, phase, position


class Skips(nn.Module):
    """Steps that changed nothing because something in them was not finite.

    Buffers: `count` () int64, in all; `in_a_row` () int64, up to the last step; `longest` () int64,
    the most in a row since this process looked; `step` () int64 and `image_ids` (B,) int64 of the
    latest. They stay on the device: no step waits to see them.
    """

    def __init__(self, batch: int):
        super().__init__()
        for name in "count", "in_a_row", "step":
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("longest", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("image_ids", torch.zeros(batch, dtype=torch.int64))

    @torch.no_grad()
    def update(self, good: Tensor, image_ids: Tensor, step: int) -> None:
        """Count a step: `good` () bool, its photos (B,), and how many steps came before it."""
        self.count += ~good
        self.in_a_row.copy_((self.in_a_row + 1) * ~good)
        self.longest.copy_(self.longest.maximum(self.in_a_row))
        self.step.copy_(self.step.where(good, step + 1))
        last = self.image_ids[: len(image_ids)]
        last.copy_(last.where(good, image_ids))


@dataclass
class Run:
    """What a run is made of; `checkpoint.pack` saves what of it changes."""

    options: TrainOptions
    device: torch.device
    model: DualEncoder
    towers: nn.Module  # the same, or what sums the gradients of several processes around it
    criterion: FNELoss
    log_scale: nn.Parameter  # () log of the inverse temperature of --loss infonce
    optimizer: torch.optim.Optimizer
    pixel_statistics: Tensor  # (2, 3) mean and std of the channels, on `device`
    steps_per_epoch: int
    photos: Sequence[Path]  # (N_i,) files of the training split
    skips: Skips
    clock: StepClock
    encoders: dict  # what `encoders.stored` has a checkpoint hold of them
    momentum_model: DualEncoder | None = None  # None for the controls, as are the next two
    update_momentum: MomentumUpdate | None = None
    bank: MemoryBank | None = None
    captions: int | None = None  # N_t of the training split, where known
    matches: Tensor | None = None  # (N_t, N_i) bool, all true matches of training, where known
    counts: Tensor | None = None  # (2, BINS) similarities of this epoch, where figures are drawn
    features: Tensor | None = None  # (N_i, width) of a frozen image encoder, photos not augmented
    epoch: int = 0
    step: int = 0  # steps done in this epoch
    global_step: int = 0
    validation_due: bool = True  # before the first step or after the last one, and not done yet
    best_rsum: float = -1.0
    bad_photos: list[int] = field(default_factory=list)  # that could not be read, by index
    collapsed: bool = False  # as last said
    logs: list[dict[str, Tensor]] = field(default_factory=list)  # since they were last written

    @property
    def phase(self) -> str:
        """The loss of the next step, as `schedule.phase` names it."""
        return phase(self.options, self.epoch)

    @property
    def position(self) -> str:
        """Where the run stands: "epoch 3/10, step 78/156"."""
        epoch, step = position(self.epoch, self.step, self.steps_per_epoch)
        return f"epoch {epoch}/{self.options.num_epochs}, step {step:,}/{self.steps_per_epoch:,}"

    def start_epoch(self) -> None:
        """Forget what is kept for one epoch only: FNE's statistics, and their histograms."""
        self.criterion.reset_statistics()
        if self.counts is not None:
            self.counts.zero_()

    def set_learning_rate(self) -> None:
        """That of the next step."""
        factor = learning_rate_factor(self.options, self.global_step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * factor

    def finish_step(self, validate_at: set[int]) -> None:
        """Count a step, and an epoch at its end; `validate_at` of `schedule.validation_steps`."""
        self.validation_due = self.step + 1 in validate_at
        self.step += 1
        self.global_step += 1
        if self.step == self.steps_per_epoch:
            self.epoch, self.step = self.epoch + 1, 0

    def seed(self, stream: str) -> None:
        """Begin the random numbers of the next step's "dropout", another in each process, or of its
        "draws", the same in all. They follow from --seed and the step: nothing is to be kept."""
        which = (0, 0) if stream == "draws" else (1, rank())
        numbers = np.random.SeedSequence([self.options.seed, self.global_step, *which])
        torch.manual_seed(int(numbers.generate_state(1, np.uint64)[0] >> 1))

    def train_mode(self) -> None:
        """Dropout on, in the momentum encoders too, as published."""
        for model in filter(None, (self.model, self.momentum_model)):
            model.train()


def build_loss(options: FNEOptions) -> FNELoss:
    """The FNE loss that the options describe; of a run, or as a file tells of them."""
    return FNELoss(options.margin, options.tau, options.prior, options.posterior_floor,
                   options.nums_right_sims, options.posterior)


def check_captions(options: FNEOptions, train_set: LoadedSplit) -> None:
    """Raise InputError where no photo has what --posterior evidence is fitted to: captions."""
    split = train_set.split
    if options.posterior == "evidence" and len(train_set.captions) == len(split.images):
        raise InputError(f"--posterior evidence: each photo of {split.source} has one caption, and "
                         "it is fitted to photos that have several; leave the flag out")
