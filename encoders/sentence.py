"""The files of an exported folder that `sentence_transformers` reads: a router, one route a side.

Each route is an encoder, its pooling, and the projection where there is one. The router's output is
normalised to unit length. Captions are cleaned by the tokenizer's normaliser, and photos resized by
the image processor.
"""

import re
import sys

from torch import nn

from encoders.families import SUPPORTED
from encoders.pairs import PairHalf
from inputs.captions import CLEANING
from inputs.fitting import RESAMPLINGS, PhotoFit

BASE_MODULES = "sentence_transformers.base.modules"
SENTENCE_MODULES = "sentence_transformers.sentence_transformer.modules"
MODULE_TYPES = {"Transformer": f"{BASE_MODULES}.transformer.Transformer",
                "Pooling": f"{SENTENCE_MODULES}.pooling.Pooling",
                "Dense": f"{BASE_MODULES}.dense.Dense"}
IMAGE_PROCESSOR, TRANSFORMER_CONFIG = "preprocessor_config.json", "sentence_bert_config.json"
# Our poolings to those of sentence_transformers. "padded" is a mean without the attention mask.
POOLING_MODES = {"mean": "mean", "tokens": "mean", "padded": "mean", "cls": "cls",
                 "last": "lasttoken"}
SENTENCE_CONFIG = {"model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None,
                   "similarity_fn_name": "cosine"}


def layout(model, preparation) -> tuple[dict[str, object], str]:
    """Return the JSON files with which `sentence_transformers` reads an exported folder.

    Args:
        model: The `DualEncoder`.
        preparation: Its `encoders.preparation.Preparation`.

    Returns:
        The files' contents by their names in the folder, and the reason why there are none. One of
        the two is empty.
    """
    reason = unsupported_reason(model) or inexpressible_fit(preparation.photo_fit)
    if reason:
        return {}, reason
    files, types, structure = {}, {}, {}
    for side in "image", "text":
        structure[side] = []
        for name, file, content in route_modules(model, side, preparation):
            files[f"{name}/{file}"] = content
            structure[side].append(name)
            types[name] = MODULE_TYPES[name.split("_")[-1]]
    files[f"image_0_Transformer/{IMAGE_PROCESSOR}"] = image_processor_config(preparation)
    image, text = (files[f"{side}_0_Transformer/{TRANSFORMER_CONFIG}"]["modality_config"]
                   for side in ("image", "text"))
    # Read by MTEB, which takes a model of the Hub for one of text alone unless this file, at the
    # top, names another modality. The library reads those of the routes.
    files[TRANSFORMER_CONFIG] = {"modality_config": image | text}
    files["router_config.json"] = {"types": types, "structure": structure, "parameters": {
        "default_route": None, "allow_empty_key": False, "route_mappings": {}}}
    files["1_Normalize/config.json"] = {"module_input_name": "sentence_embedding",
                                        "module_output_name": "sentence_embedding"}
    files["modules.json"] = [
        {"idx": 0, "name": "0", "path": "", "type": f"{BASE_MODULES}.router.Router"},
        {"idx": 1, "name": "1", "path": "1_Normalize",
         "type": f"{BASE_MODULES}.normalize.Normalize"}]
    files["config_sentence_transformers.json"] = SENTENCE_CONFIG
    return files, ""


def route_modules(model, side: str, preparation) -> list[tuple[str, str, dict]]:
    """Return the modules of one side's route in their order: folder, file and content of each."""
    pooling = getattr(model, f"{side}_pooling")
    layers = projection_layers(model, side)
    width = layers[0].in_features if layers else model.embed_size
    modules = [(f"{side}_0_Transformer", TRANSFORMER_CONFIG,
                transformer_config(side, pooling, preparation))]
    if pooling == "padded":
        # A layer that writes ones in place of the attention mask, so that padding is averaged too.
        ones = dense_config(width, 1) | {"module_input_name": "token_embeddings",
                                         "module_output_name": "attention_mask"}
        modules.append((f"{side}_1_Dense", "config.json", ones))
    if pooling != "own":
        modules.append((f"{side}_1_Pooling", "config.json", {
            "embedding_dimension": width, "pooling_mode": POOLING_MODES[pooling],
            "include_prompt": True}))
    for number, layer in enumerate(layers):
        is_last = number == len(layers) - 1
        config = dense_config(layer.in_features, layer.out_features,
                              activation=nn.Identity if is_last else nn.GELU)
        modules.append((f"{side}_{2 + number}_Dense", "config.json", config))
    return modules


def projection_layers(model, side: str) -> list[nn.Linear]:
    """Return the linear layers of the projection of a side; none where it is not projected."""
    projection = getattr(model, f"{side}_projection")
    return [module for module in projection.modules() if isinstance(module, nn.Linear)]


