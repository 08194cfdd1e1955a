"""A trained model as a folder: weights as safetensors, everything else as JSON.

    config.json                 what is ours: poolings, projection, preparation, statistics
    tokenizer.json              the text encoder's own tokenizer
    image_0_Transformer/        weights and configuration of the image encoder
    text_0_Transformer/         weights and configuration of the text encoder
    image_2_Dense/, text_2_Dense/   projections, where there are any; with `--head mlp` their
    image_3_Dense/, text_3_Dense/   first layers, and these the second

`encoders.sentence` adds the files by which `sentence_transformers` reads the same weights. A folder
may come from anywhere: no pickle in it is read, and its configurations are checked by
`encoders.stored`.
"""

import json
from pathlib import Path

import safetensors
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from torch import Tensor

from common.errors import InputError, one_line, reraise_out_of_memory
from common.files import check_plain, is_inside, read_json, read_start
from common.flags import flags_of
from common.options import LONGEST_PREFIX, DataOptions, SourceOptions
from encoders.hub import fetch_error_message, is_hub_name, model_file, use_cache_only
from encoders.open_clip_pairs import SCHEME
from encoders.pair_folder import is_whole_pair, pair_files, pair_weights
from encoders.pair_models import read_pair
from encoders.pairs import with_names_of_today
from encoders.preparation import Preparation
from encoders.sentence import cleaning_tokenizer, layout
from encoders.stored import (
    ENCODERS_KEY,
    SIDES,
    config_to_json,
    read_photo_fit,
    tokenizer_to_json,
    vocabulary_size,
)
from inputs.fitting import PUBLISHED_FIT

FORMAT, PAIR_FORMAT = "fne-export-1", "fne-pair-1"
ENCODER_FOLDER = "{}_0_Transformer"  # of a side
# The folders of a side's projection by --head, each with one linear layer, and the names that the
# weights of the layers have in the projection.
PROJECTION_LAYERS = {"linear": {"{}_2_Dense": ""}, "mlp": {"{}_2_Dense": "0.", "{}_3_Dense": "2."}}
OURS = "fne.json"  # beside the files of a pair
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
MAX_JSON_BYTES = 2**27
MAX_CARD_BYTES = 2**20
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
    """Write a `DualEncoder` to a folder that `read_model` reads.

    A pretrained pair becomes a folder of its own type (`encoders.pair_folder`).

    Args:
        folder: An existing folder.
        model: The `DualEncoder`.
        preparation: How its photos and captions are prepared.
        dtype: The type in which floating-point weights are written.

    Raises:
        InputError: If its tokenizer is a slow one, or has more words than the text encoder.
    """
    tokenizer_text = tokenizer_to_json(preparation.tokenizer, vocabulary_size(model.text_encoder))
    tokenizer = None if tokenizer_text is None else json.loads(tokenizer_text)
    as_pair = is_whole_pair(model, preparation)
    if tokenizer is None and (not as_pair or preparation.cleaning != "raw" or preparation.prefix):
        raise InputError("the text encoder's tokenizer is no fast one of as many words as the "
                         "encoder, so it cannot be written as tokenizer.json")
    if as_pair:
        write_pair(folder, model, preparation, tokenizer, dtype)
    else:
        write_encoders(folder, model, dtype)
        write_json(folder / TOKENIZER, tokenizer["tokenizer"])
        write_json(folder / TOKENIZER_CONFIG, tokenizer_config(tokenizer))
        write_json(folder / CONFIG, {"format": FORMAT} | our_config(model, preparation))
        write_sentence_files(folder, model, preparation, tokenizer)
    (folder / CARD).write_text(preparation.card, encoding="utf-8")


def write_encoders(folder: Path, model, dtype: torch.dtype) -> None:
    """Write both encoders and projections of a `DualEncoder`, each into a folder of its own."""
    for side in SIDES:
        encoder = getattr(model, f"{side}_encoder")
        encoder_folder = folder / ENCODER_FOLDER.format(side)
        config = json.loads(config_to_json(encoder.config, side))
        # transformers reads the class from it, and the type to compute in.
        model_type = type(getattr(encoder, "pair", encoder))
        config |= {"architectures": [model_type.__name__], "dtype": "float32"}
        write_json(encoder_folder / CONFIG, config)
        write_weights(encoder_folder, encoder.state_dict(), dtype)
        projection = getattr(model, f"{side}_projection").state_dict()
        if projection:
            for name, layer in PROJECTION_LAYERS[model.head].items():
                layer_folder = folder / name.format(side)
                layer_folder.mkdir()
                weights = {f"linear.{part}": projection[f"{layer}{part}"]
                           for part in ("weight", "bias")}
                write_weights(layer_folder, weights, dtype)


