"""What a checkpoint holds of its encoders beside their weights: configurations, the tokenizer, and
the statistics of the pixels. With them it loads where the encoders' own files are gone.

A checkpoint may come from anywhere. So a configuration is looked at first: its type must be one of
`families.SUPPORTED`, it is built without memory, and each of its shapes must be that of a weight,
before anything of its size is made. It never leads to another file, and code that it names is not
looked for.
"""

import json
import math
import re
from typing import NamedTuple

import torch
import transformers
from tokenizers import Tokenizer
from torch import nn

from common.errors import InputError, Stopped, one_line, pass_on
from common.weights import check_tensors
from encoders.families import find_family
from encoders.towers import from_config

KEY = "encoders"  # of a checkpoint's state
SIDES = "image", "text"
# What a configuration says of the machine, of heads that towers have not, or of how to compute.
LEFT_OUT = {"auto_map", "attn_implementation", "experts_implementation", "quantization_config",
            "num_labels", "id2label", "label2id", "problem_type", "transformers_version", "dtype",
            "torch_dtype", "pruned_heads", "name_or_path", "custom_pipelines"}
# Numbers of modules, which cost memory even where their weights do not.
COUNTS = {"num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers", "depth",
          "num_stages", "depths", "num_hidden_groups", "inner_group_num"}
ROOM = 2**28  # bytes that an encoder may hold beside its weights
HALVES = {"image": "vision_config", "text": "text_config"}
# In place of the half of a pair that the tower leaves out, but for the width of its projection.
NO_HALF = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=0, num_attention_heads=1,
               image_size=8, patch_size=8, vocab_size=8, max_position_embeddings=8)


def describe(model: nn.Module, tokenizer, mean: list[float], std: list[float]) -> dict:
    """What `read_stored` takes: texts and numbers that go into a checkpoint under `KEY`.

    Args:
        model: a `DualEncoder`.
        tokenizer: a slow one is left out, and is then had by name.
    """
    return {
        "image": config_text(model.image_encoder.config, "image"),
        "text": config_text(model.text_encoder.config, "text"),
        "tokenizer": tokenizer_text(tokenizer, words_of(model.text_encoder)),
        "pixel_statistics": [list(map(float, mean)), list(map(float, std))],
    }


def config_text(config, side: str) -> str:
    """A configuration as JSON, without paths of this machine, and next to nothing of the other
    half of a pair."""
    content = plain(config.to_dict())
    leave_half_out(content, side)
    return json.dumps(content, sort_keys=True)


def leave_half_out(content: dict, side: str) -> None:
    """Change the configuration of a pair so that the half that `side` is not costs nothing.

    A CLIP keeps the projections of both halves, so that their widths must stay.
    """
    other = HALVES["text" if side == "image" else "image"]
    if HALVES[side] in content or other in content:
        half = content.get(other)
        width = half.get("hidden_size") if isinstance(half, dict) else None
        keeps = isinstance(width, int) and content.get("model_type") != "siglip"
        content[other] = NO_HALF | ({"hidden_size": width} if keeps else {})


def plain(value: object) -> object:
    """The same content, without what `LEFT_OUT` names and what is private."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()
                if str(key) not in LEFT_OUT and not str(key).startswith("_")}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def words_of(encoder: nn.Module) -> int:
    """Rows of a text encoder's table of words."""
    clip = getattr(encoder, "clip", None)
    inner = encoder if clip is None else clip.text_model
    return inner.get_input_embeddings().num_embeddings


