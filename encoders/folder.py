"""A trained model as a folder: weights as safetensors, everything else as JSON.

    config.json                 what is ours: poolings, projection, preparation, statistics
    tokenizer.json              the text encoder's own tokenizer
    image_0_Transformer/        weights and configuration of the image encoder
    text_0_Transformer/         weights and configuration of the text encoder
    image_2_Dense/, text_2_Dense/   projections, where there are any

`encoders.sentence` adds the files by which `sentence_transformers` reads the same weights. A folder
may come from anywhere: no pickle in it is read, and its configurations are checked by
`encoders.stored`.
"""

import json
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import InputError, one_line, reraise_out_of_memory
from common.files import check_plain, read_json
from common.flags import flags_of
from common.options import LONGEST_PREFIX, DataOptions, SourceOptions
from encoders.preparation import Preparation
from encoders.sentence import IMAGE_PROCESSOR, LAYOUT, cleaning_tokenizer, layout
from encoders.stored import (
    ENCODERS_KEY,
    SIDES,
    config_to_json,
    tokenizer_to_json,
    vocabulary_size,
)

FORMAT = "fne-export-1"
ENCODER_FOLDER, PROJECTION_FOLDER = "{}_0_Transformer", "{}_2_Dense"  # of a side
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
MAX_JSON_BYTES = 2**27
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The fields of `Preparation` that config.json holds beside mean and std, with their types.
PREPARATION_TYPES = {"image_res": int, "max_words": int, "max_tokens": int, "prefix": str,
                     "padded": bool}
PATTERNS = ["*.json", f"*/{WEIGHTS}", CARD]  # of the files to download from the Hub


def write_json(path: Path, content: object) -> None:
    """Write content as an indented JSON file, and make its folder if it is not there."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_folder(folder: Path, model, preparation: Preparation, dtype: torch.dtype) -> None:
    """Write a `DualEncoder` to a folder that `read_folder` reads.

    Args:
        folder: An existing folder.
        model: The `DualEncoder`.
        preparation: How its photos and captions are prepared.
        dtype: The type in which floating-point weights are written.

    Raises:
        InputError: If its tokenizer is a slow one, or has more words than the text encoder.
    """
    tokenizer_text = tokenizer_to_json(preparation.tokenizer, vocabulary_size(model.text_encoder))
    if tokenizer_text is None:
        raise InputError("the text encoder's tokenizer is no fast one of as many words as the "
                         "encoder, so it cannot be written as tokenizer.json")
    tokenizer = json.loads(tokenizer_text)
    has_projections = False
    for side in SIDES:
        encoder = getattr(model, f"{side}_encoder")
        encoder_folder = folder / ENCODER_FOLDER.format(side)
        config = json.loads(config_to_json(encoder.config, side))
        # transformers reads the class from it, and the type to compute in.
        config |= {"architectures": [type(encoder).__name__], "dtype": "float32"}
        write_json(encoder_folder / CONFIG, config)
        write_weights(encoder_folder, encoder.state_dict(), dtype)
        projection = getattr(model, f"{side}_projection").state_dict()
        if projection:
            has_projections = True
            projection_folder = folder / PROJECTION_FOLDER.format(side)
            projection_folder.mkdir()
            weights = {f"linear.{name}": value for name, value in projection.items()}
            write_weights(projection_folder, weights, dtype)
    write_json(folder / TOKENIZER, tokenizer["tokenizer"])
    write_json(folder / TOKENIZER_CONFIG, tokenizer_config(tokenizer))
    model_config = {"projection": model.embed_size if has_projections else 0,
                    "image_pooling": model.image_pooling, "text_pooling": model.text_pooling}
    preparation_config = {name: getattr(preparation, name) for name in PREPARATION_TYPES}
    preparation_config |= {"mean": list(preparation.mean), "std": list(preparation.std),
                           "resampling": "bicubic"}
    write_json(folder / CONFIG, {"format": FORMAT, "model": model_config,
                                 "preparation": preparation_config, "about": preparation.about})
    (folder / CARD).write_text(preparation.card, encoding="utf-8")
    write_sentence_files(folder, model, preparation, tokenizer)


def write_sentence_files(folder: Path, model, preparation: Preparation, tokenizer: dict) -> None:
    """Write the files by which `sentence_transformers` reads a folder; none if it cannot.

    Args:
        folder: The folder that `write_folder` is writing.
        model: The `DualEncoder`.
        preparation: How its photos and captions are prepared.
        tokenizer: The content of `encoders.stored.tokenizer_to_json`.
    """
    files, _ = layout(model, preparation)
    for name, content in files.items():
        write_json(folder / name, content)
        if isinstance(content, dict) and content.get("module_output_name") == "attention_mask":
            # A linear layer whose output is 1 for every token, to stand in for the mask.
            ones = {"linear.weight": torch.zeros(1, content["in_features"]),
                    "linear.bias": torch.ones(1)}
            write_weights((folder / name).parent, ones, torch.float32)
    if files:
        text_folder = folder / ENCODER_FOLDER.format("text")
        write_json(text_folder / TOKENIZER,
                   cleaning_tokenizer(tokenizer["tokenizer"], preparation.prefix,
                                      preparation.cleaning))
        write_json(text_folder / TOKENIZER_CONFIG,
                   tokenizer_config(tokenizer) | {"model_max_length": preparation.max_tokens})


def tokenizer_config(tokenizer: dict) -> dict:
    """Return the content of tokenizer_config.json, with which tokenizer.json is read as it is.

    Args:
        tokenizer: The content of `encoders.stored.tokenizer_to_json`.
    """
    return tokenizer["special_tokens"] | {
        "tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"]}


def write_weights(folder: Path, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Write weights as model.safetensors, floating-point ones as `dtype`."""
    tensors = {}
    for name, value in weights.items():
        target = dtype if value.is_floating_point() else value.dtype
        # Copied, because safetensors refuses tied weights, which share their memory.
        tensors[name] = value.detach().cpu().to(target, copy=True).contiguous()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def is_export(folder: Path) -> bool:
    """Return whether a folder is one that `write_folder` wrote."""
    try:
        return read_json_object(folder / CONFIG).get("format") == FORMAT
    except InputError:
        return False


