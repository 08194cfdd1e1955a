"""A run: its state, how it is built or taken up again, and its learning rate."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import checkpoint
from encoders import image_statistics
from fne_loss import FNELoss
from galleries import BINS
from guard import Skips
from memory_bank import MemoryBank
from model import (
    DualEncoder,
    build_model,
    checkpoint_gradients,
    compile_encoders,
    momentum_copy,
    pick_device,
    use_bf16,
)
from monitor import StepClock


@dataclass
class Run:
    """All that changes while a run goes on; `checkpoint.pack` saves it."""

    options: argparse.Namespace
    device: torch.device
    model: DualEncoder
    criterion: FNELoss
    log_scale: nn.Parameter  # () log of the inverse temperature of --loss infonce
    optimizer: torch.optim.Optimizer
    momentum_model: DualEncoder | None  # None for the controls, as is the bank
    bank: MemoryBank | None
    pixel_statistics: tuple[list[float], list[float]]  # mean and std of the three channels
    steps_per_epoch: int
    matches: Tensor | None  # (N_t, N_i) bool, all true matches of the training split, where known
    photos: list[Path]  # (N_i,) files of the training split
    skips: Skips  # steps that were not finite
    clock: StepClock
    counts: Tensor | None = None  # (2, BINS) similarities of this epoch, where figures are drawn
    features: Tensor | None = None  # (N_i, width) of a frozen image encoder, photos not augmented
    epoch: int = 0
    step: int = 0  # steps done in this epoch
    global_step: int = 0
    validation_due: bool = False  # after the last step, and not done yet
    best_rsum: float = -1.0
    bad_photos: list[int] = field(default_factory=list)  # that could not be read, by index
    collapsed: bool = False  # as last said
    logs: list[dict[str, Tensor]] = field(default_factory=list)  # since they were last written


def build_run(
    options, tokenizer, matches: Tensor | None, steps_per_epoch: int, state: dict | None,
    photos: list[Path] = (),
) -> Run:
    """A fresh run, or the one in checkpoint `state`; `photos` (N_i,) are named in warnings."""
    torch.manual_seed(options.seed)
    device = pick_device(options.device)
    if state is not None and checkpoint.is_released(state):
        model = checkpoint.released_dual_encoder(options, state, options.resume)
    else:
        model = build_model(options, tokenizer, pretrained=state is None)
    model = model.to(device)
    model.bf16 = use_bf16(options.precision, device)
    momentum_model = momentum_copy(model) if options.loss == "fne" else None
    if options.grad_checkpointing:
        checkpoint_gradients(model)
    if options.compile:
        compile_encoders(*filter(None, (model, momentum_model)))
    log_scale = nn.Parameter(torch.tensor(1 / 0.07, device=device).log())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.loss == "infonce":
        parameters.append(log_scale)
    # Fused, so that `guard.skip_unless` can leave out a step without waiting for the device.
    optimizer = torch.optim.Adam(parameters, lr=options.learning_rate, fused=True)
    criterion = FNELoss(options.margin, options.tau, options.prior, options.posterior_floor,
                        options.nums_right_sims).to(device)
    bank = MemoryBank(options.queue_size, model.embed_size).to(device) if momentum_model else None
    run = Run(options, device, model, criterion, log_scale, optimizer, momentum_model, bank,
              image_statistics(options), steps_per_epoch, matches, photos,
              Skips(options.batch_size_train).to(device), StepClock(device))
    if bank is not None and not options.no_figures:
        run.counts = torch.zeros(2, BINS, dtype=torch.int64, device=device)
    if state is not None:
        checkpoint.unpack(run, state, options.resume)
    return run


def set_learning_rate(run: Run) -> None:
    """A pure function of the step, so there is no scheduler whose state could be lost."""
    factor = learning_rate_factor(run.options, run.global_step, run.steps_per_epoch)
    for group in run.optimizer.param_groups:
        group["lr"] = run.options.learning_rate * factor


def learning_rate_factor(options, step: int, steps_per_epoch: int) -> float:
    """The share of --learning_rate at a step: a rise at the start, then tenfold falls."""
    epoch = step // steps_per_epoch
    falls = (epoch // options.lr_update if options.lr_update
             else sum(epoch >= milestone for milestone in options.lr_milestones))
    return min(1.0, (step + 1) / (options.lr_warmup + 1)) * 0.1**falls
