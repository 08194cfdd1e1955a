"""A trained model as a folder: weights as safetensors, everything else as JSON.

    config.json                 what is ours: poolings, projection, preparation, statistics
    tokenizer.json              the text encoder's own tokenizer
    image_0_Transformer/        weights and configuration of the image encoder
    text_0_Transformer/         of the text encoder
    image_2_Dense/, text_2_Dense/   projections, where there are any

`encoders.sentence` adds what `sentence_transformers` reads of the same weights. A folder may come
from anywhere: no pickle in it is looked at, and its configurations go through `encoders.stored`.
"""

import json
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import InputError, one_line, pass_on
from common.files import read_json
from common.flags import flags_of
from common.options import LONGEST_PREFIX, DataOptions, SourceOptions
from encoders.preparation import Preparation
from encoders.sentence import IMAGE_PROCESSOR, LAYOUT, cleaning_tokenizer, layout
from encoders.stored import KEY, SIDES, config_text, tokenizer_text, words_of

FORMAT = "fne-export-1"
TOWER, DENSE = "{}_0_Transformer", "{}_2_Dense"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
TOKENIZER = "tokenizer.json", "tokenizer_config.json"
LARGEST = 2**27  # bytes of a JSON file
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PREPARED = {"image_res": int, "max_words": int, "max_tokens": int, "prefix": str, "padded": bool}
PATTERNS = ["*.json", f"*/{WEIGHTS}", CARD]  # of the files to fetch from the Hub


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_folder(folder: Path, model, preparation: Preparation, dtype: torch.dtype) -> None:
    """Write a `DualEncoder`.

    Raises:
        InputError: its tokenizer is a slow one, or has more words than the encoder.
    """
    tokenizer = tokenizer_text(preparation.tokenizer, words_of(model.text_encoder))
    if tokenizer is None:
        raise InputError("the text encoder's tokenizer is no fast one of as many words as the "
                         "encoder, so it cannot be written as tokenizer.json")
    tokenizer = json.loads(tokenizer)
    for side in SIDES:
        encoder = getattr(model, f"{side}_encoder")
        config = json.loads(config_text(encoder.config, side))
        # Read by transformers: the class, and that whoever computes does so in float32.
        config |= {"architectures": [type(encoder).__name__], "dtype": "float32"}
        write_json(folder / TOWER.format(side) / CONFIG, config)
        write_weights(folder / TOWER.format(side), encoder.state_dict(), dtype)
        projection = getattr(model, f"{side}_projection").state_dict()
        if projection:
            (folder / DENSE.format(side)).mkdir()
            write_weights(folder / DENSE.format(side), {
                f"linear.{name}": value for name, value in projection.items()}, dtype)
    write_json(folder / TOKENIZER[0], tokenizer["tokenizer"])
    write_json(folder / TOKENIZER[1], settings_of(tokenizer))
    prepared = {name: getattr(preparation, name) for name in PREPARED}
    write_json(folder / CONFIG, {
        "format": FORMAT,
        "model": {"projection": model.embed_size if projection else 0,
                  "image_pooling": model.image_pooling, "text_pooling": model.text_pooling},
        "preparation": prepared | {"mean": list(preparation.mean), "std": list(preparation.std),
                                   "resampling": "bicubic"},
        "about": preparation.about})
    (folder / CARD).write_text(preparation.card, encoding="utf-8")
    files, _ = layout(model, preparation)
    for name, content in files.items():
        write_json(folder / name, content)
        if isinstance(content, dict) and content.get("module_output_name") == "attention_mask":
            write_weights((folder / name).parent, {
                "linear.weight": torch.zeros(1, content["in_features"]),
                "linear.bias": torch.ones(1)}, torch.float32)
    if files:
        text = TOWER.format("text")
        write_json(folder / text / TOKENIZER[0],
                   cleaning_tokenizer(tokenizer["tokenizer"], preparation.prefix,
                                      preparation.cleaning))
        write_json(folder / text / TOKENIZER[1],
                   settings_of(tokenizer) | {"model_max_length": preparation.max_tokens})


def settings_of(tokenizer: dict) -> dict:
    """What tokenizer_config.json says, so that tokenizer.json is taken as it is."""
    return tokenizer["special_tokens"] | {
        "tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"]}


