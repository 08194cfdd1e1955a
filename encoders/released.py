"""The checkpoints that the authors of the paper released: how one is told, what it says of its
training, and its encoders, through transformers' own conversion of old parameter names.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel

from common.errors import InputError, pass_on
from common.options import ModelOptions
from common.weights import fault
from encoders.towers import load_config, quiet_transformers


def is_released(state: dict) -> bool:
    """True for the authors' format: a list in `model`, their options in `opt`."""
    model = state.get("model")
    return (isinstance(model, list) and len(model) > 0 and isinstance(model[0], dict)
            and isinstance(state.get("opt"), argparse.Namespace)
            and any(key.startswith("visual_encoder.") for key in model[0]))


def released_options(state: dict) -> dict:
    """What evaluation and fine-tuning take over from a released checkpoint."""
    stored = vars(state["opt"])
    taken = "dataset", "image_res", "margin", "momentum", "nums_right_sims"
    options = {name: stored[name] for name in taken if name in stored}
    queue = state["model"][0].get("image_queue")
    if queue is not None:
        options["queue_size"] = queue.shape[1]
    # Their towers have no projection, whatever their --embed_size says, and average the padding.
    # Whoever goes on from such a model is past the warm-up.
    return options | {"embed_size": 0, "text_pooling": "padded", "freeze": None, "loss": "fne",
                      "warmup_epochs": 0, "image_stats": "clip"}


def released_encoders(
    options: ModelOptions, state: dict, path: Path, momentum: bool = False
) -> list[nn.Module]:
    """The image and the text encoder of a released checkpoint, or with `momentum` their copies.

    Raises:
        InputError: the weights are not those of the configurations that the options name.
    """
    quiet_transformers()
    suffix = "_m." if momentum else "."
    encoders = []
    for side, name, prefix in (("image", options.image_encoder, "visual_encoder"),
                               ("text", options.text_encoder, "text_encoder")):
        config = load_config(name, side)
        weights = {key.removeprefix(prefix + suffix): value
                   for key, value in state["model"][0].items() if key.startswith(prefix + suffix)}
        # A buffer that transformers no longer keeps; it holds 0, 1, 2, ...
        weights.pop("embeddings.position_ids", None)
        encoders.append(encoder_from_weights(config, weights, f"{path} ({side} encoder)"))
    return encoders


def encoder_from_weights(config, weights: dict, source: str) -> nn.Module:
    """An encoder whose every parameter comes from `weights`, under old names or new ones.

    Raises:
        InputError: anything is missing, left over or of another shape; it lists them.
    """
    with torch.device("meta"):
        kind = type(AutoModel.from_config(config))
    try:
        encoder, info = kind.from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True,
            ignore_mismatched_sizes=True, dtype=torch.float32)
    except (RuntimeError, ValueError) as error:
        pass_on(error)
        raise InputError(f"{source} does not fit: {str(error).splitlines()[0]}") from error
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    fault(source, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), mismatched)
    return encoder