def write_pair(
    folder: Path, model, preparation: Preparation, tokenizer: dict | None, dtype: torch.dtype
) -> None:
    """Write a `DualEncoder` that is a pretrained pair as a folder of the pair's own type.

    Args:
        folder: An existing folder.
        model: The `DualEncoder`, for which `is_whole_pair` holds.
        preparation: How its photos and captions are prepared.
        tokenizer: The content of `encoders.stored.tokenizer_to_json`; None for a slow tokenizer.
        dtype: The type in which floating-point weights are written.
    """
    write_weights(folder, pair_weights(model, preparation.image_res), dtype)
    for name, content in pair_files(model, preparation, tokenizer).items():
        write_json(folder / name, content)
    config = {"format": PAIR_FORMAT} | our_config(model, preparation)
    if tokenizer is None:
        preparation.tokenizer.save_pretrained(folder)
        settings = read_json_object(folder / TOKENIZER_CONFIG)
    else:
        settings = tokenizer_config(tokenizer)
        # That of tokenizer.json cleans captions as well.
        config["tokenizer_normalizer"] = tokenizer["tokenizer"].get("normalizer")
    settings["model_max_length"] = preparation.max_tokens
    if model.text_encoder.fixed_length:  # the pair was trained without a mask
        settings["model_input_names"] = ["input_ids"]
    write_json(folder / TOKENIZER_CONFIG, settings)
    write_json(folder / OURS, config)


def our_config(model, preparation: Preparation) -> dict:
    """Return what a folder says of a `DualEncoder` beside its encoders' own files."""
    has_projections = bool(model.image_projection.state_dict())
    model_config = {"projection": model.embed_size if has_projections else 0, "head": model.head,
                    "image_pooling": model.image_pooling, "text_pooling": model.text_pooling,
                    "logit_scale": [model.logit_scale, model.logit_bias]}
    preparation_config = {name: getattr(preparation, name) for name in PREPARATION_TYPES}
    preparation_config |= {"mean": list(preparation.mean), "std": list(preparation.std),
                           "cleaning": preparation.cleaning,
                           "photo_fit": preparation.photo_fit._asdict()}
    return {"model": model_config, "preparation": preparation_config, "about": preparation.about}


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
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": tokenizer.get("padding_side", "right"),
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
    # The library makes it readable by its owner alone.
    (folder / WEIGHTS).chmod(folder.stat().st_mode & 0o666)


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


def read_model(name: str | Path, **kwargs) -> dict:
    """Read a model that is no checkpoint as the state of one: an export, or a pretrained pair.

    Args:
        name: A local folder, or the name of a model on the Hub.
        **kwargs: Arguments of the Hub, such as `revision`.

    Returns:
        The dictionary of `read_folder`.

    Raises:
        InputError: If there is no such model, or it is neither.
    """
    name = str(name)
    if not Path(name).is_dir() and not is_hub_name(name.removeprefix(SCHEME)):
        raise InputError(f"{name} is no folder, and cannot be a name of the Hub")
    if Path(name).is_dir():
        check_links(Path(name))
    config = model_file(name, CONFIG, **kwargs)
    if config is None or read_json_object(config).get("format") != FORMAT:
        state, ours = read_pair(name, **kwargs), model_file(name, OURS, **kwargs)
        return state if ours is None else with_our_config(state, read_json_object(ours), ours)
    if Path(name).is_dir():
        return read_folder(Path(name))
    try:
        return read_folder(Path(snapshot_download(
            name, allow_patterns=PATTERNS, **{"local_files_only": use_cache_only(name)} | kwargs)))
    except InputError:
        raise
    except Exception as error:  # the Hub's client raises errors of a dozen kinds
        reraise_out_of_memory(error)
        raise InputError(f"{name} cannot be had from the Hub "
                         f"({fetch_error_message(name, error)[:200]})") from error


