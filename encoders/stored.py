"""What a checkpoint holds about its encoders beside their weights, and how they are built from it.

A checkpoint holds both encoders' configurations, the tokenizer and the statistics of the pixels.
With these it loads where the encoders' own folders are gone.

A checkpoint may come from anywhere, so a configuration is checked before it is used: its type must
be one of `families.SUPPORTED`, it is first built on the meta device, and each of its shapes must be
that of a weight, before memory of its size is taken. A configuration never leads to another file,
and code that it names is not looked for.
"""

import json
import math
import re
from typing import NamedTuple

import torch
import transformers
from tokenizers import Tokenizer
from torch import nn

from common.errors import InputError, Stopped, one_line, reraise_out_of_memory
from common.files import check_plain
from common.weights import check_tensors
from encoders.families import find_family
from encoders.loading import config_class, encoder_from_config
from encoders.open_clip_halves import OpenClipHalf
from encoders.pairs import LogitScale, PairHalf
from encoders.tokenizer_checks import check_tokenizer
from inputs.fitting import FITS, LARGEST_ENLARGEMENT, LIBRARIES, RESAMPLINGS, PhotoFit

ENCODERS_KEY = "encoders"  # of a checkpoint's state
SIDES = "image", "text"
# Keys of a configuration that are not stored: they speak of the machine, of heads that an encoder
# does not have, or of how to compute.
DROPPED_KEYS = {
    "auto_map", "attn_implementation", "experts_implementation", "quantization_config",
    "num_labels", "id2label", "label2id", "problem_type", "transformers_version", "dtype",
    "torch_dtype", "pruned_heads", "name_or_path", "custom_pipelines"}
# Keys that are numbers of modules, which take memory even on the meta device.
LAYER_COUNT_KEYS = {
    "num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers", "depth",
    "num_stages", "depths", "num_hidden_groups", "inner_group_num", "num_block_repeats",
    "layers"}
LARGEST_COEFFICIENT = 4.0  # of an EfficientNet's depth and width; that of B7 has 3.1
MAX_BUFFER_BYTES = 2**28  # that an encoder may hold beyond the size of its weights
CONFIG_KEYS_OF_HALVES = {"image": "vision_config", "text": "text_config"}
# The configuration of a pair's other half, which the encoder does not have: of a transformer, and
# of ALIGN's convolutional network.
SMALLEST_HALF = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=0, num_attention_heads=1,
                     image_size=8, patch_size=8, vocab_size=8, max_position_embeddings=8)
SMALLEST_NETWORK = dict(kernel_sizes=[3], in_channels=[8], out_channels=[8], strides=[1],
                        depthwise_padding=[], num_block_repeats=[1], expand_ratios=[1],
                        width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=8)


def describe_encoders(
    model: nn.Module, tokenizer, mean: list[float], std: list[float], photo_fit: PhotoFit
) -> dict:
    """Return the texts and numbers about a model's encoders that go into a checkpoint.

    They stand under `ENCODERS_KEY`, and `read_stored_encoders` reads them.

    Args:
        model: A `DualEncoder`.
        tokenizer: The text encoder's tokenizer. A slow one cannot be stored, and is then found by
            the text encoder's name.
        mean: Mean of the pixels' three channels.
        std: Standard deviation of the pixels' three channels.
        photo_fit: How photos are fitted into a square.
    """
    return {
        "image": config_to_json(model.image_encoder.config, "image"),
        "text": config_to_json(model.text_encoder.config, "text"),
        "tokenizer": tokenizer_to_json(tokenizer, vocabulary_size(model.text_encoder)),
        "pixel_statistics": [list(map(float, mean)), list(map(float, std))],
        "photo_fit": photo_fit._asdict(),
        "logit_scale": [model.logit_scale, model.logit_bias],
    }


def config_to_json(config, side: str) -> str:
    """Return an encoder's configuration as JSON, without paths of this machine.

    Of a pretrained pair the half that is not `side` is cut down to its smallest.
    """
    content = without_dropped_keys(config.to_dict())
    shrink_other_half(content, side)
    return json.dumps(content, sort_keys=True)


def shrink_other_half(content: dict, side: str) -> None:
    """Change a pair's configuration in place so that building the half not of `side` costs nothing.

    Configurations of single encoders stay as they are. BLIP's text encoder has weights for states
    of the image encoder, whose width must stay.
    """
    key = CONFIG_KEYS_OF_HALVES[side]
    other_key = CONFIG_KEYS_OF_HALVES["text" if side == "image" else "image"]
    if key not in content and other_key not in content:
        return
    other_half = content.get(other_key)
    is_network = isinstance(other_half, dict) and "num_block_repeats" in other_half
    width = other_half.get("hidden_size") if isinstance(other_half, dict) else None
    content[other_key] = dict(SMALLEST_NETWORK if is_network else SMALLEST_HALF)
    if content.get("model_type") == "blip" and isinstance(width, int):
        content[other_key]["hidden_size"] = width


