"""Pretrained pairs of an image and a text encoder, and the two halves that they are split into.

A `DualEncoder` has an encoder for each side. Where both come from a pretrained pair, such as a
CLIP, each is a `PairHalf`: the pair's own model without the parts of the other side. `PAIRS` says
for each type of pair where its parts are.
"""

import copy
import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Half(NamedTuple):
    """Where the parts of one side are in a pair of one type.

    Attributes:
        tower: Name of the model's attribute that holds the transformer or network.
        pooled: What of the tower's output is pooled: "pooler_output"; "first" or "last", that
            position of the last hidden state; or "all" of it.
        head: Name of the attribute that maps the pooled states to the features; "" if they are the
            features.
        fixed_length: Whether the pair was trained without a mask, on captions that are all padded
            to the number of positions.
    """

    tower: str
    pooled: str
    head: str
    fixed_length: bool = False


class Pair(NamedTuple):
    """The two sides of the pairs of one type."""

    image: Half
    text: Half


CLIP = Pair(Half("vision_model", "pooler_output", "visual_projection"),
            Half("text_model", "pooler_output", "text_projection"))
# Of each model class of transformers, by its name.
PAIRS = {
    "CLIPModel": CLIP,
    "MetaClip2Model": CLIP,
    "AltCLIPModel": CLIP,
    "ChineseCLIPModel": CLIP._replace(text=Half("text_model", "first", "text_projection")),
    "AlignModel": Pair(Half("vision_model", "pooler_output", ""),
                       Half("text_model", "first", "text_projection")),
    "SiglipModel": Pair(Half("vision_model", "all", "vision_model.head"),
                        Half("text_model", "last", "text_model.head", fixed_length=True)),
    "BlipModel": CLIP,
    "BlipForImageTextRetrieval": Pair(Half("vision_model", "first", "vision_proj"),
                                      Half("text_encoder", "first", "text_proj")),
}
# Parameters of a model that neither half needs: they are kept as numbers.
SCALES = "logit_scale", "logit_bias", "temperature"
# BLIP's head for pairs of a photo and a caption that are read together goes with its text half, as
# the attention to photos does. Neither is used.
ONLY_IN_TEXT_HALF = "itm_head"


class LogitScale(NamedTuple):
    """The numbers by which a pair turns cosines into logits: scale * cosine + bias.

    Attributes:
        scale: 1 / temperature; None where the pair does not say it.
        bias: That of SigLIP, 0 of the other types.
    """

    scale: float | None = None
    bias: float = 0.0


def logit_scale_of(model: nn.Module) -> LogitScale:
    """Return the logit scale and bias of a whole pair, as its own forward pass applies them."""
    temperature, log_scale, bias = (getattr(model, name, None) for name in
                                    ("temperature", "logit_scale", "logit_bias"))
    parameter = log_scale if temperature is None else temperature  # ALIGN has a temperature
    if parameter is None or parameter.is_meta:
        return LogitScale()
    with torch.no_grad():
        scale = parameter.exp() if temperature is None else 1 / parameter
        return LogitScale(scale.item(), 0.0 if bias is None else bias.item())


