"""What a run is about to do, in a few lines for whoever starts it."""

import os
import textwrap
from pathlib import Path

import torch

from common.errors import InputError
from common.flags import PRESETS, default_data_path, preset_lines
from common.options import TrainOptions, default_folder
from common.ranks import world_size
from common.terminal import print_status, warn
from training import oracle
from training.run import Run
from training.schedule import FNE, phase, phases


def tell(run: Run, pairs: int, given: set[str], resume: Path | None) -> None:
    """Print what lies ahead of a run.

    Args:
        pairs: of the training split.
        given: the options that the command line itself gave.
        resume: the checkpoint that the run goes on from, with its options.
    """
    for line in outline(run, pairs, given, resume):
        print_status(line)
    warn_without_fne(run.options)


def outline(run: Run, pairs: int, given: set[str], resume: Path | None) -> list[str]:
    """Lines of 80 columns; paths alone may be longer."""
    options, steps = run.options, run.steps_per_epoch
    epochs = "1 epoch" if options.num_epochs == 1 else f"{options.num_epochs} epochs"
    lines = [
        f"data: {options.dataset}, {pairs:,} pairs of {len(run.photos):,} photos in "
        f"{options.data_path.absolute()}",
        f"model: {parameters_text(run)}; on {device_text(run)}",
        f"steps: {steps:,} of {options.batch_size_train} pairs an epoch, {epochs}, "
        f"{steps * options.num_epochs:,} in all",
        f"loss: {phases_text(options)}",
        *([oracle.text(options.oracle)] if options.oracle != oracle.OFF else []),
    ]
    preset = {name: value for name, value in PRESETS[options.dataset].items()
              if name not in given and getattr(options, name) == value}
    if preset and resume is None:
        lines.append(preset_lines(preset, f"preset of {options.dataset}: ", 2))
    if resume is not None:
        ahead = (f"{run.phase} comes next" if run.epoch < options.num_epochs else
                 "and only the test is left")
        lines.append(f"goes on from {resume}: {run.position}, {ahead}")
    lines.append(f"writes to: {options.logger_name.absolute()}")
    return [line if "\n" in line else
            textwrap.fill(line, 80, subsequent_indent="  ", break_long_words=False,
                          break_on_hyphens=False) for line in lines]


def parameters_text(run: Run) -> str:
    """How large the model is, and what of it is trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in run.model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, own in sizes if own)
    frozen = "" if trained == total else f", of which {trained / 1e6:.1f} million are trained"
    return f"{total / 1e6:.1f} million parameters{frozen}"


def device_text(run: Run) -> str:
    """Where the encoders compute, and in what precision."""
    if run.device.type == "cuda":
        name = torch.cuda.get_device_name(run.device)
    else:
        threads = torch.get_num_threads()
        name = f"the CPU, {threads} thread{'s' * (threads > 1)}"
    each = f"{world_size()} processes, each on " if world_size() > 1 else ""
    same = ", deterministic" if run.options.deterministic else ""
    return f"{each}{name}, encoders in {'bf16' if run.model.bf16 else 'fp32'}{same}"


def phases_text(options: TrainOptions) -> str:
    """Which loss each epoch has: "epochs 1-5 triplet, all negatives; 6-10 FNE"."""
    parts = [f"{first}-{last} {name}" if last > first else f"{first} {name}"
             for first, last, name in phases(options)]
    return f"{'epoch' if options.num_epochs == 1 else 'epochs'} {'; '.join(parts)}"


def warn_without_fne(options: TrainOptions) -> None:
    """Tell whoever asks for FNE and gives it no epoch."""
    if options.loss == "fne" and all(name != FNE for _, _, name in phases(options)):
        warn(f"--num_epochs {options.num_epochs} is no more than --warmup_epochs "
             f"{options.warmup_epochs}: FNE never trains, and this run is its warm-up alone. Give "
             f"--num_epochs {options.warmup_epochs + 1} or more, or fewer --warmup_epochs")


def tell_phase(run: Run) -> None:
    """At the start of an epoch, a line if its loss is another one than that of the last."""
    if run.epoch and run.phase != phase(run.options, run.epoch - 1):
        print_status(f"epoch {run.epoch + 1}/{run.options.num_epochs}: from here on {run.phase}")


def check_default_places(options: TrainOptions) -> None:
    """Raise InputError where a folder that nobody named would be made in the root of the file
    system, or where nothing can be written."""
    defaults = {"data_path": default_data_path(options.dataset, options.ambiguity),
                "logger_name": default_folder(options)}
    here = Path.cwd()
    stray = [name for name, default in defaults.items()
             if getattr(options, name) == default and not default.exists()
             and (here == Path(here.root) or not os.access(first_parent(here / default), os.W_OK))]
    if stray:
        folders = " and ".join(str(here / defaults[name]) for name in stray)
        flags = " and ".join(f"--{name}" for name in stray)
        raise InputError(f"{flags}: nothing was named, and {folders} will not be made unasked: "
                         f"give {flags}, or start in a folder of your own")


def first_parent(path: Path) -> Path:
    """The nearest folder above `path` that is there."""
    return next(parent for parent in path.parents if parent.exists())