def read_folder(folder: Path) -> dict:
    """Read a folder of `export.py` as the state of a checkpoint.

    Returns:
        "options" of the training, "model" with the weights by name, `ENCODERS_KEY` for
        `encoders.stored`, an empty "criterion", and "folder" with the content of config.json.

    Raises:
        InputError: If a file is missing, or is not what `write_folder` writes.
    """
    check_links(folder)
    config = read_json_object(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise InputError(f"{folder} is no folder that export.py wrote: its {CONFIG} does not say "
                         f"{FORMAT!r}")
    check_folder_config(config, folder / CONFIG)
    model, preparation = config["model"], config["preparation"]
    tokenizer = read_json_object(folder / TOKENIZER)
    tokenizer_settings = read_json_object(folder / TOKENIZER_CONFIG)
    special_tokens = {name: value for name, value in tokenizer_settings.items()
                      if name.endswith("_token") and isinstance(value, str)}
    encoders = {
        "tokenizer": json.dumps({
            "tokenizer": tokenizer, "special_tokens": special_tokens,
            "padding_side": tokenizer_settings.get("padding_side")}),
        "pixel_statistics": [preparation["mean"], preparation["std"]],
        "photo_fit": preparation["photo_fit"], "logit_scale": model.get("logit_scale")}
    weights = {}
    for side in SIDES:
        encoder_folder = folder / ENCODER_FOLDER.format(side)
        encoder_config = read_json_object(encoder_folder / CONFIG)
        encoders[side] = json.dumps(encoder_config)
        weights |= read_weights(encoder_folder / WEIGHTS, f"{side}_encoder.")
        if model["projection"]:
            for name, layer in PROJECTION_LAYERS[model["head"]].items():
                read = read_weights(folder / name.format(side) / WEIGHTS, "")
                weights |= {f"{side}_projection.{layer}{part.removeprefix('linear.')}": value
                            for part, value in read.items()}
    options = config["about"]["options"] | options_of_config(config)
    return {"options": options, "model": with_names_of_today(weights), ENCODERS_KEY: encoders,
            "criterion": {}, "folder": config}


def with_our_config(state: dict, config: dict, path: Path) -> dict:
    """Return the state of a pair with what `write_pair` wrote beside it.

    Args:
        state: What `read_pair` returned.
        config: The content of fne.json.
        path: Its file.

    Raises:
        InputError: If the content is not what `write_pair` writes.
    """
    if config.get("format") != PAIR_FORMAT:
        raise InputError(f"{path} is not what export.py writes: it does not say {PAIR_FORMAT!r}")
    check_folder_config(config, path)
    encoders = dict(state[ENCODERS_KEY])
    if encoders["tokenizer"] is not None:
        tokenizer = json.loads(encoders["tokenizer"])
        tokenizer["tokenizer"]["normalizer"] = config.get("tokenizer_normalizer")
        encoders["tokenizer"] = json.dumps(tokenizer)
    preparation = config["preparation"]
    encoders |= {"pixel_statistics": [preparation["mean"], preparation["std"]],
                 "photo_fit": preparation["photo_fit"]}
    options = config["about"]["options"] | options_of_config(config)
    if encoders["tokenizer"] is None:  # a slow one is read from the folder
        options["text_encoder"] = state["options"]["text_encoder"]
    return state | {"options": options, ENCODERS_KEY: encoders, "folder": config}


def options_of_config(config: dict) -> dict:
    """Return the options that describe a folder's model, by name."""
    model, preparation = config["model"], config["preparation"]
    return {"image_res": preparation["image_res"], "max_words": preparation["max_words"],
            "max_tokens": preparation["max_tokens"], "caption_prefix": preparation["prefix"],
            "captions": preparation["cleaning"], "image_fit": preparation["photo_fit"]["fit"],
            "embed_size": model["projection"], "head": model["head"],
            "image_pooling": model["image_pooling"], "text_pooling": model["text_pooling"],
            "freeze": None, "lora": 0}


def check_links(folder: Path) -> None:
    """Check that no file of a model's folder is a link out of it.

    Raises:
        InputError: If one is; its content would go into what is made from the folder.
    """
    for pattern in "*.json", CARD, WEIGHTS, "*/*.json", f"*/{WEIGHTS}":
        for path in folder.glob(pattern):
            if not is_inside(path, folder):
                raise InputError(f"{path} leads out of the folder: put the file itself there")


def check_folder_config(config: dict, path: Path) -> None:
    """Check the content of config.json, or of a pair's fne.json, and complete it in place.

    Mean and std become lists. A folder of an earlier version does not name the cleaning of its
    captions, nor how photos are fitted, which are as published, nor the form of its projections,
    which is "linear".

    Raises:
        InputError: If a value is missing, or of another type or range than `write_folder` writes.
    """
    try:
        wrong = wrong_folder_values(config)
    except (KeyError, TypeError) as error:
        wrong = [one_line(error)]
    if wrong:
        raise InputError(f"{path} is not what export.py writes: {wrong[0]}")


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
    model.setdefault("head", "linear")  # folders of earlier versions do not name it
    valid["head"] = isinstance(model["head"], str) and model["head"] in PROJECTION_LAYERS
    valid["projection"] = type(model["projection"]) is int and 0 <= model["projection"] < 2**16
    valid["prefix"] = valid["prefix"] and len(preparation["prefix"]) <= LONGEST_PREFIX
    flags = flags_of(SourceOptions) | flags_of(DataOptions)
    for name in "image_res", "max_words", "max_tokens":
        valid[name] = valid[name] and flags[name].is_in_range(preparation[name])
    preparation.setdefault("cleaning", "published")
    preparation.setdefault("photo_fit", PUBLISHED_FIT._asdict())
    valid["cleaning"] = preparation["cleaning"] in ("published", "raw")
    try:
        read_photo_fit(preparation["photo_fit"], CONFIG)
    except InputError:
        valid["photo_fit"] = False
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
    return Preparation(
        tokenizer, about=state["folder"]["about"], mean=preparation["mean"],
        std=preparation["std"], cleaning=preparation["cleaning"],
        card=read_start(folder / CARD, MAX_CARD_BYTES).decode("utf-8", "replace"),
        photo_fit=read_photo_fit(preparation["photo_fit"], str(folder)),
        **{name: preparation[name] for name in PREPARATION_TYPES})