def has_only_export_files(folder: Path) -> bool:
    """Return whether a folder holds nothing, at any depth, but files that `export.py` writes."""
    names = {CONFIG, CARD, TOKENIZER, TOKENIZER_CONFIG, *LAYOUT, WEIGHTS, IMAGE_PROCESSOR, "onnx",
             "image.onnx", "text.onnx", "image.onnx.data", "text.onnx.data", "test_results.json",
             *(name.format(side) for name in (ENCODER_FOLDER, PROJECTION_FOLDER) for side in SIDES)}
    return all(path.name in names and not path.is_symlink() for path in folder.rglob("*"))


def read_json_object(path: Path) -> dict:
    """Read one of the folder's JSON files.

    Raises:
        InputError: If the file cannot be read, or holds anything but an object.
    """
    content = read_json(path, MAX_JSON_BYTES)
    try:
        check_plain(content)
    except ValueError as error:
        raise InputError(f"{path} is no part of a model's folder: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no part of a model's folder: it holds no object")
    return content


def read_weights(path: Path, prefix: str) -> dict[str, Tensor]:
    """Read a safetensors file; floating-point weights become float32.

    Args:
        path: The file.
        prefix: What is put before each weight's name.

    Raises:
        InputError: If the file cannot be read, or holds weights of a type not in `DTYPES`.
    """
    weights = {}
    try:
        if not path.is_file():
            raise OSError("there is no such file")
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():
                value = file.get_tensor(name)
                if value.is_floating_point() and value.dtype not in DTYPES.values():
                    raise ValueError(f"{name} is {value.dtype}")
                weights[prefix + name] = value.float() if value.is_floating_point() else value
    except Exception as error:  # of several types: the bytes may be anything
        reraise_out_of_memory(error)
        raise InputError(f"{path} cannot be read as safetensors ({one_line(error)})") from error
    return weights