def without_dropped_keys(value: object) -> object:
    """Return a copy of JSON content without `DROPPED_KEYS` and keys that begin with "_"."""
    if isinstance(value, dict):
        return {str(key): without_dropped_keys(item) for key, item in value.items()
                if str(key) not in DROPPED_KEYS and not str(key).startswith("_")}
    if isinstance(value, list | tuple):
        return [without_dropped_keys(item) for item in value]
    return value


def vocabulary_size(encoder: nn.Module) -> int:
    """Return the number of rows in a text encoder's table of token embeddings."""
    if isinstance(encoder, PairHalf | OpenClipHalf):
        return encoder.vocabulary_size()
    return encoder.get_input_embeddings().num_embeddings


def tokenizer_to_json(tokenizer, words: int) -> str | None:
    """Return a fast tokenizer as JSON, or None if it cannot be stored.

    Args:
        tokenizer: A tokenizer of transformers. A slow one has no JSON form.
        words: The text encoder's vocabulary size. A tokenizer with larger token ids is not stored.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    special_tokens = {name: str(value) for name, value in tokenizer.special_tokens_map.items()
                      if isinstance(value, str)}
    content = {"tokenizer": json.loads(core.to_str()), "special_tokens": special_tokens}
    if getattr(tokenizer, "padding_side", "right") == "left":
        content["padding_side"] = "left"
    text = json.dumps(content, ensure_ascii=False)
    return text if largest_token_id(core, text) < words else None


def largest_token_id(core: Tokenizer, text: str) -> int:
    """Return the largest token id that a tokenizer can give.

    Args:
        core: The tokenizer.
        text: Its JSON from `tokenizer_to_json`, whose post-processor adds tokens by their ids.
    """
    vocabulary = core.get_vocab(with_added_tokens=True).values()
    post_processor = json.loads(text)["tokenizer"].get("post_processor")
    return max([0, *vocabulary, *integers_in(post_processor)])


def integers_in(value: object) -> list[int]:
    """Return all integers in JSON content, at any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in integers_in(item)]
    return [value] if type(value) is int else []


class StoredEncoders(NamedTuple):
    """What is taken over from a checkpoint about its encoders.

    A field is None if the checkpoint lacks it, or if a flag of the command line replaces it. What
    is None is found by the encoder's name instead.

    Attributes:
        source: The checkpoint's file, with which error messages begin.
        shapes: The shapes of all weights of the `DualEncoder`, by name.
        image: The image encoder's configuration as JSON.
        text: The text encoder's configuration as JSON.
        tokenizer: The tokenizer as JSON.
        pixel_statistics: Mean and standard deviation of the pixels' three channels.
        photo_fit: How photos are fitted into a square.
        logit_scale: The scale and bias of a pretrained pair.
    """

    source: str
    shapes: dict[str, torch.Size]
    image: str | None = None
    text: str | None = None
    tokenizer: str | None = None
    pixel_statistics: tuple[list[float], list[float]] | None = None
    photo_fit: PhotoFit | None = None
    logit_scale: LogitScale = LogitScale()

    def build_encoder(self, side: str, tokenizer) -> nn.Module | None:
        """Build the encoder of a side with random weights; None if it is to be found by name.

        Args:
            side: "image" or "text".
            tokenizer: The text encoder's tokenizer, or None.

        Raises:
            InputError: If the configuration is not valid, or is not that of the weights.
        """
        text = self.image if side == "image" else self.text
        if text is None:
            return None
        prefix = f"{side}_encoder."
        shapes = {name.removeprefix(prefix): shape for name, shape in self.shapes.items()
                  if name.startswith(prefix)}
        source = f"{self.source}: the configuration of its {side} encoder"
        config = config_from_json(text, side, len(shapes), source)
        try:
            with torch.device("meta"):  # takes no memory for the weights
                trial = encoder_from_config(config, side, tokenizer)
            check_shapes(trial, shapes, source)
            encoder = encoder_from_config(config, side, tokenizer)
        except InputError:
            raise
        except Exception as error:  # of any type: the numbers may be anything
            reraise_out_of_memory(error)
            raise InputError(f"{source} makes none ({one_line(error)[:200]})") from error
        if side == "text" and self.tokenizer is not None:
            read = self.read_tokenizer() if tokenizer is None else tokenizer
            check_token_ids(read, self.tokenizer, vocabulary_size(encoder), self.source)
        return encoder

    def read_tokenizer(self):
        """Build the tokenizer; return None if it is to be found by name.

        Raises:
            InputError: If the JSON is not that of a tokenizer, or has no padding token.
        """
        if self.tokenizer is None:
            return None
        source = f"{self.source}: its tokenizer"
        try:
            content = json.loads(self.tokenizer)
            check_plain(content)
            special_tokens = content["special_tokens"]
            for name, value in special_tokens.items():
                if not re.fullmatch(r"[a-z]+_token", name) or not isinstance(value, str):
                    raise ValueError("special tokens that are none")
            core = Tokenizer.from_str(json.dumps(content["tokenizer"]))
            padding_side = "left" if content.get("padding_side") == "left" else "right"
            tokenizer = transformers.PreTrainedTokenizerFast(
                tokenizer_object=core, padding_side=padding_side, **special_tokens)
            adds_tokens = len(tokenizer) > core.get_vocab_size()
            has_padding = tokenizer.pad_token_id is not None
        except (KeyboardInterrupt, SystemExit, Stopped):
            raise
        except BaseException as error:  # a panic of `tokenizers` is no Exception
            reraise_out_of_memory(error)
            raise InputError(f"{source} cannot be read ({one_line(error)[:200]})") from error
        if adds_tokens or not has_padding:
            raise InputError(f"{source} has no padding token, or special ones that are no words")
        check_tokenizer(tokenizer, source)
        return tokenizer


