"""The memory bank: momentum keys of recent batches, kept as candidates for negatives.

The bank is a first-in-first-out queue as in MoCo (He et al., 2020); the paper describes it in
section 3.3. This file needs nothing else of the repository. How negatives are drawn from the bank
is in `negative_sampling.py`.
"""

import torch
from torch import Tensor, nn

EMPTY = -100  # id of a photo or caption in a slot that holds none


class MemoryBank(nn.Module):
    """Keep the last M image and text keys in a ring buffer, first in, first out.

    All buffers are saved by `state_dict` and moved by `.to`:
        image_keys, text_keys: (M, D) float, unit rows where filled and zero where empty.
        image_ids: (M,) int64, index of the photo in the training split; `EMPTY` = -100 marks a
            slot without keys.
        text_ids: (M,) int64, index of the caption in the training split; -100 where unknown.
        pointer: () int64, the slot that the next pair is written to.

    Args:
        size: M, the number of slots (published setting: 8,224).
        dim: D, the width of the embeddings.
        dtype: type of the keys. bfloat16 halves the memory and changes a cosine by less than 1e-3.

    Raises:
        ValueError: `size` or `dim` is below 1.
    """

    def __init__(self, size: int, dim: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a memory bank needs size and dim above 0, got {size} and {dim}")
        self.register_buffer("image_keys", torch.zeros(size, dim, dtype=dtype))  # (M, D)
        self.register_buffer("text_keys", torch.zeros(size, dim, dtype=dtype))  # (M, D)
        self.register_buffer("image_ids", torch.full((size,), EMPTY))  # (M,)
        self.register_buffer("text_ids", torch.full((size,), EMPTY))  # (M,)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Count the filled slots. This waits for the device: call it when logging, not each step.
        """
        return int((self.image_ids != EMPTY).sum())

    @torch.no_grad()
    def enqueue(
        self, image_keys: Tensor, text_keys: Tensor, image_ids: Tensor,
        text_ids: Tensor | None = None,
    ) -> None:
        """Write a batch of keys over the oldest slots in place, wrapping at the end of the ring.

        A pair with a key that is not finite leaves its slot empty, so that it is never drawn.

        Args:
            image_keys, text_keys: (B, D) unit rows of the momentum encoders, B <= M.
            image_ids: (B,) int64, index of each pair's photo, not negative.
            text_ids: (B,) int64, index of each pair's caption; None where it is not needed.

        Raises:
            ValueError: the shapes disagree with each other or with the bank, or B > M.
        """
        size, dim = self.image_keys.shape
        batch = len(image_ids)
        if text_ids is None:
            text_ids = torch.full_like(image_ids, EMPTY)
        check_shapes("keys", (batch, dim), image_keys, text_keys)
        check_shapes("ids", (batch,), image_ids, text_ids)
        if batch > size:
            raise ValueError(f"a batch of {batch} does not fit a memory bank of {size} slots")
        finite = image_keys.isfinite().all(dim=1) & text_keys.isfinite().all(dim=1)  # (B,)
        # All of it stays on the device: no slice bound has to be read back from the pointer.
        slots = (self.pointer + torch.arange(batch, device=self.pointer.device)) % size  # (B,)
        for ring, keys in (self.image_keys, image_keys), (self.text_keys, text_keys):
            ring.index_copy_(0, slots, keys.where(finite[:, None], 0.0).to(ring.dtype))
        for ring, ids in (self.image_ids, image_ids), (self.text_ids, text_ids):
            ring.index_copy_(0, slots, ids.where(finite, EMPTY))
        self.pointer.copy_((self.pointer + batch) % size)

    def extra_repr(self) -> str:
        size, dim = self.image_keys.shape
        return f"size={size}, dim={dim}"


def check_shapes(what: str, shape: tuple[int, ...], images: Tensor, texts: Tensor) -> None:
    """Raise ValueError unless a batch's image and text tensors both have `shape`."""
    if images.shape != shape or texts.shape != shape:
        raise ValueError(f"the bank takes {what} of shape {shape}, got {tuple(images.shape)} and "
                         f"{tuple(texts.shape)}")
