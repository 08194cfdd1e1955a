"""Print what a run is about to do, in a few lines."""

import os
import textwrap
from pathlib import Path

import torch

from common.errors import InputError
from common.presets import PRESETS, RECIPES, default_data_path, preset_lines
from common.ranks import world_size
from common.terminal import print_status, warn
from encoders.preparation import preparation_text
from training.objectives import objective_class
from training.objectives.base import phases
from training.options import TrainOptions, default_folder
from training.run import Run
from training.true_matches import ORACLE_TEXT


def print_outline(run: Run, given: set[str], resume: Path | None) -> None:
    """Print the outline of a run, and a warning if it asks for FNE and never reaches it.

    Args:
        run: the run, before its first step.
        given: names of the options that the command line itself gave.
        resume: the checkpoint that the run goes on from, with its options.
    """
    for line in outline(run, given, resume):
        print_status(line)
    warn_without_fne(run.options)


def outline(run: Run, given: set[str], resume: Path | None) -> list[str]:
    """Describe a run in lines of 80 columns; a path alone may be longer.

    Args:
        run: the run, before its first step.
        given: names of the options that the command line itself gave.
        resume: the checkpoint that the run goes on from, with its options.
    """
    options, steps = run.options, run.steps_per_epoch
    epochs = "1 epoch" if options.num_epochs == 1 else f"{options.num_epochs} epochs"
    lines = [
        f"data: {options.dataset}, {run.captions:,} pairs of {len(run.photos):,} photos in "
        f"{options.data_path.absolute()}",
        preparation_text(options),
        f"model: {parameters_text(run)}; on {device_text(run)}",
        f"steps: {steps:,} of {options.batch_size_train} pairs an epoch, {epochs}, "
        f"{steps * options.num_epochs:,} in all",
        f"loss: {phases_text(options)}",
    ]
    if options.oracle != "off":
        lines.append(ORACLE_TEXT[options.oracle])
    recipe = RECIPES[options.recipe] if options.recipe else {}
    for start, values, over in (
            (f"preset of {options.dataset}: ", PRESETS[options.dataset], recipe),
            (f"recipe {options.recipe}: ", recipe, {})):
        used = {name: value for name, value in values.items()
                if name not in given and name not in over and getattr(options, name) == value}
        if used and resume is None:
            lines.append(preset_lines(used, start, 2))
    if resume is not None:
        next_phase = (f"{run.phase} comes next" if run.epoch < options.num_epochs else
                      "and only the test is left")
        lines.append(f"goes on from {resume}: {run.position}, {next_phase}")
    lines.append(f"writes to: {options.logger_name.absolute()}")
    return [line if "\n" in line else
            textwrap.fill(line, 80, subsequent_indent="  ", break_long_words=False,
                          break_on_hyphens=False) for line in lines]


def parameters_text(run: Run) -> str:
    """Say how many parameters the model has, and how many of them are trained."""
    parameters = list(run.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    frozen = "" if trained == total else f", of which {trained / 1e6:.1f} million are trained"
    return f"{total / 1e6:.1f} million parameters{frozen}"


def device_text(run: Run) -> str:
    """Say where the encoders compute, and in what precision."""
    if run.device.type == "cuda":
        name = torch.cuda.get_device_name(run.device)
    else:
        threads = torch.get_num_threads()
        name = f"the CPU, {threads} thread{'s' * (threads > 1)}"
    each = f"{world_size()} processes, each on " if world_size() > 1 else ""
    same = ", deterministic" if run.options.deterministic else ""
    return f"{each}{name}, encoders in {'bf16' if run.model.bf16 else 'fp32'}{same}"


def phases_text(options: TrainOptions) -> str:
    """Say which loss each epoch has: "epochs 1-5 triplet, all negatives; 6-10 FNE"."""
    texts = [f"{first}-{last} {name}" if last > first else f"{first} {name}"
             for first, last, name in phases(objective_class(options.loss), options)]
    return f"{'epoch' if options.num_epochs == 1 else 'epochs'} {'; '.join(texts)}"


def warn_without_fne(options: TrainOptions) -> None:
    """Warn a user who asks for FNE and gives it no epoch."""
    if options.loss == "fne" and options.num_epochs <= options.warmup_epochs:
        warn(f"--num_epochs {options.num_epochs} is no more than --warmup_epochs "
             f"{options.warmup_epochs}: FNE never trains, and this run is its warm-up alone. Give "
             f"--num_epochs {options.warmup_epochs + 1} or more, or fewer --warmup_epochs")


def print_phase(run: Run) -> None:
    """Print a line at the start of an epoch if its loss differs from that of the epoch before."""
    if run.epoch and run.phase != run.objective.phase(run.options, run.epoch - 1):
        print_status(f"epoch {run.epoch + 1}/{run.options.num_epochs}: from here on {run.phase}")


def check_default_places(options: TrainOptions) -> None:
    """Check that no folder that the user did not name would be made where it is not wanted.

    Raises:
        InputError: a default folder would be made in the root of the file system, or where nothing
            can be written.
    """
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
    """Return the nearest folder above `path` that exists."""
    return next(parent for parent in path.parents if parent.exists())
