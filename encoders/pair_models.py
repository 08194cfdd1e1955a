"""Pretrained pairs as whole models: a name of the Hub, or a local folder, in place of a checkpoint.

Everything of the pair's own comes along: weights, pooling and projections, logit scale, tokenizer
with its length and padding, and how its image processor prepares photos. Captions are taken as they
are.
"""

import re
from pathlib import Path

from torch import nn
from transformers import AutoConfig

from common.errors import InputError, reraise_out_of_memory
from common.files import read_json
from common.flags import flags_of
from common.options import DataOptions, SourceOptions
from encoders.families import DOCS, REFUSED, SUPPORTED, find_family
from encoders.hub import fetch, fetch_error_message, fetch_weights, model_file
from encoders.image_processors import PhotoPreparation, load_photo_preparation
from encoders.loading import model_class
from encoders.open_clip_halves import split_open_clip
from encoders.open_clip_pairs import SCHEME, load_open_clip
from encoders.pairs import PAIRS, split_pair
from encoders.processors import load_tokenizer
from encoders.stored import (
    ENCODERS_KEY,
    check_config_values,
    config_to_json,
    tokenizer_to_json,
    vocabulary_size,
    without_dropped_keys,
)

# Lengths of captions that a pair's processor sets, where its tokenizer and its table of positions
# would allow more.
PROCESSOR_LENGTHS = {"align": 64}
# Positions of RoBERTa's table that no token can have.
UNUSED_POSITIONS = {"altclip": 2}
NO_LENGTH = 10**6  # a tokenizer without a length of its own names a number above this
MAX_MODULES_BYTES = 2**20  # of the modules.json of sentence-transformers, which has some hundred
MOST_LAYERS = 1000  # of one tower; the largest known has 64


def read_pair(name: str, **kwargs) -> dict:
    """Read a pretrained pair as the state of a checkpoint, as `encoders.folder.read_folder` does.

    Args:
        name: A local folder, or the name of a model on the Hub.
        **kwargs: Further arguments of `from_pretrained`, such as `revision`.

    Raises:
        InputError: If there is no such model, it is no pair of a supported type, or lacks a part.
    """
    is_of_transformers = (not name.startswith(SCHEME)
                          and model_file(name, "config.json", **kwargs) is not None)
    pair = None if is_of_transformers else load_open_clip(name)
    if pair is not None:
        halves, tokenizer, photos = split_open_clip(pair.config, pair.model), *pair[2:]
        length = tokenizer.model_max_length
    else:
        place, within = sentence_transformers_part(name)
        pair, tokenizer, photos = load_pair(name, place, within | kwargs)
        halves = split_pair(pair, tokenizer)
        length = caption_length(pair.config, tokenizer)
    scale = halves["image"].logit_scale
    encoders = {side: config_to_json(half.config, side) for side, half in halves.items()} | {
        "tokenizer": tokenizer_to_json(tokenizer, vocabulary_size(halves["text"])),
        "pixel_statistics": [list(photos.mean), list(photos.std)],
        "photo_fit": photos.fit._asdict(),
        "logit_scale": None if scale.scale is None else [scale.scale, scale.bias]}
    weights = {f"{side}_encoder.{key}": value for side, half in halves.items()
               for key, value in half.state_dict().items()}
    options = {"image_encoder": name, "text_encoder": name, "image_pooling": "own",
               "text_pooling": "own", "embed_size": 0, "head": "linear", "freeze": None,
               "image_res": photos.size, "image_fit": photos.fit.fit, "captions": "raw",
               "max_tokens": length}
    preparation = {"image_res": photos.size, "mean": list(photos.mean), "std": list(photos.std),
                   "photo_fit": photos.fit._asdict(), "cleaning": "raw", "prefix": "",
                   "max_words": flags_of(SourceOptions)["max_words"].default,
                   "max_tokens": length, "padded": False}
    about = {"options": options, "recalls": {}, "statistics": None}
    return {"options": options, "model": weights, ENCODERS_KEY: encoders, "criterion": {},
            "folder": {"preparation": preparation, "about": about}}


