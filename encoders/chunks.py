"""Gradient caching: a batch that is encoded in chunks, so that the memory holds any batch size."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(encode: Callable[..., Tensor], chunk: int, *inputs: Tensor) -> Tensor:
    """Encode a batch in chunks of rows, keeping no activations for the backward pass.

    This is gradient caching (Gao et al., 2021). The first pass gives all features; the loss of the
    whole batch and its gradient with respect to them follow. The backward pass then encodes one
    chunk after the other again, the last one first, and frees its activations before the next. The
    random state of a chunk is replayed, so dropout takes the same masks in both passes.

    A weight's gradient is summed over all chunks before it arrives. So it arrives once in a step,
    with the chunk that goes back last, and several processes exchange it once.

    Args:
        encode: Function of tensors (n, ...) that returns features (n, W), row by row.
        chunk: The number of rows of a chunk; the last one may have fewer. 0 means all rows.
        *inputs: Tensors (B, ...) whose rows belong together.

    Returns:
        (B, W) features.
    """
    if chunk == 0 or len(inputs[0]) <= chunk:
        return encode(*inputs)
    chunks = zip(*(tensor.split(chunk) for tensor in inputs))
    return torch.cat([checkpoint(encode, *rows, use_reentrant=False) for rows in chunks])
