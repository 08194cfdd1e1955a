"""Weights as files hand them over: whether they are any, how those of a model are missed, and how
they are told from others."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from common.errors import InputError


def check_tensors(weights: object, source: Path | str) -> None:
    """Raise InputError unless `weights` is a dictionary of names to tensors."""
    if not isinstance(weights, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise InputError(f"{source} is no whole checkpoint: not all of its weights are tensors")


def fault(source: Path | str, missing: list, left_over: list, mismatched: list) -> None:
    """Raise InputError in one line unless all three lists are empty."""
    parts = [f"{label}: {', '.join(names)}" for label, names in (
        ("missing", missing), ("left over", left_over), ("other shape", mismatched)) if names]
    if parts:
        raise InputError(f"{source} does not fit the encoders; check --image_encoder, "
                         f"--text_encoder and --embed_size. {'; '.join(parts)}")


def add_to_digest(digest, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Add names, types, shapes and bits of weights to a hash of `hashlib`."""
    for name, value in weights:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