def sentence_transformers_part(name: str) -> tuple[str, dict[str, str]]:
    """Return where the pair itself is in a model of sentence-transformers, or in any other.

    Args:
        name: A local folder, or the name of a model on the Hub.

    Returns:
        The name or folder, and the further arguments with which `from_pretrained` reads it.
    """
    path = model_file(name, "modules.json")
    if path is None:
        return name, {}
    try:
        modules = read_json(path, MAX_MODULES_BYTES)
        parts = [module["path"] for module in modules if module["type"].endswith(".CLIPModel")]
    except (InputError, TypeError, KeyError, AttributeError):
        return name, {}
    if not parts or not re.fullmatch(r"\w[\w.-]*", str(parts[0])):  # a folder in it, and no path
        return name, {}
    inner = Path(name) / parts[0]
    return (str(inner), {}) if inner.is_dir() else (name, {"subfolder": parts[0]})


def load_pair(name: str, place: str, within: dict) -> tuple[nn.Module, object, PhotoPreparation]:
    """Load a whole pair, in float32, its tokenizer and how its photos are prepared.

    Args:
        name: The pair as the user named it, for error messages.
        place: The folder or name that `from_pretrained` takes.
        within: Further arguments for it.

    Raises:
        InputError: If there is no such model, it is no pair of a supported type, or lacks a part.
    """
    try:
        config = fetch(AutoConfig, place, **within)
        check_pair_type(name, config)
        check_config_values(without_dropped_keys(config.to_dict()), MOST_LAYERS, name)
        loader_class = model_class(config, find_family(config, "image", name), name)
        pair, info = fetch_weights(loader_class, place, **within)
        tokenizer = load_tokenizer(place, "", **within)
        photos = load_photo_preparation(place, **within)
    except InputError:
        raise
    except Exception as error:  # the Hub's client and broken files raise a dozen kinds
        reraise_out_of_memory(error)
        reason = fetch_error_message(name, error)[:300]
        raise InputError(f"{name} is no checkpoint, no folder of export.py and no whole pretrained "
                         f"pair ({reason})") from error
    if type(pair).__name__ not in PAIRS:
        raise InputError(f"{name} is a {type(pair).__name__}, and no pair that is supported")
    if info["missing_keys"]:
        raise InputError(f"{name} has no weights for {sorted(info['missing_keys'])[0]}, without "
                         "which its embeddings would be random: name another one")
    highest = flags_of(DataOptions)["image_res"].high
    if photos.size > highest:
        raise InputError(f"{name}: its image processor makes photos of {photos.size} pixels, more "
                         f"than the {highest} that --image_res takes")
    return pair, tokenizer, photos


def check_pair_type(name: str, config) -> None:
    """Raise InputError where a configuration is not that of a pair of a supported type."""
    family = SUPPORTED.get(config.model_type)
    if family is not None and len(family.sides) == 2:
        return
    reason = REFUSED.get(config.model_type)
    if family is not None:
        reason = f"it is for one side: name it with --{family.sides[0]}_encoder"
    raise InputError(f"{name}: a model of type {config.model_type} is no pretrained pair of an "
                     f"image and a text encoder{f' ({reason})' if reason else ''}; {DOCS} lists "
                     "those that are")


def caption_length(config, tokenizer) -> int:
    """Return the most tokens that a pair takes of a caption, special tokens included."""
    lengths = [config.text_config.max_position_embeddings
               - UNUSED_POSITIONS.get(config.model_type, 0)]
    own_length = tokenizer.model_max_length
    if isinstance(own_length, int | float) and 2 < own_length < NO_LENGTH:
        lengths.append(int(own_length))
    if config.model_type in PROCESSOR_LENGTHS:
        lengths.append(PROCESSOR_LENGTHS[config.model_type])
    return min(lengths)