def read_stored_encoders(
    state: dict, weights: dict, source: str, given: set[str]
) -> StoredEncoders | None:
    """Read what a checkpoint holds about its encoders; None if it is too old to hold anything.

    Args:
        state: The checkpoint's content, or any dictionary with `ENCODERS_KEY`.
        weights: The weights of the `DualEncoder`, by name.
        source: The checkpoint's file, with which error messages begin.
        given: Names of the flags that the command line gives; they replace what is stored.

    Raises:
        InputError: If the content is not what `describe_encoders` returns.
    """
    content = state.get(ENCODERS_KEY)
    if content is None:
        return None
    names = "image", "text", "tokenizer"
    if not isinstance(content, dict) or not all(
            isinstance(content.get(name), str | None) for name in names):
        raise InputError(f"{source}: what it holds of its encoders is not what a run saves")
    fields = {name: content.get(name) for name in names}
    fields["pixel_statistics"] = read_pixel_statistics(content.get("pixel_statistics"), source)
    fields["photo_fit"] = read_photo_fit(content.get("photo_fit"), source)
    replaced_by = {"image_encoder": ("image", "pixel_statistics", "photo_fit"),
                   "image_stats": ("pixel_statistics",),
                   "text_encoder": ("text", "tokenizer"),
                   "vocab": ("text", "tokenizer")}
    for flag, replaced in replaced_by.items():
        if flag in given:
            fields |= dict.fromkeys(replaced)
    check_tensors(weights, source)
    shapes = {name: value.shape for name, value in weights.items()}
    logit_scale = read_logit_scale(content.get("logit_scale"), source)
    return StoredEncoders(source, shapes, logit_scale=logit_scale, **fields)


def read_pixel_statistics(
    value: object, source: str
) -> tuple[list[float], list[float]] | None:
    """Return mean and standard deviation of three channels each; None if `value` is None.

    Raises:
        InputError: If `value` is anything but two lists of three numbers that pixels can have.
    """
    if value is None:
        return None

    def is_triple(numbers: object) -> bool:
        return isinstance(numbers, list | tuple) and len(numbers) == 3 and all(
            type(number) in (int, float) and -1e6 < number < 1e6 for number in numbers)

    valid = (isinstance(value, list | tuple) and len(value) == 2
             and is_triple(value[0]) and is_triple(value[1])
             and all(1e-6 < number < 1e6 for number in value[1]))
    if not valid:
        raise InputError(f"{source}: its mean and std of the pixels are none")
    mean, std = value
    return list(mean), list(std)


def read_photo_fit(value: object, source: str) -> PhotoFit | None:
    """Return how photos are fitted into a square; None if `value` is None.

    Raises:
        InputError: If `value` is not what `describe_encoders` gives.
    """
    if value is None:
        return None
    try:
        fit = PhotoFit(**value)
        valid = (fit.fit in FITS and fit.resampling in RESAMPLINGS and fit.library in LIBRARIES
                 and type(fit.enlargement) in (int, float)
                 and 1 <= fit.enlargement <= LARGEST_ENLARGEMENT
                 and type(fit.rounds_half_pixels) is bool)
    except TypeError:
        valid = False
    if not valid:
        raise InputError(f"{source}: its way to fit photos into a square is none")
    return fit


def read_logit_scale(value: object, source: str) -> LogitScale:
    """Return the scale and bias of a pretrained pair; no scale if `value` is None.

    Raises:
        InputError: If `value` is not what `describe_encoders` gives.
    """
    if value is None or value == [None, None]:
        return LogitScale()
    valid = (isinstance(value, list | tuple) and len(value) == 2
             and all(type(number) in (int, float) and math.isfinite(number) for number in value)
             and 0 < value[0] < 1e6 and abs(value[1]) < 1e6)
    if not valid:
        raise InputError(f"{source}: the logit scale and bias of its pair are none")
    return LogitScale(*map(float, value))


