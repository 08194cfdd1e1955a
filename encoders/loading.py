"""Encoders by name: the image encoder or the text encoder of a dual encoder.

An encoder is a Hugging Face vision or text model of a type in `families.SUPPORTED`, by its name on
the Hub or its local folder; one half of a CLIP-style checkpoint; or one of the small built-in
configurations, which are trained from scratch.
"""

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from common.errors import InputError, reraise_out_of_memory
from encoders.families import find_family
from encoders.hub import fetch, fetch_error_message
from encoders.hub import quiet_transformers as quiet_transformers  # is public here

# Functions of the side of the photos in pixels and the number of words in the vocabulary.
BUILT_IN = {
    "small-convnext": lambda image_res, words: transformers.ConvNextConfig(
        patch_size=4, num_stages=3, hidden_sizes=[32, 64, 128], depths=[1, 1, 2],
        layer_scale_init_value=0.0),
    "small-vit": lambda image_res, words: transformers.ViTConfig(
        image_size=image_res, patch_size=8, hidden_size=192, num_hidden_layers=6,
        num_attention_heads=3, intermediate_size=768),
    "small-bert": lambda image_res, words: transformers.BertConfig(
        vocab_size=words, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=128, attention_probs_dropout_prob=0.0),
    # No dropout: on `shapes` it costs time and, in so few epochs, recall.
    "tiny-bert": lambda image_res, words: transformers.BertConfig(
        vocab_size=words, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=128, attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0),
}


class ClipEncoder(nn.Module):
    """One half of a CLIP-style model, with the pooling and projection that it was trained with.

    `forward` and `head` together give the model's own features. They are apart so that `head`
    computes in float32 where `forward` runs under bfloat16 autocast.

    Args:
        clip: A CLIP, MetaCLIP 2 or SigLIP model of transformers. Its other half is removed in
            place.
        side: "image" or "text", the half that is kept.
        pad_id: The tokenizer's padding token; None takes that of the configuration.
    """

    def __init__(self, clip: nn.Module, side: str, pad_id: int | None):
        super().__init__()
        self.clip = clip
        self.side = side
        self.config = clip.config
        setattr(clip, "text_model" if side == "image" else "vision_model", None)
        self.is_siglip = clip.config.model_type == "siglip"
        # SigLIP's text features are those of the last position. It was trained without a mask, on
        # captions that are all padded to one length.
        self.fixed_length = None
        if self.is_siglip and side == "text":
            self.fixed_length = clip.config.text_config.max_position_embeddings
        self.pad_id = clip.config.text_config.pad_token_id if pad_id is None else pad_id
        if self.is_siglip and side == "image":
            clip.vision_model.use_head = False  # `head` applies it

    def forward(self, **inputs) -> Tensor:
        """Encode photos or captions up to the head.

        Args:
            **inputs: `pixel_values` (B, 3, R, R) on the image side; `input_ids` and
                `attention_mask` (B, L) on the text side.

        Returns:
            (B, W) pooled states, or (B, L, W) token states from the image side of SigLIP.
        """
        if self.fixed_length:
            ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, self.pad_id)
            lacking = max(0, self.fixed_length - ids.shape[1])
            inputs = {"input_ids": F.pad(ids, (0, lacking), value=self.pad_id)}
        model = self.clip.vision_model if self.side == "image" else self.clip.text_model
        output = model(**inputs)
        if not self.is_siglip:
            return output.pooler_output
        if self.side == "image":
            return output.last_hidden_state
        return output.last_hidden_state[:, -1]

    def head(self, states: Tensor) -> Tensor:
        """Apply the model's own last layers to what `forward` returned: features (B, D)."""
        if self.is_siglip:
            model = self.clip.vision_model if self.side == "image" else self.clip.text_model
            return model.head(states)
        if self.side == "image":
            return self.clip.visual_projection(states)
        return self.clip.text_projection(states)


def load_encoder(
    name: str, side: str, image_res: int, tokenizer=None, pretrained: bool = True
) -> nn.Module:
    """Load the image or text encoder of a name, in float32.

    Weights that the encoder needs and its file lacks are random; the attribute `missing_weights`
    of the encoder lists their names.

    Args:
        name: A name of `BUILT_IN`, a local folder, or the name of a model on the Hub.
        side: "image" or "text".
        image_res: R, the side of the photos in pixels, for a built-in image encoder.
        tokenizer: The text encoder's tokenizer. It decides the number of words of a built-in text
            encoder, and SigLIP's padding token.
        pretrained: If false, only the configuration is read and all weights are random, for a
            checkpoint to fill.

    Raises:
        InputError: If there is no such encoder, or its type is not supported for this side.
    """
    if name in BUILT_IN:
        words = len(tokenizer) if tokenizer is not None else 0
        config = BUILT_IN[name](image_res, words)
        find_family(config, side, name)
        return encoder_from_config(config, side, None)
    config = load_config(name, side)
    pad_id = tokenizer.pad_token_id if tokenizer is not None else None
    loader_class = getattr(transformers, find_family(config, side, name).loader_class)
    try:
        if not pretrained:
            return encoder_from_config(config, side, pad_id)
        # transformers 5 would keep a half precision that the weights were saved in.
        model, info = fetch(loader_class, name, dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        reraise_out_of_memory(error)
        raise unknown_encoder_error(name, side, error) from error
    return encoder_from_model(model, side, pad_id, sorted(info["missing_keys"]))


def encoder_from_config(config, side: str, pad_id: int | None) -> nn.Module:
    """Build the encoder that a configuration describes, with random weights in float32.

    Args:
        config: A configuration of transformers, of a type in `families.SUPPORTED`.
        side: "image" or "text".
        pad_id: The tokenizer's padding token, for SigLIP.

    Raises:
        InputError: If the type is not supported for this side.
    """
    loader_class = getattr(transformers, find_family(config, side).loader_class)
    if loader_class is AutoModel:
        model = AutoModel.from_config(config, dtype=torch.float32)
    else:
        model = loader_class(config)
    return encoder_from_model(model, side, pad_id, [])


def encoder_from_model(
    model: nn.Module, side: str, pad_id: int | None, missing_weights: list[str]
) -> nn.Module:
    """Return a model of transformers as an encoder; of a CLIP-style pair, one half.

    The model is changed in place: it gets the attribute `missing_weights`.
    """
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # keys and values of a decoder, for generating text
    if hasattr(model.config, "vision_config"):
        model = ClipEncoder(model, side, pad_id)
    model.missing_weights = missing_weights
    return model


def load_config(name: str, side: str):
    """Read the configuration of an encoder that is not built in.

    Raises:
        InputError: If there is none, or its type is not supported for this side.
    """
    try:
        config = fetch(AutoConfig, name)
    except Exception as error:  # the Hub's client raises a dozen types, which mean the same here
        reraise_out_of_memory(error)
        raise unknown_encoder_error(name, side, error) from error
    find_family(config, side, name)
    return config


def unknown_encoder_error(name: str, side: str, error: Exception) -> InputError:
    """Return the error for an encoder that cannot be loaded, because of `error`."""
    reason = fetch_error_message(name, error)
    if isinstance(error, ImportError):
        return InputError(f"--{side}_encoder {name}: it needs a package more ({reason})")
    return InputError(f"--{side}_encoder {name}: not one of {', '.join(BUILT_IN)}, and no local "
                      f"folder or reachable Hugging Face model ({reason})")
