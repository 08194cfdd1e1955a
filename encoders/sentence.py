"""A folder's files that `sentence_transformers` reads: a router with a route for each side.

Each route is an encoder, pooling, and the projection where there is one; unit norm is after both.
Cleaning of captions goes into the tokenizer's normaliser, resizing into the image processor.
"""

import re
import sys

from encoders.families import SUPPORTED
from inputs.captions import CLEANING

BASE, OURS = "sentence_transformers.base.modules", "sentence_transformers.sentence_transformer"
TYPES = {"Transformer": f"{BASE}.transformer.Transformer",
         "Pooling": f"{OURS}.modules.pooling.Pooling", "Dense": f"{BASE}.dense.Dense"}
LAYOUT = ("modules.json", "router_config.json", "config_sentence_transformers.json",
          "sentence_bert_config.json", "image_1_Pooling", "text_1_Pooling", "text_1_Dense",
          "1_Normalize")
IMAGE_PROCESSOR = "preprocessor_config.json"
# Ours: of the poolings there. "padded" is a mean without the mask.
POOLINGS = {"mean": "mean", "tokens": "mean", "padded": "mean", "cls": "cls", "last": "lasttoken"}
BICUBIC = 3


def layout(model, preparation) -> tuple[dict[str, object], str]:
    """JSON files by name, and why there are none, or ""."""
    reason = inexpressible(model)
    if reason:
        return {}, reason
    files, types, structure = {}, {}, {}
    for side in "image", "text":
        pooling = getattr(model, f"{side}_pooling")
        width = (model.embed_size if not has_projection(model, side)
                 else getattr(model, f"{side}_projection").in_features)
        modules = [(f"{side}_0_Transformer", "sentence_bert_config.json",
                    transformer(side, pooling, preparation))]
        if pooling == "padded":
            # It writes ones of another shape in place of the mask, so that what follows has none.
            modules.append((f"{side}_1_Dense", "config.json", dense(width, 1) | {
                "module_input_name": "token_embeddings", "module_output_name": "attention_mask"}))
        if pooling != "own":
            modules.append((f"{side}_1_Pooling", "config.json", {
                "embedding_dimension": width, "pooling_mode": POOLINGS[pooling],
                "include_prompt": True}))
        if has_projection(model, side):
            modules.append((f"{side}_2_Dense", "config.json", dense(width, model.embed_size)))
        files |= {f"{name}/{file}": content for name, file, content in modules}
        structure[side] = [name for name, _, _ in modules]
        types |= {name: TYPES[name.split("_")[-1]] for name in structure[side]}
    files[f"image_0_Transformer/{IMAGE_PROCESSOR}"] = image_processor(preparation)
    files["router_config.json"] = {"types": types, "structure": structure, "parameters": {
        "default_route": None, "allow_empty_key": False, "route_mappings": {}}}
    files["1_Normalize/config.json"] = {"module_input_name": "sentence_embedding",
                                        "module_output_name": "sentence_embedding"}
    files["modules.json"] = [
        {"idx": 0, "name": "0", "path": "", "type": f"{BASE}.router.Router"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{BASE}.normalize.Normalize"}]
    files["config_sentence_transformers.json"] = {
        "model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None,
        "similarity_fn_name": "cosine"}
    return files, ""


def has_projection(model, side: str) -> bool:
    return hasattr(getattr(model, f"{side}_projection"), "weight")


def inexpressible(model) -> str:
    """Why a model has no such layout, or ""."""
    for side in "image", "text":
        encoder, pooling = getattr(model, f"{side}_encoder"), getattr(model, f"{side}_pooling")
        kind = encoder.config.model_type
        family = SUPPORTED[kind]
        if hasattr(encoder, "clip") or kind == "timm_wrapper":
            return f"its {side} encoder is one half of a {kind}, or has a pooling of its own"
        if side == "image" and pooling == "mean" and family.left_out(encoder.config):
            return f"its image encoder, a {kind}, leaves tokens at the front out of the mean"
    if model.image_call:
        return "its photos have another side than its image encoder was made for"
    return ""


def transformer(side: str, pooling: str, preparation) -> dict:
    """sentence_bert_config.json of an encoder."""
    own = pooling == "own"
    content = {"transformer_task": "feature-extraction", "modality_config": {side: {
        "method": "forward",
        "method_output_name": "pooler_output" if own else "last_hidden_state"}},
        "module_output_name": "sentence_embedding" if own else "token_embeddings",
        "unpad_inputs": False}
    if side == "image":
        return content | {"processor_kwargs": {"backend": "pil"}}
    text = {"max_length": preparation.max_tokens, "truncation": True,
            "padding": "max_length" if preparation.padded else True}
    return content | {"processing_kwargs": {"text": text}}


def dense(width: int, output: int) -> dict:
    return {"in_features": width, "out_features": output, "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
            "module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}


def image_processor(preparation) -> dict:
    """preprocessor_config.json: what `inputs.photos.eval_pixels` and `normalize` do."""
    side = preparation.image_res
    return {"image_processor_type": "ViTImageProcessor", "do_convert_rgb": True,
            "do_resize": True, "size": {"height": side, "width": side}, "resample": BICUBIC,
            "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
            "image_mean": list(preparation.mean), "image_std": list(preparation.std)}


def cleaning_tokenizer(tokenizer: dict, prefix: str, cleaning: str = "published") -> dict:
    """tokenizer.json that cleans first, as `inputs.captions.clean_caption` but for the number of
    words, and puts the prefix before."""
    def replace(pattern: str, content: str) -> dict:
        return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}

    gone = "".join(chr(code) for code, other in CLEANING.items() if other is None)
    spaces = "".join(chr(code) for code, other in CLEANING.items() if other is not None)
    white = "".join(f"\\x{{{code:x}}}" for code in range(sys.maxunicode + 1)
                    if chr(code).isspace())  # what Python's \s is
    steps = [{"type": "Lowercase"}, replace(f"[{re.escape(gone)}]", ""),
             replace(f"[{re.escape(spaces)}]", " "), replace("<person>", "person"),
             replace(f"[{white}]{{2,}}", " "), replace(r"\n\z", ""), replace(r"\A +| +\z", "")]
    if cleaning == "raw":
        steps = []
    if prefix:
        steps.append({"type": "Prepend", "prepend": prefix})
    if tokenizer.get("normalizer"):
        steps.append(tokenizer["normalizer"])
    return tokenizer | {"normalizer": {"type": "Sequence", "normalizers": steps},
                        "truncation": None, "padding": None}