def config_from_json(text: str, side: str, weights: int, source: str):
    """Build the configuration that `config_to_json` wrote.

    Args:
        text: The configuration as JSON.
        side: "image" or "text".
        weights: The number of the encoder's weight tensors; it bounds the number of layers.
        source: What error messages begin with.

    Raises:
        InputError: If the text is no configuration, its type is not supported, or it has more
            layers than there are weights.
    """
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        check_plain(content)
        model_type = str(content.get("model_type"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is no JSON ({one_line(error)})") from error
    find_family(ModelType(model_type), side, source=source)
    content = without_dropped_keys(content)
    check_config_values(content, weights, source)
    shrink_other_half(content, side)
    del content["model_type"]
    try:
        kind = config_class(model_type)
        methods = [name for name in content if callable(getattr(kind, name, None))]
        if methods:
            raise ValueError(f"it sets {methods[0]}")
        return kind(**content)
    except Exception as error:  # of any type: the values may be anything
        reraise_out_of_memory(error)
        raise InputError(f"{source} is none ({one_line(error)[:200]})") from error


class ModelType(NamedTuple):
    """Stands for a configuration in `families.find_family`, which reads its type alone."""

    model_type: str


def check_config_values(value: object, weights: int, source: str) -> None:
    """Check a configuration, at any depth, for numbers of layers and for names of files.

    timm's models take names of files among their arguments, so these may be plain numbers only.

    Args:
        value: The configuration, or any part of it.
        weights: The number of the encoder's weight tensors; a layer has at least one.
        source: What error messages begin with.

    Raises:
        InputError: If a number of layers is above `weights`, or a text could be read as a file.
    """
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in LAYER_COUNT_KEYS:
            counts = item if isinstance(item, list) else [item]
            layers = sum(count for count in counts if isinstance(count, int))
            if layers > weights:
                raise InputError(f"{source} has {key} {str(item)[:40]}, more than its {weights} "
                                 "weights")
        is_number = type(item) in (int, float)
        if key.endswith("_coefficient") and not (is_number and 0 < item <= LARGEST_COEFFICIENT):
            raise InputError(f"{source} has {key} {str(item)[:40]}, more than any of its kind")
        unsafe_arguments = key == "model_args" and isinstance(item, dict) and any(
            isinstance(argument, str | dict | list) for argument in item.values())
        unsafe_name = (key in ("architecture", "timm_model_name") and item is not None
                       and not re.fullmatch(r"[\w.]+", str(item)))
        if unsafe_arguments or unsafe_name:
            raise InputError(f"{source} has {key} that are no plain numbers or names")
        check_config_values(item, weights, source)


def check_shapes(trial: nn.Module, shapes: dict[str, torch.Size], source: str) -> None:
    """Check that an encoder on the meta device has just the weights of a checkpoint.

    Args:
        trial: The encoder that the configuration describes.
        shapes: The shapes of the checkpoint's weights, by name.
        source: What error messages begin with.

    Raises:
        InputError: If a name or a shape differs, or if the encoder's buffers are far larger than
            its weights.
    """
    trial_shapes = {name: value.shape for name, value in trial.state_dict().items()}
    differing = sorted(trial_shapes.keys() ^ shapes.keys())
    if not differing:
        differing = sorted(name for name in shapes if trial_shapes[name] != shapes[name])
    if differing:
        listed = []
        for name in differing[:3]:
            found = [str(tuple(known[name])) for known in (trial_shapes, shapes) if name in known]
            listed.append(f"{name} {' and '.join(found)}")
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(f"{source} is not that of its weights: {', '.join(listed)}{more}")
    buffer_bytes = sum(buffer.numel() * buffer.element_size() for buffer in trial.buffers())
    weight_bytes = sum(4 * shape.numel() for shape in shapes.values())
    if buffer_bytes > MAX_BUFFER_BYTES + weight_bytes:
        raise InputError(f"{source} asks for {buffer_bytes / 1e9:.1f} GB beside its weights")


def check_token_ids(tokenizer, text: str, words: int, source: str) -> None:
    """Check that every token of a tokenizer has a row in the text encoder's table.

    Args:
        tokenizer: A fast tokenizer of transformers.
        text: Its JSON.
        words: The text encoder's vocabulary size.
        source: The checkpoint's file, with which the error message begins.

    Raises:
        InputError: If a token id is not below `words`.
    """
    largest = largest_token_id(tokenizer.backend_tokenizer, text)
    if largest >= words:
        raise InputError(f"{source}: its tokenizer has a token {largest}, and its text encoder "
                         f"{words} words")
