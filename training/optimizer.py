"""The optimizer of a run: which parameters share a learning rate and a weight decay."""

import re

import torch
from torch import nn

from common.errors import InputError
from common.processes import make_optimizer
from model import DualEncoder
from training.objectives.base import Objective
from training.options import TrainOptions

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
LAYER_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")  # in a parameter's name: "encoder.layer.3.output..."


def build_optimizer(
    options: TrainOptions, model: DualEncoder, objective: Objective
) -> tuple[torch.optim.Optimizer, list[float]]:
    """Build the optimizer of a run.

    Args:
        options: the run's options.
        model: the online model, on its device.
        objective: the objective, whose own parameters are trained as well.

    Returns:
        The optimizer, and the learning rate of each of its groups before warm-up and schedule.
    """
    groups = parameter_groups(options, model, objective)
    rates = [group["lr"] for group in groups]
    # Fused, so that `guard.guarded_step` can leave out a step without waiting for the device.
    optimizer = make_optimizer(OPTIMIZERS[options.optimizer], groups, options.shard, lr=rates[0],
                               fused=True)
    return optimizer, rates


def parameter_groups(
    options: TrainOptions, model: DualEncoder, objective: Objective
) -> list[dict]:
    """Group the parameters that are trained by learning rate and weight decay.

    A tower is an encoder, with the projection that belongs to a pretrained pair. The head is what
    follows the towers: the model's own projections, and the parameters of the objective. In one
    setting for all there is one group, in the order of the model's parameters.

    Args:
        options: `image_lr`, `text_lr` and `head_lr` are the rates, `learning_rate` where one is
            None; `layer_decay` lowers those of the towers (`layer_depths`), and `weight_decay`
            holds for the parameters that `decays` tells.
        model: the online model.
        objective: the objective.

    Returns:
        Groups as `torch.optim` takes them: "params", "lr" and "weight_decay".

    Raises:
        InputError: `--layer_decay` is given, and an encoder has no numbered layers.
    """
    rates = {"image": options.image_lr, "text": options.text_lr, "head": options.head_lr}
    rates = {part: options.learning_rate if rate is None else rate for part, rate in rates.items()}
    by_part = options.layer_decay < 1 or any(
        rate is not None for rate in (options.image_lr, options.text_lr, options.head_lr))
    above = layers_above(model) if options.layer_decay < 1 else {}
    groups: dict[tuple, dict] = {}
    for module in model, objective:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            part = name.partition("_encoder.")[0] if module is model else "head"
            part = part if part in ("image", "text") else "head"
            steps = above.get(name, 0) if module is model else 0
            # An integer 0, as torch's Adam and the checkpoints of earlier versions have it.
            decay = options.weight_decay if options.weight_decay and decays(name, parameter) else 0
            # By part and layer and not by rate: a run that goes on with another --learning_rate,
            # which may be that of another group, keeps its groups.
            group = groups.setdefault((by_part and part, steps, decay), {
                "params": [], "lr": rates[part] * options.layer_decay**steps,
                "weight_decay": decay})
            group["params"].append(parameter)
    return list(groups.values())


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Return whether `--weight_decay` holds for a parameter: for matrices and kernels that are no
    biases. Vectors and numbers, such as those of norms and a logit scale, do not decay."""
    return parameter.ndim > 1 and "bias" not in name.rpartition(".")[2]


def layers_above(model: DualEncoder) -> dict[str, int]:
    """Count the layers of an encoder above each of its parameters, by the parameters' names.

    A layer is what stands under one number in the names, such as the 3 of
    "text_encoder.encoder.layer.3.output.dense.weight"; in an encoder of stages it is a stage. An
    encoder of N layers has N + 1 above what comes before the first, such as its embeddings; N to 1
    above the layers, and 0 above what comes after the last, such as a pair's own projection.

    Args:
        model: the online model; an encoder that is not trained is left out.

    Returns:
        The number of layers for each parameter of a trained encoder.

    Raises:
        InputError: an encoder has no number in its parameters' names.
    """
    above = {}
    for side in "image", "text":
        names = [name for name, parameter in model.named_parameters()
                 if parameter.requires_grad and name.startswith(f"{side}_encoder.")]
        numbers = {name: int(found[1]) for name in names if (found := LAYER_NUMBER.search(name))}
        if names and not numbers:
            raise InputError(f"--layer_decay: the encoder of --{side}_encoder has no numbered "
                             "layers; leave the flag out")
        layers = max(numbers.values(), default=0) + 1
        before_all = True
        for name in names:
            before_all = before_all and name not in numbers
            above[name] = layers - numbers.get(name, -1 if before_all else layers)
    return above
