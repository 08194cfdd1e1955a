"""From an encoder's last layer to one vector, in float32 whatever it computed in."""

import torch
from torch import Tensor, nn

from encoders.families import SUPPORTED


def hidden(output) -> Tensor:
    """The last layer: (B, L, W) tokens, (B, W, h, w) places, or (B, W) where already pooled."""
    return output if isinstance(output, Tensor) else output.last_hidden_state


def pool(encoder: nn.Module, output, pooling: str, mask: Tensor | None = None) -> Tensor:
    """Features (B, W), float32.

    Args:
        output: of `encoder`.
        pooling: one of its family, not "auto".
        mask: (B, L), 1 on real tokens; "tokens" and "last" need it.
    """
    states, family = hidden(output).float(), SUPPORTED[encoder.config.model_type]
    if pooling == "own":
        return family.own(encoder, states)
    if states.ndim == 4:
        return states.mean(dim=(2, 3))
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
    if pooling == "tokens":
        mask = mask[:, :, None].to(states.dtype)  # (B, L, 1)
        return (states * mask).sum(dim=1) / mask.sum(dim=1)
    return states[:, family.left_out(encoder.config) :].mean(dim=1)
