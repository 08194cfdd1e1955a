"""Pooling: from an encoder's last hidden state to one feature vector for each photo or caption."""

import torch
from torch import Tensor, nn

from encoders.families import SUPPORTED


def last_hidden_state(output) -> Tensor:
    """Return the last hidden state in an encoder's output.

    Args:
        output: What an encoder returns: a tensor, or an output object of transformers.

    Returns:
        (B, L, W) token states, a (B, W, h, w) feature map, or (B, W) from an encoder that pools
        by itself.
    """
    return output if isinstance(output, Tensor) else output.last_hidden_state


def pool(encoder: nn.Module, output, pooling: str, mask: Tensor | None = None) -> Tensor:
    """Pool an encoder's output to one feature vector for each photo or caption.

    A feature map is averaged over its positions unless `pooling` is "own". For token states:

    ========  ===================================================================================
    "mean"    mean over the tokens of a photo, without those that its family excludes
    "tokens"  mean over the real tokens of a caption
    "padded"  mean over all tokens of a caption, padding included
    "cls"     the first token
    "last"    the last real token of a caption
    "own"     the pooling layers that belong to the model itself
    ========  ===================================================================================

    Args:
        encoder: The model that `output` is from; its type is one of `families.SUPPORTED`.
        output: What the encoder returned.
        pooling: A pooling of the encoder's family, see `families.choose_pooling`.
        mask: (B, L), 1 on real tokens; needed by "tokens" and "last".

    Returns:
        (B, W) float32, whatever precision the encoder computes in.
    """
    states = last_hidden_state(output).float()
    family = SUPPORTED[encoder.config.model_type]
    if pooling == "own":
        return family.own_pooling(encoder, states)
    if states.ndim == 4:
        return states.mean(dim=(2, 3))
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        rows = torch.arange(len(states), device=states.device)
        last_position = mask.sum(dim=1) - 1  # (B,), padding stands on the right
        return states[rows, last_position]
    if pooling == "tokens":
        mask = mask[:, :, None].to(states.dtype)  # (B, L, 1)
        return (states * mask).sum(dim=1) / mask.sum(dim=1)
    return states[:, family.excluded_tokens(encoder.config) :].mean(dim=1)
