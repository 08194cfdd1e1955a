"""Encoders by name: towers of a dual encoder, one for each side.

An encoder is a Hugging Face vision or text model of a type in `families.SUPPORTED`, by Hub name or
local folder, a tower of a CLIP-style checkpoint, or one of the small built-in configurations,
trained from scratch.
"""

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from common.errors import InputError, pass_on
from encoders.families import find_family
from encoders.hub import fetch, why_not
from encoders.hub import quiet_transformers as quiet_transformers  # is public here

BUILT_IN = {
    "small-convnext": lambda size, words: transformers.ConvNextConfig(
        patch_size=4, num_stages=3, hidden_sizes=[32, 64, 128], depths=[1, 1, 2],
        layer_scale_init_value=0.0),
    "small-vit": lambda size, words: transformers.ViTConfig(
        image_size=size, patch_size=8, hidden_size=192, num_hidden_layers=6,
        num_attention_heads=3, intermediate_size=768),
    "small-bert": lambda size, words: transformers.BertConfig(
        vocab_size=words, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=128, attention_probs_dropout_prob=0.0),
    "tiny-bert": lambda size, words: transformers.BertConfig(
        vocab_size=words, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=128, attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0),  # which costs `shapes` time and, in so few epochs, recall
}


class ClipTower(nn.Module):
    """One side of a CLIP-style model, with the pooling and projection that it was trained with.

    The last of these are in `head`, so that they can compute in float32 where the rest does not.
    """

    def __init__(self, clip: nn.Module, side: str, pad_id: int | None):
        super().__init__()
        self.clip, self.side, self.config = clip, side, clip.config
        setattr(clip, "text_model" if side == "image" else "vision_model", None)  # the other half
        self.siglip = clip.config.model_type == "siglip"
        # SigLIP reads its last token, so its captions always had one length, and no mask.
        fixed = self.siglip and side == "text"
        self.length = clip.config.text_config.max_position_embeddings if fixed else None
        self.pad_id = clip.config.text_config.pad_token_id if pad_id is None else pad_id
        if self.siglip and side == "image":
            clip.vision_model.use_head = False

    def forward(self, **inputs) -> Tensor:
        """What `head` reads: (B, W), or (B, L, W) from SigLIP's photos."""
        if self.length:
            ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, self.pad_id)
            padding = 0, max(0, self.length - ids.shape[1])
            inputs = {"input_ids": F.pad(ids, padding, value=self.pad_id)}
        model = self.clip.vision_model if self.side == "image" else self.clip.text_model
        output = model(**inputs)
        if not self.siglip:
            return output.pooler_output
        return output.last_hidden_state if self.side == "image" else output.last_hidden_state[:, -1]

    def head(self, states: Tensor) -> Tensor:
        """What `forward` gave, to features (B, D)."""
        if self.siglip:
            model = self.clip.vision_model if self.side == "image" else self.clip.text_model
            return model.head(states)
        name = "visual_projection" if self.side == "image" else "text_projection"
        return getattr(self.clip, name)(states)


def load_encoder(
    name: str, side: str, image_res: int, tokenizer=None, pretrained: bool = True
) -> nn.Module:
    """The encoder `name` for `side` "image" or "text", in float32.

    `pretrained=False` makes the architecture with random weights, for a checkpoint to fill. The
    tokenizer decides a built-in text encoder's number of words, and SigLIP's padding. Weights that
    the file lacks are random, and listed in the attribute `missing`.

    Raises:
        InputError: `name` is no built-in, no folder and cannot be had from the Hub, or it is a
            model that `families` has not.
    """
    if name in BUILT_IN:
        words = len(tokenizer) if tokenizer is not None else 0
        config = BUILT_IN[name](image_res, words)
        find_family(config, side, name)
        return from_config(config, side, None)
    config = load_config(name, side)
    kind, missing = getattr(transformers, find_family(config, side, name).loader), []
    pad_id = tokenizer.pad_token_id if tokenizer is not None else None
    try:
        if not pretrained:
            return from_config(config, side, pad_id)
        # transformers 5 would keep a half precision that the weights were saved in
        model, info = fetch(kind, name, dtype=torch.float32, output_loading_info=True)
        missing = sorted(info["missing_keys"])
    except Exception as error:
        pass_on(error)
        raise unknown_encoder(name, side, error) from error
    return as_tower(model, side, pad_id, missing)


def from_config(config, side: str, pad_id: int | None) -> nn.Module:
    """The encoder of a configuration that `families` has, with random weights."""
    kind = getattr(transformers, find_family(config, side).loader)
    model = (AutoModel.from_config(config, dtype=torch.float32) if kind is AutoModel
             else kind(config))
    return as_tower(model, side, pad_id, [])


def as_tower(model: nn.Module, side: str, pad_id: int | None, missing: list[str]) -> nn.Module:
    """A model of transformers as an encoder; of a pair, one half."""
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # of a decoder that would go on writing
    if hasattr(model.config, "vision_config"):
        model = ClipTower(model, side, pad_id)
    model.missing = missing
    return model


def load_config(name: str, side: str):
    """The configuration of encoder `name`, no built-in one.

    Raises:
        InputError: it cannot be had, or `families` has no such model.
    """
    try:
        config = fetch(AutoConfig, name)
    except Exception as error:  # the Hub client has a dozen kinds, and all mean the same here
        pass_on(error)
        raise unknown_encoder(name, side, error) from error
    find_family(config, side, name)
    return config


def unknown_encoder(name: str, side: str, error: Exception) -> InputError:
    if isinstance(error, ImportError):
        return InputError(f"--{side}_encoder {name}: it needs a package more "
                          f"({why_not(name, error)})")
    return InputError(f"--{side}_encoder {name}: not one of {', '.join(BUILT_IN)}, and no local "
                      f"folder or reachable Hugging Face model ({why_not(name, error)})")