def read_folder(folder: Path) -> dict:
    """Read a folder of `export.py` as the state of a checkpoint.

    Returns:
        "options" of the training, "model" with the weights by name, `ENCODERS_KEY` for
        `encoders.stored`, an empty "criterion", and "folder" with the content of config.json.

    Raises:
        InputError: If a file is missing, or is not what `write_folder` writes.
    """
    config = read_json_object(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise InputError(f"{folder} is no folder that export.py wrote: its {CONFIG} does not say "
                         f"{FORMAT!r}")
    check_folder_config(config, folder)
    model, preparation = config["model"], config["preparation"]
    tokenizer = read_json_object(folder / TOKENIZER)
    special_tokens = {name: value
                      for name, value in read_json_object(folder / TOKENIZER_CONFIG).items()
                      if name.endswith("_token") and isinstance(value, str)}
    encoders = {
        "tokenizer": json.dumps({"tokenizer": tokenizer, "special_tokens": special_tokens}),
        "pixel_statistics": [preparation["mean"], preparation["std"]]}
    weights = {}
    for side in SIDES:
        encoder_folder = folder / ENCODER_FOLDER.format(side)
        encoder_config = read_json_object(encoder_folder / CONFIG)
        encoders[side] = json.dumps(encoder_config | {"architectures": None})
        weights |= read_weights(encoder_folder / WEIGHTS, f"{side}_encoder.")
        if model["projection"]:
            projection = read_weights(folder / PROJECTION_FOLDER.format(side) / WEIGHTS,
                                      f"{side}_projection.")
            weights |= {name.replace(".linear.", "."): value for name, value in projection.items()}
    options = config["about"]["options"] | {
        "image_res": preparation["image_res"], "max_words": preparation["max_words"],
        "max_tokens": preparation["max_tokens"], "caption_prefix": preparation["prefix"],
        "captions": preparation["cleaning"],
        "embed_size": model["projection"], "image_pooling": model["image_pooling"],
        "text_pooling": model["text_pooling"], "freeze": None}
    return {"options": options, "model": weights, ENCODERS_KEY: encoders, "criterion": {},
            "folder": config}


def check_folder_config(config: dict, folder: Path) -> None:
    """Check the content of config.json, and complete it in place.

    Mean and std become lists. A folder of an earlier version does not name the cleaning of its
    captions: it is "published".

    Raises:
        InputError: If a value is missing, or of another type or range than `write_folder` writes.
    """
    try:
        wrong = wrong_folder_values(config)
    except (KeyError, TypeError) as error:
        wrong = [one_line(error)]
    if wrong:
        raise InputError(f"{folder / CONFIG} is not what export.py writes: {wrong[0]}")


def wrong_folder_values(config: dict) -> list[str]:
    """Return the names of the values in config.json that are of a wrong type or range.

    Raises:
        KeyError: If a value is missing.
        TypeError: If a value that holds others is no object or list.
    """
    model, preparation, about = (config.get(name) for name in ("model", "preparation", "about"))
    valid = {name: type(preparation[name]) is kind for name, kind in PREPARATION_TYPES.items()}
    for name in "image_pooling", "text_pooling":
        valid[name] = isinstance(model[name], str)
    valid["projection"] = type(model["projection"]) is int and 0 <= model["projection"] < 2**16
    valid["prefix"] = valid["prefix"] and len(preparation["prefix"]) <= LONGEST_PREFIX
    flags = flags_of(SourceOptions) | flags_of(DataOptions)
    for name in "image_res", "max_words", "max_tokens":
        valid[name] = valid[name] and flags[name].is_in_range(preparation[name])
    preparation.setdefault("cleaning", "published")  # folders of earlier versions do not name it
    valid["cleaning"] = preparation["cleaning"] in flags["captions"].choices
    valid["about"] = isinstance(about["options"], dict)
    valid["recalls"] = are_scores(about.get("recalls"))
    for name in "mean", "std":
        preparation[name] = list(preparation[name])
    return [name for name, is_valid in valid.items() if not is_valid]


def are_scores(recalls: object) -> bool:
    """Return whether `recalls` is None, or what `export.known_scores` returns."""
    if recalls is None:
        return True
    if not isinstance(recalls, dict) or not isinstance(recalls.get("test", {}), dict):
        return False
    values = [value for name, value in recalls.items() if name == "val_rsum"]
    return all(isinstance(value, int | float)
               for value in [*values, *recalls.get("test", {}).values()])


def read_preparation(state: dict, tokenizer, folder: Path) -> Preparation:
    """Return how photos and captions are prepared for the model in a folder.

    Args:
        state: What `read_folder` returned.
        tokenizer: The text encoder's tokenizer.
        folder: The folder, whose README.md is read.
    """
    preparation = state["folder"]["preparation"]
    card = folder / CARD
    return Preparation(
        tokenizer, about=state["folder"]["about"], mean=preparation["mean"],
        std=preparation["std"], cleaning=preparation["cleaning"],
        card=card.read_text("utf-8", "replace") if card.is_file() else "",
        **{name: preparation[name] for name in PREPARATION_TYPES})