def unsupported_reason(model) -> str:
    """Return why `sentence_transformers` cannot express a `DualEncoder`, or "" if it can."""
    for side in "image", "text":
        encoder = getattr(model, f"{side}_encoder")
        pooling = getattr(model, f"{side}_pooling")
        model_type = encoder.config.model_type
        excluded = SUPPORTED[model_type].excluded_tokens(encoder.config)
        if isinstance(encoder, PairHalf) or model_type in ("timm_wrapper", "open_clip"):
            return f"its {side} encoder is one half of a {model_type}, or has a pooling of its own"
        if side == "image" and pooling == "mean" and excluded:
            return f"its image encoder, a {model_type}, leaves tokens at the front out of the mean"
    if model.image_encoder_kwargs:
        return "its photos have another side than its image encoder was made for"
    return ""


def transformer_config(side: str, pooling: str, preparation) -> dict:
    """Return the content of a side's sentence_bert_config.json: how its encoder is called."""
    own_pooling = pooling == "own"
    method = {"method": "forward",
              "method_output_name": "pooler_output" if own_pooling else "last_hidden_state"}
    content = {"transformer_task": "feature-extraction", "modality_config": {side: method},
               "module_output_name": "sentence_embedding" if own_pooling else "token_embeddings",
               "unpad_inputs": False}
    if side == "image":
        uses_pillow = preparation.photo_fit.library == "pillow"
        return content | ({"processor_kwargs": {"backend": "pil"}} if uses_pillow else {})
    tokenizer_kwargs = {"max_length": preparation.max_tokens, "truncation": True,
                        "padding": "max_length" if preparation.padded else True}
    return content | {"processing_kwargs": {"text": tokenizer_kwargs}}


def dense_config(
    in_features: int, out_features: int, activation: type[nn.Module] = nn.Identity
) -> dict:
    """Return the config.json of a linear layer and the activation function behind it."""
    return {"in_features": in_features, "out_features": out_features, "bias": True,
            "activation_function": f"{activation.__module__}.{activation.__qualname__}",
            "module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}


def inexpressible_fit(fit: PhotoFit) -> str:
    """Return why an image processor of transformers cannot fit photos so, or "" if it can."""
    if fit.fit == "pad":
        return "its photos are padded on both sides"
    if fit.rounds_half_pixels:
        return "its photos are cropped by the transforms of another library"
    return ""


def image_processor_config(preparation) -> dict:
    """Return the preprocessor_config.json that prepares photos as evaluation does.

    It repeats `inputs.fitting.fitted_pixels` and `inputs.photos.normalize`.
    """
    fit, side = preparation.photo_fit, preparation.image_res
    resized = round(side * fit.enlargement)
    size = {"height": resized, "width": resized}
    crops = fit.fit == "crop" or resized != side
    config = {"image_processor_type": "CLIPImageProcessor" if crops else "ViTImageProcessor",
              "do_convert_rgb": True, "do_resize": True,
              "size": {"shortest_edge": resized} if fit.fit == "crop" else size,
              "resample": RESAMPLINGS.index(fit.resampling),
              "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
              "image_mean": list(preparation.mean), "image_std": list(preparation.std)}
    if crops:
        config |= {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    return config


def cleaning_tokenizer(tokenizer: dict, prefix: str, cleaning: str = "published") -> dict:
    """Return a tokenizer.json that cleans captions before its own normaliser.

    It repeats `inputs.captions.clean_caption`, but does not cut captions to a number of words.

    Args:
        tokenizer: The content of the text encoder's tokenizer.json.
        prefix: The text that is put before each cleaned caption.
        cleaning: "published", or "raw": captions are left as they are.
    """
    removed = "".join(chr(code) for code, other in CLEANING.items() if other is None)
    spaces = "".join(chr(code) for code, other in CLEANING.items() if other is not None)
    # The characters that \s means in Python, one by one: the tokenizer's \s means others.
    whitespace = "".join(f"\\x{{{code:x}}}" for code in range(sys.maxunicode + 1)
                         if chr(code).isspace())
    steps = [{"type": "Lowercase"},
             replacement(f"[{re.escape(removed)}]", ""),
             replacement(f"[{re.escape(spaces)}]", " "),
             replacement("<person>", "person"),
             replacement(f"[{whitespace}]{{2,}}", " "),
             replacement(r"\n\z", ""),
             replacement(r"\A +| +\z", "")]
    if cleaning == "raw":
        steps = []
    if prefix:
        steps.append({"type": "Prepend", "prepend": prefix})
    if tokenizer.get("normalizer"):
        steps.append(tokenizer["normalizer"])
    return tokenizer | {"normalizer": {"type": "Sequence", "normalizers": steps},
                        "truncation": None, "padding": None}


def replacement(pattern: str, content: str) -> dict:
    """Return a step of a tokenizer's normaliser that replaces a regular expression."""
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