class PairHalf(nn.Module):
    """One half of a pretrained pair, with the pooling and projection that it was trained with.

    `forward` and `head` together give the pair's own features. They are apart so that `head`
    computes in float32 where `forward` runs under bfloat16 autocast.

    Args:
        pair: A model of transformers of a class in `PAIRS`. The parts of the other side are removed
            in place.
        side: "image" or "text", the half that is kept.
        pad_id: The tokenizer's padding token; None takes that of the configuration.
        padding_side: "right" or "left", where the tokenizer pads.

    Attributes:
        logit_scale: The pair's `LogitScale`.
    """

    def __init__(self, pair: nn.Module, side: str, pad_id: int | None,
                 padding_side: str = "right"):
        super().__init__()
        self.logit_scale = logit_scale_of(pair)
        self.config = pair.config
        self.side = side
        self.half = getattr(PAIRS[type(pair).__name__], side)
        self.pair = without_other_side(pair, side)
        self.fixed_length = None
        if self.half.fixed_length:
            self.fixed_length = pair.config.text_config.max_position_embeddings
        self.pad_id = pair.config.text_config.pad_token_id if pad_id is None else pad_id
        self.padding_side = padding_side
        if self.half.pooled == "all":
            self.tower.use_head = False  # `head` applies it

    @property
    def tower(self) -> nn.Module:
        """The transformer or network of this side."""
        return getattr(self.pair, self.half.tower)

    def forward(self, **inputs) -> Tensor:
        """Encode photos or captions up to the head.

        Args:
            **inputs: `pixel_values` (B, 3, R, R) on the image side; `input_ids` and
                `attention_mask` (B, L), padded on the right, on the text side.

        Returns:
            (B, W) pooled states, or (B, L, W) token states from the image side of SigLIP.
        """
        if self.fixed_length:
            inputs = {"input_ids": pad_to_length(
                inputs["input_ids"], inputs["attention_mask"], self.fixed_length, self.pad_id,
                self.padding_side)}
        output = self.tower(**inputs)
        match self.half.pooled:
            case "pooler_output":
                return output.pooler_output
            case "first":
                return output.last_hidden_state[:, 0]
            case "last":
                return output.last_hidden_state[:, -1]
        return output.last_hidden_state

    def head(self, states: Tensor) -> Tensor:
        """Apply the pair's own last layers to what `forward` returned: features (B, D)."""
        return self.pair.get_submodule(self.half.head)(states) if self.half.head else states

    def vocabulary_size(self) -> int:
        """Return the number of rows in the table of token embeddings of a text half."""
        return self.config.text_config.vocab_size


def split_pair(pair: nn.Module, tokenizer) -> dict[str, PairHalf]:
    """Split a pretrained pair into its halves, by side, which share its weights.

    Args:
        pair: A model of transformers of a class in `PAIRS`; it is the text half's afterwards.
        tokenizer: The pair's tokenizer.
    """
    twin = copy.copy(pair)
    twin._modules, twin._parameters = dict(pair._modules), dict(pair._parameters)
    pad_id, padding_side = tokenizer.pad_token_id, tokenizer.padding_side
    return {"image": PairHalf(twin, "image", pad_id, padding_side),
            "text": PairHalf(pair, "text", pad_id, padding_side)}


def pad_to_length(
    input_ids: Tensor, attention_mask: Tensor, length: int, pad_id: int, padding_side: str
) -> Tensor:
    """Pad captions to one length, on the side on which the pair's tokenizer pads.

    Args:
        input_ids: (B, L) token ids, padded on the right with any id.
        attention_mask: (B, L), 1 on real tokens.
        length: The length to pad to; captions that are padded to more stay so long.
        pad_id: The token to pad with.
        padding_side: "right" or "left".

    Returns:
        (B, max(L, length)) token ids.
    """
    ids = input_ids.masked_fill(attention_mask == 0, pad_id)
    ids = F.pad(ids, (0, max(0, length - ids.shape[1])), value=pad_id)
    if padding_side == "right":
        return ids
    padding = ids.shape[1] - attention_mask.sum(dim=1, keepdim=True)  # (B, 1) tokens
    position = torch.arange(ids.shape[1], device=ids.device)  # (L,)
    return ids.gather(1, (position - padding) % ids.shape[1])


def without_other_side(pair: nn.Module, side: str) -> nn.Module:
    """Remove, in place, the parts of a pair that its half of one side does not need.

    Args:
        pair: A model of a class in `PAIRS`.
        side: "image" or "text".
    """
    halves = PAIRS[type(pair).__name__]
    names = [halves.text.tower, halves.text.head, ONLY_IN_TEXT_HALF]
    if side == "text":
        names = [halves.image.tower, halves.image.head]
    for name in (*names, *SCALES):
        if name and "." not in name and getattr(pair, name, None) is not None:
            setattr(pair, name, None)
    return pair


# Checkpoints of earlier versions have the parts of both sides in the halves of a CLIP.
EARLIER_NAME = re.compile(r"(image|text)_encoder\.clip\.(.*)")
EARLIER_PARTS = {"image": ("vision_model.", "visual_projection."),
                 "text": ("text_model.", "text_projection.")}


def with_names_of_today(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a `DualEncoder` under the names that the halves of a pair have now.

    Args:
        weights: By name, of this or an earlier version of the program.
    """
    renamed = {}
    for name, value in weights.items():
        match = EARLIER_NAME.fullmatch(str(name))
        if match is None:
            renamed[name] = value
        elif match[2].startswith(EARLIER_PARTS[match[1]]):
            renamed[f"{match[1]}_encoder.pair.{match[2]}"] = value
    return renamed
