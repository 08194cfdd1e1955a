"""The checkpoints that the authors of the paper released: their format, options and encoders.

The names of their weights are older than those of transformers today, which renames them itself.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel

from common.errors import InputError, reraise_out_of_memory
from common.options import ModelOptions
from common.weights import check_weights_match
from encoders.loading import load_config, quiet_transformers


def is_released(state: dict) -> bool:
    """Return whether a checkpoint's content has the authors' format.

    That format has a list of weights in `model`, and an `argparse.Namespace` in `opt`.
    """
    model = state.get("model")
    return (isinstance(model, list) and len(model) > 0 and isinstance(model[0], dict)
            and isinstance(state.get("opt"), argparse.Namespace)
            and any(key.startswith("visual_encoder.") for key in model[0]))


def released_options(state: dict) -> dict:
    """Return the options that evaluation and fine-tuning take over from a released checkpoint."""
    stored = vars(state["opt"])
    names = "dataset", "image_res", "margin", "momentum", "nums_right_sims"
    options = {name: stored[name] for name in names if name in stored}
    queue = state["model"][0].get("image_queue")  # (D, M)
    if queue is not None:
        options["queue_size"] = queue.shape[1]
    # The authors' encoders have no projection, whatever their --embed_size says, and average the
    # padding. A run that starts from such a model is past the warm-up.
    return options | {"embed_size": 0, "text_pooling": "padded", "freeze": None, "loss": "fne",
                      "warmup_epochs": 0, "image_stats": "clip", "image_fit": "squash",
                      "captions": "published"}


def released_encoders(
    options: ModelOptions, state: dict, path: Path, momentum: bool = False
) -> list[nn.Module]:
    """Build the image encoder and the text encoder of a released checkpoint.

    Args:
        options: Names the encoders' configurations.
        state: The checkpoint's content.
        path: Its file, for error messages.
        momentum: Whether to build the momentum encoders in place of the online ones.

    Raises:
        InputError: If the weights are not those of the configurations.
    """
    quiet_transformers()
    suffix = "_m." if momentum else "."
    encoders = []
    for side, name, their_name in (("image", options.image_encoder, "visual_encoder"),
                                   ("text", options.text_encoder, "text_encoder")):
        config = load_config(name, side)
        prefix = their_name + suffix
        weights = {key.removeprefix(prefix): value
                   for key, value in state["model"][0].items() if key.startswith(prefix)}
        # A buffer of 0, 1, 2, ... that transformers no longer stores.
        weights.pop("embeddings.position_ids", None)
        encoders.append(encoder_from_weights(config, weights, f"{path} ({side} encoder)"))
    return encoders


def encoder_from_weights(config, weights: dict, source: str) -> nn.Module:
    """Build an encoder whose every parameter comes from `weights`.

    Args:
        config: The encoder's configuration.
        weights: Tensors by name; names of older versions of transformers are renamed.
        source: What error messages begin with.

    Raises:
        InputError: If a weight is missing, left over or of another shape; the message lists them.
    """
    with torch.device("meta"):
        model_class = type(AutoModel.from_config(config))
    try:
        encoder, info = model_class.from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True,
            ignore_mismatched_sizes=True, dtype=torch.float32)
    except (RuntimeError, ValueError) as error:
        reraise_out_of_memory(error)
        raise InputError(f"{source} does not fit: {str(error).splitlines()[0]}") from error
    # Some versions of transformers list (name, shape, shape), others names alone.
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    check_weights_match(source, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]),
                        mismatched)
    return encoder