def tokenizer_text(tokenizer, words: int) -> str | None:
    """A fast tokenizer as JSON; None of one that is slow, or has more words than its encoder."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()
               if isinstance(value, str)}
    text = json.dumps({"tokenizer": json.loads(core.to_str()), "special_tokens": special},
                      ensure_ascii=False)
    return text if largest_id(core, text) < words else None


def largest_id(core: Tokenizer, text: str) -> int:
    """The largest token id that a tokenizer, or what it adds at the ends, can give."""
    def numbers(value):
        if isinstance(value, dict | list):
            items = value.values() if isinstance(value, dict) else value
            return [number for item in items for number in numbers(item)]
        return [value] if type(value) is int else []

    ends = numbers(json.loads(text)["tokenizer"].get("post_processor"))
    return max([0, *core.get_vocab(with_added_tokens=True).values(), *ends])


class Stored(NamedTuple):
    """What is taken from a checkpoint; None for what it lacks or the command line replaces."""

    source: str
    shapes: dict[str, torch.Size]  # of all weights of the `DualEncoder`
    image: str | None = None
    text: str | None = None
    tokenizer: str | None = None
    pixel_statistics: tuple[list[float], list[float]] | None = None

    def encoder(self, side: str, tokenizer) -> nn.Module | None:
        """The encoder of a side, with random weights; None where it is to be had by name.

        Raises:
            InputError: its configuration is none, or is not that of the weights.
        """
        text = getattr(self, side)
        if text is None:
            return None
        prefix = f"{side}_encoder."
        shapes = {name.removeprefix(prefix): shape for name, shape in self.shapes.items()
                  if name.startswith(prefix)}
        told = f"{self.source}: the configuration of its {side} encoder"
        config = read_config(text, side, len(shapes), told)
        pad_id = tokenizer.pad_token_id if tokenizer is not None else None
        try:
            with torch.device("meta"):
                trial = from_config(config, side, pad_id)
            check_shapes(trial, shapes, told)
            encoder = from_config(config, side, pad_id)
        except InputError:
            raise
        except Exception as error:  # of any kind, as its numbers come
            pass_on(error)
            raise InputError(f"{told} makes none ({one_line(error)[:200]})") from error
        if side == "text" and self.tokenizer is not None:
            check_words(self.read_tokenizer(), self.tokenizer, words_of(encoder), self.source)
        return encoder

    def read_tokenizer(self):
        """The tokenizer; None where it is to be had by name.

        Raises:
            InputError: it does not parse, or has no padding token.
        """
        if self.tokenizer is None:
            return None
        told = f"{self.source}: its tokenizer"
        try:
            content = json.loads(self.tokenizer)
            special = content["special_tokens"]
            if not all(re.fullmatch(r"[a-z]+_token", name) and isinstance(value, str)
                       for name, value in special.items()):
                raise ValueError("special tokens that are none")
            core = Tokenizer.from_str(json.dumps(content["tokenizer"]))
            tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)
            unknown = tokenizer.pad_token_id is None or len(tokenizer) > core.get_vocab_size()
        except (KeyboardInterrupt, SystemExit, Stopped):
            raise
        except BaseException as error:  # what `tokenizers` panics with is no Exception
            pass_on(error)
            raise InputError(f"{told} cannot be read ({one_line(error)[:200]})") from error
        if unknown:
            raise InputError(f"{told} has no padding token, or special ones that are no words")
        return tokenizer


def read_stored(state: dict, weights: dict, source: str, named: set[str]) -> Stored | None:
    """What a checkpoint holds of its encoders; None of one from before it held any.

    Args:
        state: its content, or anything else that has `KEY`.
        weights: of the `DualEncoder`.
        source: the file, to begin an error with.
        named: flags of the command line, which come before what is stored.

    Raises:
        InputError: it is not what `describe` gives.
    """
    content = state.get(KEY)
    if content is None:
        return None
    if not isinstance(content, dict) or not all(
            isinstance(content.get(name), str | None) for name in (*SIDES, "tokenizer")):
        raise InputError(f"{source}: what it holds of its encoders is not what a run saves")
    taken = {name: content.get(name) for name in (*SIDES, "tokenizer")}
    taken["pixel_statistics"] = read_statistics(content.get("pixel_statistics"), source)
    for flags, names in (({"image_encoder"}, ("image", "pixel_statistics")),
                         ({"image_stats"}, ("pixel_statistics",)),
                         ({"text_encoder", "vocab"}, ("text", "tokenizer"))):
        if flags & named:
            taken |= dict.fromkeys(names)
    check_tensors(weights, source)
    shapes = {name: value.shape for name, value in weights.items()}
    return Stored(source, shapes, **taken)


def read_statistics(value: object, source: str) -> tuple[list[float], list[float]] | None:
    """Mean and std of the pixels, three numbers each.

    Raises:
        InputError: they are none that pixels can have.
    """
    if value is None:
        return None
    good = isinstance(value, list | tuple) and len(value) == 2 and all(
        isinstance(part, list | tuple) and len(part) == 3
        and all(type(number) in (int, float) and math.isfinite(number) for number in part)
        for part in value) and all(1e-6 < number < 1e6 for number in value[1])
    if not good:
        raise InputError(f"{source}: its mean and std of the pixels are none")
    return list(value[0]), list(value[1])


def read_config(text: str, side: str, weights: int, told: str):
    """The configuration that `config_text` wrote, for an encoder with so many weights.

    Raises:
        InputError: it is none, of a type that is not supported, or of more layers than weights.
    """
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        kind = str(content.get("model_type"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{told} is no JSON ({one_line(error)})") from error
    find_family(Kind(kind), side, told=told)
    content = plain(content)
    check_counts(content, weights, told)
    leave_half_out(content, side)
    del content["model_type"]
    try:
        known = transformers.CONFIG_MAPPING[kind]
        methods = [name for name in content if callable(getattr(known, name, None))]
        if methods:
            raise ValueError(f"it sets {methods[0]}")
        return known(**content)
    except Exception as error:  # of any kind, as its values come
        pass_on(error)
        raise InputError(f"{told} is none ({one_line(error)[:200]})") from error


class Kind(NamedTuple):
    """Of a configuration, what `find_family` looks at."""

    model_type: str


def check_counts(value: object, weights: int, told: str) -> None:
    """Raise InputError where a number of modules is above that of the weights, or a text could
    be read as a file: timm's models take names of files among their arguments."""
    if not isinstance(value, dict):
        return
    for name, item in value.items():
        items = item if isinstance(item, list) else [item]
        if name in COUNTS and not sum(
                number for number in items if isinstance(number, int)) <= weights:
            raise InputError(f"{told} has {name} {str(item)[:40]}, more than its {weights} weights")
        if name == "model_args" and isinstance(item, dict) and any(
                isinstance(argument, str | dict | list) for argument in item.values()) or (
                    name == "architecture" and not re.fullmatch(r"[\w.]+", str(item))):
            raise InputError(f"{told} has {name} that are no plain numbers or names")
        check_counts(item, weights, told)


