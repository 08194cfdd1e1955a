"""Encoders by name: towers of a dual encoder, one for each side.

An encoder is any Hugging Face vision or text model by Hub name or local folder, a tower of a
CLIP-style checkpoint, or one of the small built-in configurations, trained from scratch.
"""

import logging
import os

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from common.errors import InputError

NO_CODE = {"trust_remote_code": False}  # else transformers offers to run what a folder brings along
BUILT_IN = {
    "small-convnext": lambda size, words: transformers.ConvNextConfig(
        patch_size=4, num_stages=3, hidden_sizes=[48, 96, 192], depths=[1, 1, 2],
        layer_scale_init_value=0.0),
    "small-vit": lambda size, words: transformers.ViTConfig(
        image_size=size, patch_size=8, hidden_size=192, num_hidden_layers=6,
        num_attention_heads=3, intermediate_size=768),
    "small-bert": lambda size, words: transformers.BertConfig(
        vocab_size=words, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=128, attention_probs_dropout_prob=0.0),
    "tiny-bert": lambda size, words: transformers.BertConfig(
        vocab_size=words, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=128, attention_probs_dropout_prob=0.0),
}


class ClipTower(nn.Module):
    """One side of a CLIP-style model, with the pooling and projection that it was trained with."""

    def __init__(self, clip: nn.Module, side: str, pad_id: int | None):
        super().__init__()
        self.clip, self.side, self.config = clip, side, clip.config
        setattr(clip, "text_model" if side == "image" else "vision_model", None)  # the other half
        # SigLIP reads its last token, so its captions always had one length, and no mask.
        fixed = side == "text" and clip.config.model_type.startswith("siglip")
        self.length = clip.config.text_config.max_position_embeddings if fixed else None
        self.pad_id = clip.config.text_config.pad_token_id if pad_id is None else pad_id

    def forward(self, **inputs) -> Tensor:
        if self.length:
            ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, self.pad_id)
            padding = 0, max(0, self.length - ids.shape[1])
            inputs = {"input_ids": F.pad(ids, padding, value=self.pad_id)}
        output = getattr(self.clip, f"get_{self.side}_features")(**inputs)
        # transformers 4 gives the (B, D) features, 5 wraps them.
        return output if isinstance(output, Tensor) else output.pooler_output


def load_encoder(
    name: str, side: str, image_res: int, tokenizer=None, pretrained: bool = True
) -> nn.Module:
    """The encoder `name` for `side` "image" or "text", in float32.

    `pretrained=False` makes the architecture with random weights, for a checkpoint to fill. The
    tokenizer decides a built-in text encoder's number of words, and SigLIP's padding.

    Raises:
        InputError: `name` is no built-in, no folder and cannot be had from the Hub.
    """
    if name in BUILT_IN:
        words = len(tokenizer) if tokenizer is not None else 0
        return AutoModel.from_config(BUILT_IN[name](image_res, words))
    config = load_config(name, side)
    try:
        if pretrained:  # transformers 5 would keep a half precision that the weights were saved in
            model = AutoModel.from_pretrained(name, dtype=torch.float32, **NO_CODE)
        else:
            model = AutoModel.from_config(config, dtype=torch.float32)
    except Exception as error:
        raise unknown_encoder(name, side, error) from error
    if not hasattr(config, "vision_config"):
        return model
    return ClipTower(model, side, tokenizer.pad_token_id if tokenizer is not None else None)


def load_config(name: str, side: str):
    """The configuration of encoder `name`, no built-in one; InputError where it cannot be had."""
    try:
        return AutoConfig.from_pretrained(name, **NO_CODE)
    except Exception as error:  # the Hub client has a dozen kinds, and all mean the same here
        raise unknown_encoder(name, side, error) from error


def unknown_encoder(name: str, side: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"--{side}_encoder {name}: not one of {', '.join(BUILT_IN)}, and no local "
                      f"folder or reachable Hugging Face model ({reason})")


def quiet_transformers() -> None:
    """Keep its loading bars and its notes on unused heads off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(logging.ERROR)
