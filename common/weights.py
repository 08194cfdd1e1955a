"""Checks of the weights that a file holds, and a digest of a model's weights."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from common.errors import InputError

MOST_NAMED = 8  # weights of a kind in the message of an error


def check_tensors(weights: object, source: Path | str) -> None:
    """Check that `weights` is a dictionary of names to tensors.

    Args:
        weights: What the file holds as its weights.
        source: The file, with which the error message begins.

    Raises:
        InputError: If it is anything else.
    """
    if not isinstance(weights, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise InputError(f"{source} is no whole checkpoint: not all of its weights are tensors")


def check_weights_match(
    source: Path | str, missing: list[str], left_over: list[str], mismatched: list[str]
) -> None:
    """Check that the weights of a file are just those of a model.

    Args:
        source: The file, with which the error message begins.
        missing: Names of the model's weights that the file lacks.
        left_over: Names of the file's weights that the model lacks.
        mismatched: Names of weights whose shapes differ.

    Raises:
        InputError: Unless all three lists are empty; one line names the first of each.
    """
    lists = {"missing": missing, "left over": left_over, "other shape": mismatched}
    differences = [f"{label}: {', '.join(names[:MOST_NAMED])}"
                   + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
                   for label, names in lists.items() if names]
    if differences:
        raise InputError(f"{source} does not fit the encoders; check --image_encoder, "
                         f"--text_encoder and --embed_size. {'; '.join(differences)}")


def weights_digest(weights: dict[str, Tensor]) -> str:
    """Compute a digest of weights, with their names, types and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    add_to_digest(digest, weights.items())
    return digest.hexdigest()


def add_to_digest(digest, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Add the names, types, shapes and bits of weights to `digest` in place.

    Args:
        digest: A hash object of `hashlib`.
        weights: Pairs of name and tensor; their order counts.
    """
    for name, value in weights:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
