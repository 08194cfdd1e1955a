"""Encoders by name: the image encoder or the text encoder of a dual encoder.

An encoder is a Hugging Face vision or text model of a type in `families.SUPPORTED`, by its name on
the Hub or its local folder; one half of a pretrained pair; or one of the small built-in
configurations, which are trained from scratch.
"""

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel

from common.errors import InputError, reraise_out_of_memory
from encoders import open_clip_halves
from encoders.families import Family, find_family
from encoders.hub import fetch, fetch_error_message, fetch_weights
from encoders.hub import quiet_transformers as quiet_transformers  # is public here
from encoders.pairs import PAIRS, PairHalf

# Functions of the side of the photos in pixels and the number of words in the vocabulary.
BUILT_IN = {
    "small-convnext": lambda image_res, words: transformers.ConvNextConfig(
        patch_size=4, num_stages=3, hidden_sizes=[32, 64, 128], depths=[1, 1, 2],
        layer_scale_init_value=0.0),
    "small-vit": lambda image_res, words: transformers.ViTConfig(
        image_size=image_res, patch_size=8, hidden_size=192, num_hidden_layers=6,
        num_attention_heads=3, intermediate_size=768),
    "small-bert": lambda image_res, words: transformers.BertConfig(
        vocab_size=words, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=128, attention_probs_dropout_prob=0.0),
    # No dropout: on `shapes` it costs time and, in so few epochs, recall.
    "tiny-bert": lambda image_res, words: transformers.BertConfig(
        vocab_size=words, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=128, attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0),
}


def load_encoder(
    name: str, side: str, image_res: int, tokenizer=None, pretrained: bool = True
) -> nn.Module:
    """Load the image or text encoder of a name, in float32.

    Weights that the encoder needs and its file lacks are random; the attribute `missing_weights`
    of the encoder lists their names.

    Args:
        name: A name of `BUILT_IN`, a local folder, or the name of a model on the Hub.
        side: "image" or "text".
        image_res: R, the side of the photos in pixels, for a built-in image encoder.
        tokenizer: The text encoder's tokenizer. It decides the number of words of a built-in text
            encoder, and SigLIP's padding token.
        pretrained: If false, only the configuration is read and all weights are random, for a
            checkpoint to fill.

    Raises:
        InputError: If there is no such encoder, or its type is not supported for this side.
    """
    if name in BUILT_IN:
        words = len(tokenizer) if tokenizer is not None else 0
        config = BUILT_IN[name](image_res, words)
        find_family(config, side, name)
        return encoder_from_config(config, side)
    config = load_config(name, side)
    try:
        loader_class = model_class(config, find_family(config, side, name), name)
        if not pretrained:
            return encoder_from_config(config, side, tokenizer)
        model, info = fetch_weights(loader_class, name)
    except InputError:
        raise
    except Exception as error:
        reraise_out_of_memory(error)
        raise unknown_encoder_error(name, side, error) from error
    return encoder_from_model(model, side, tokenizer, sorted(info["missing_keys"]))


def model_class(config, family: Family, name: str = "") -> type:
    """Return the class of transformers that loads models of a configuration.

    Args:
        config: A configuration of transformers, of a type in `families.SUPPORTED`.
        family: Its family.
        name: The model's name, for the error message.

    Raises:
        InputError: If the family has several classes, and the configuration names none of them.
    """
    if not family.classes:
        return getattr(transformers, family.loader_class)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if architecture not in family.classes:
        raise InputError(f"{name or 'the model'} is a {architecture or config.model_type}: of this "
                         f"type only {' and '.join(family.classes)} are pairs for retrieval")
    return getattr(transformers, architecture)


def config_class(model_type: str) -> type:
    """Return the class of configurations of a type in `families.SUPPORTED`."""
    if model_type == open_clip_halves.MODEL_TYPE:
        return open_clip_halves.OpenClipConfig
    return transformers.CONFIG_MAPPING[model_type]


def encoder_from_config(config, side: str, tokenizer=None) -> nn.Module:
    """Build the encoder that a configuration describes, with random weights in float32.

    Args:
        config: A configuration of transformers, of a type in `families.SUPPORTED`.
        side: "image" or "text".
        tokenizer: The text encoder's tokenizer, whose padding SigLIP needs; None takes the padding
            token of the configuration.

    Raises:
        InputError: If the type is not supported for this side.
    """
    family = find_family(config, side)
    if config.model_type == open_clip_halves.MODEL_TYPE:
        encoder = open_clip_halves.open_clip_from_config(config, side)
        encoder.missing_weights = []
        return encoder
    loader_class = model_class(config, family)
    if loader_class is AutoModel:
        model = AutoModel.from_config(config, dtype=torch.float32)
    else:
        model = loader_class(config)
    return encoder_from_model(model, side, tokenizer, [])


def encoder_from_model(
    model: nn.Module, side: str, tokenizer, missing_weights: list[str]
) -> nn.Module:
    """Return a model of transformers as an encoder; of a pretrained pair, one half.

    The model is changed in place: it gets the attribute `missing_weights`.
    """
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # keys and values of a decoder, for generating text
    if type(model).__name__ in PAIRS:
        pad_id = getattr(tokenizer, "pad_token_id", None)
        model = PairHalf(model, side, pad_id, getattr(tokenizer, "padding_side", "right"))
        lacking = sorted(set(missing_weights) & model.pair.state_dict().keys())
        if lacking:
            raise InputError(f"--{side}_encoder: the pair's file has no weights for {lacking[0]}, "
                             "without which its embeddings are random; name another one")
    model.missing_weights = missing_weights
    return model


def load_config(name: str, side: str):
    """Read the configuration of an encoder that is not built in.

    Raises:
        InputError: If there is none, or its type is not supported for this side.
    """
    try:
        config = fetch(AutoConfig, name)
    except Exception as error:  # the Hub's client raises a dozen types, which mean the same here
        reraise_out_of_memory(error)
        raise unknown_encoder_error(name, side, error) from error
    find_family(config, side, name)
    return config


def unknown_encoder_error(name: str, side: str, error: Exception) -> InputError:
    """Return the error for an encoder that cannot be loaded, because of `error`."""
    reason = fetch_error_message(name, error)
    if isinstance(error, ImportError):
        return InputError(f"--{side}_encoder {name}: it needs a package more ({reason})")
    return InputError(f"--{side}_encoder {name}: not one of {', '.join(BUILT_IN)}, and no local "
                      f"folder or reachable Hugging Face model ({reason})")
