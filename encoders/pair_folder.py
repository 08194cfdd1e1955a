"""A trained pair as a folder of its own type, which transformers and sentence-transformers load.

    config.json, model.safetensors      the pair, as `transformers.CLIPModel` and its like save it
    tokenizer.json, tokenizer_config.json
    preprocessor_config.json            the image processor
    modules.json, sentence_bert_config.json, ...    for sentence-transformers
    fne.json                            what is ours: preparation, options, statistics, recalls

This program reads the same files, with `fne.json` beside them. `encoders.folder` writes and reads
them; here is what is in them.
"""

import math

import torch
import transformers
from torch import Tensor, nn

from encoders.pairs import PairHalf
from encoders.sentence import (
    BASE_MODULES,
    SENTENCE_CONFIG,
    TRANSFORMER_CONFIG,
    cleaning_tokenizer,
    image_processor_config,
    inexpressible_fit,
)
from encoders.stored import without_dropped_keys

# Of each class of pair, the name of its processor.
PROCESSORS = {"CLIPModel": "CLIPProcessor", "MetaClip2Model": "CLIPProcessor",
              "SiglipModel": "SiglipProcessor", "AltCLIPModel": "AltCLIPProcessor",
              "ChineseCLIPModel": "ChineseCLIPProcessor", "AlignModel": "AlignProcessor",
              "BlipModel": "BlipProcessor", "BlipForImageTextRetrieval": "BlipProcessor"}


def is_whole_pair(model, preparation) -> bool:
    """Return whether the folder of a pretrained pair's own type can hold a `DualEncoder`.

    That is so if its encoders are both halves of one type of pair, no projection was added, and the
    type's image processor can prepare photos as the model's do.

    Args:
        model: The `DualEncoder`.
        preparation: Its `encoders.preparation.Preparation`.
    """
    halves = model.image_encoder, model.text_encoder
    return (all(isinstance(half, PairHalf) for half in halves)
            and len({pair_class(half) for half in halves}) == 1
            and not model.image_projection.state_dict()
            and not inexpressible_fit(preparation.photo_fit))


def pair_class(half: PairHalf) -> str:
    """Return the name of the class of transformers that a half of a pair is of."""
    return type(half.pair).__name__


def pair_config(model, image_res: int) -> dict:
    """Return config.json of a pair: the image half's, with the text part of the text half.

    Args:
        model: A `DualEncoder` for which `is_whole_pair` holds.
        image_res: R, the side of its photos.
    """
    config = without_dropped_keys(model.image_encoder.config.to_dict())
    config["text_config"] = without_dropped_keys(model.text_encoder.config.to_dict())["text_config"]
    if model.image_encoder_kwargs:  # its table of positions is interpolated once and for all
        config["vision_config"]["image_size"] = image_res
    return config | {"architectures": [pair_class(model.image_encoder)], "dtype": "float32"}


def pair_weights(model, image_res: int) -> dict[str, Tensor]:
    """Return the weights of a whole pair, by the names that its class gives them.

    Args:
        model: A `DualEncoder` for which `is_whole_pair` holds. Where it has a logit scale and bias,
            the pair gets these.
        image_res: R, the side of its photos.
    """
    weights = model.image_encoder.pair.state_dict() | model.text_encoder.pair.state_dict()
    if model.image_encoder_kwargs:
        name, table = interpolated_positions(model.image_encoder, image_res)
        weights[name] = table
    pair = whole_pair_on_meta(pair_config(model, image_res))
    scale = 1.0 if model.logit_scale is None else model.logit_scale
    learned = {"logit_scale": math.log(scale), "temperature": 1 / scale,
               "logit_bias": model.logit_bias or 0.0}
    for name, value in learned.items():
        if getattr(pair, name, None) is not None:
            weights[name] = torch.full(getattr(pair, name).shape, value)
    return weights


def whole_pair_on_meta(config: dict) -> nn.Module:
    """Build the pair of a config.json without memory for its weights."""
    config_class = transformers.CONFIG_MAPPING[config["model_type"]]
    settings = {name: value for name, value in config.items() if name != "model_type"}
    with torch.device("meta"):
        return getattr(transformers, config["architectures"][0])(config_class(**settings))


@torch.no_grad()
def interpolated_positions(half: PairHalf, image_res: int) -> tuple[str, Tensor]:
    """Return the name and the values of an image half's table of positions for another size.

    Args:
        half: The image half of a pair with a table of positions.
        image_res: R, the side of the photos in pixels.
    """
    embeddings = half.tower.embeddings
    patches = (image_res // embeddings.patch_size) ** 2
    tokens = patches + (1 if hasattr(embeddings, "class_embedding") else 0)
    empty = torch.zeros(1, tokens, embeddings.embed_dim)
    table = embeddings.interpolate_pos_encoding(empty, image_res, image_res)  # (1, tokens, width)
    name = f"{half.half.tower}.embeddings.position_embedding"
    if isinstance(embeddings.position_embedding, nn.Embedding):
        return f"{name}.weight", table[0].clone()
    return name, table.clone()


def pair_files(model, preparation, tokenizer: dict | None) -> dict[str, object]:
    """Return the JSON files of a pair's folder, but for fne.json, by their names.

    Args:
        model: A `DualEncoder` for which `is_whole_pair` holds.
        preparation: Its `encoders.preparation.Preparation`.
        tokenizer: The content of `encoders.stored.tokenizer_to_json`; None for a slow tokenizer,
            which saves itself.
    """
    kind = pair_class(model.image_encoder)
    processor = image_processor_config(preparation) | {"processor_class": PROCESSORS[kind]}
    files = {"config.json": pair_config(model, preparation.image_res),
             "preprocessor_config.json": processor}
    if tokenizer is not None:
        files["tokenizer.json"] = cleaning_tokenizer(tokenizer["tokenizer"], preparation.prefix,
                                                     preparation.cleaning)
    return files | ({} if sentence_reason(model) else sentence_files(model, preparation))


def sentence_reason(model) -> str:
    """Return why sentence-transformers cannot load a pair's folder, or "" if it can."""
    kind = pair_class(model.image_encoder)
    if not hasattr(getattr(transformers, kind), "get_text_features"):
        return f"a {kind} has no method that gives the features of photos or captions alone"
    return ""


def sentence_files(model, preparation) -> dict[str, object]:
    """Return the JSON files by which sentence-transformers calls a pair, by their names.

    Args:
        model: A `DualEncoder` for which `is_whole_pair` holds.
        preparation: Its `encoders.preparation.Preparation`.
    """
    methods = {"text": "get_text_features", "image": "get_image_features"}
    padding = "max_length" if model.text_encoder.fixed_length else True
    config = {
        "transformer_task": "feature-extraction",
        "modality_config": {side: {"method": method, "method_output_name": "pooler_output"}
                            for side, method in methods.items()},
        "module_output_name": "sentence_embedding", "unpad_inputs": False,
        "processing_kwargs": {"text": {"max_length": preparation.max_tokens, "truncation": True,
                                       "padding": padding}}}
    if preparation.photo_fit.library == "pillow":
        config["processor_kwargs"] = {"backend": "pil"}
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{BASE_MODULES}.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize",
         "type": f"{BASE_MODULES}.normalize.Normalize"}]
    return {"modules.json": modules, TRANSFORMER_CONFIG: config,
            "1_Normalize/config.json": {"module_input_name": "sentence_embedding",
                                        "module_output_name": "sentence_embedding"},
            "config_sentence_transformers.json": SENTENCE_CONFIG}