def check_shapes(trial: nn.Module, shapes: dict[str, torch.Size], told: str) -> None:
    """Raise InputError unless an encoder on the meta device has weights of just these shapes."""
    own = {name: value.shape for name, value in trial.state_dict().items()}
    other = sorted(own.keys() ^ shapes.keys()) or sorted(
        name for name in own if own[name] != shapes[name])
    if other:
        shown = [f"{name} {' and '.join(map(str, parts))}" for name in other[:3]
                 for parts in [[tuple(part[name]) for part in (own, shapes) if name in part]]]
        raise InputError(f"{told} is not that of its weights: {', '.join(shown)}"
                         + (f" and {len(other) - 3} more" if len(other) > 3 else ""))
    sizes = [buffer.numel() * buffer.element_size() for buffer in trial.buffers()]
    if sum(sizes) > ROOM + sum(4 * shape.numel() for shape in shapes.values()):
        raise InputError(f"{told} asks for {sum(sizes) / 1e9:.1f} GB beside its weights")


def check_words(tokenizer, text: str, words: int, source: str) -> None:
    """Raise InputError where a token has no row in the encoder's table."""
    largest = largest_id(tokenizer.backend_tokenizer, text)
    if largest >= words:
        raise InputError(f"{source}: its tokenizer has a token {largest}, and its text encoder "
                         f"{words} words")