def write_weights(folder: Path, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Write weights; copies, since tied ones share their memory."""
    save_file({name: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype,
                                             copy=True).contiguous()
               for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})


def is_export(folder: Path) -> bool:
    """Whether a folder is one that `write_folder` wrote."""
    try:
        return read_part(folder / CONFIG).get("format") == FORMAT
    except InputError:
        return False


def own_files(folder: Path) -> bool:
    """Whether nothing is in an export but what this program writes."""
    named = {CONFIG, CARD, *TOKENIZER, *LAYOUT, WEIGHTS, IMAGE_PROCESSOR, "onnx",
             "image.onnx", "text.onnx", "image.onnx.data", "text.onnx.data", "test_results.json",
             *(part.format(side) for part in (TOWER, DENSE) for side in SIDES)}
    return all(path.name in named and not path.is_symlink() for path in folder.rglob("*"))


def read_part(path: Path) -> dict:
    """The object in one of the folder's JSON files; InputError where there is none."""
    content = read_json(path, LARGEST)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no part of a model's folder: it holds no object")
    return content


def read_weights(path: Path, prefix: str) -> dict[str, Tensor]:
    """The weights of a safetensors file, float32, under names that begin with `prefix`."""
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
    except Exception as error:  # of several kinds, as bytes come
        pass_on(error)
        raise InputError(f"{path} cannot be read as safetensors ({one_line(error)})") from error
    return weights


def read_folder(folder: Path) -> dict:
    """A folder as the state of a checkpoint: "options", "model", `KEY`, and "folder" with what
    config.json says.

    Raises:
        InputError: a file is missing, or is not what `write_folder` writes.
    """
    config = read_part(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise InputError(f"{folder} is no folder that export.py wrote: its {CONFIG} does not say "
                         f"{FORMAT!r}")
    check_config(config, folder)
    model, prepared = config["model"], config["preparation"]
    tokenizer = {"tokenizer": read_part(folder / TOKENIZER[0]), "special_tokens": {
        name: value for name, value in read_part(folder / TOKENIZER[1]).items()
        if name.endswith("_token") and isinstance(value, str)}}
    weights, encoders = {}, {"tokenizer": json.dumps(tokenizer),
                             "pixel_statistics": [prepared["mean"], prepared["std"]]}
    for side in SIDES:
        place = folder / TOWER.format(side)
        encoders[side] = json.dumps(read_part(place / CONFIG) | {"architectures": None})
        weights |= read_weights(place / WEIGHTS, f"{side}_encoder.")
        if model["projection"]:
            parts = read_weights(folder / DENSE.format(side) / WEIGHTS, f"{side}_projection.")
            weights |= {name.replace(".linear.", "."): value for name, value in parts.items()}
    options = config["about"]["options"] | {
        "image_res": prepared["image_res"], "max_words": prepared["max_words"],
        "max_tokens": prepared["max_tokens"], "caption_prefix": prepared["prefix"],
        "captions": prepared["cleaning"],
        "embed_size": model["projection"], "image_pooling": model["image_pooling"],
        "text_pooling": model["text_pooling"], "freeze": None}
    return {"options": options, "model": weights, KEY: encoders, "criterion": {},
            "folder": config}


def check_config(config: dict, folder: Path) -> None:
    """Raise InputError where a value in config.json is of another kind than `write_folder`'s."""
    model, prepared, about = (config.get(name) for name in ("model", "preparation", "about"))
    try:
        kinds = {name: type(prepared[name]) is kind for name, kind in PREPARED.items()}
        kinds |= {name: isinstance(model[name], str) for name in ("image_pooling", "text_pooling")}
        kinds["projection"] = type(model["projection"]) is int and 0 <= model["projection"] < 2**16
        kinds["prefix"] = kinds["prefix"] and len(prepared["prefix"]) <= LONGEST_PREFIX
        flags = flags_of(SourceOptions) | flags_of(DataOptions)
        for name in "image_res", "max_words", "max_tokens":
            kinds[name] = kinds[name] and flags[name].is_in_range(prepared[name])
        prepared.setdefault("cleaning", "published")  # of earlier folders
        kinds["cleaning"] = prepared["cleaning"] in flags["captions"].choices
        kinds["about"] = isinstance(about["options"], dict)
        prepared["mean"], prepared["std"] = list(prepared["mean"]), list(prepared["std"])
        wrong = [name for name, good in kinds.items() if not good]
    except (KeyError, TypeError) as error:
        wrong = [one_line(error)]
    if wrong:
        raise InputError(f"{folder / CONFIG} is not what export.py writes: {wrong[0]}")


def preparation_of(state: dict, tokenizer, folder: Path) -> Preparation:
    """The `Preparation` of a folder that `read_folder` read."""
    prepared = state["folder"]["preparation"]
    card = folder / CARD
    return Preparation(tokenizer, about=state["folder"]["about"], mean=prepared["mean"],
                       std=prepared["std"],
                       cleaning=prepared["cleaning"],
                       card=card.read_text("utf-8", "replace") if card.is_file() else "",
                       **{name: prepared[name] for name in PREPARED})
