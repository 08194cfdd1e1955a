"""The memory bank: keys of recent batches, kept as candidates for negatives.

Usable with nothing else of this repository (paper, section 3.3; the idea of a queue of momentum
keys is MoCo's).
"""

import torch
from torch import Tensor, nn

EMPTY = -100


class MemoryBank(nn.Module):
    """A ring of the last M image and text keys, first in, first out.

    Buffers (saved with `state_dict`, moved with `.to`):
        image_keys, text_keys: (M, D) float, unit rows where filled, zero where empty.
        image_ids: (M,) int64, the photo that a slot shows; `EMPTY` = -100 marks an empty slot.
        text_ids: (M,) int64, the caption's index in the training split; -100 where unknown.
        pointer: () int64, the slot that is written next.

    Args:
        size: M, the number of slots (published: 8,224).
        dim: D, the width of the embeddings.
        dtype: of the keys; bfloat16 takes half the room, and changes a cosine by less than 1e-3.
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
        """Filled slots. Waits for the device, so call it when logging, not in each step."""
        return int((self.image_ids != EMPTY).sum())

    @torch.no_grad()
    def enqueue(
        self,
        image_keys: Tensor,
        text_keys: Tensor,
        image_ids: Tensor,
        text_ids: Tensor | None = None,
    ) -> None:
        """Write a batch over the oldest slots, wrapping at the end.

        A pair whose keys are not finite leaves its slot empty, so that it is never drawn.

        Args:
            image_keys, text_keys: (B, D), the momentum encoders' unit rows, B <= M.
            image_ids: (B,) ids of the photos, not negative.
            text_ids: (B,) indices of the captions, or None where nobody will ask for them.

        Raises:
            ValueError: the shapes disagree with each other or with the bank, or B > M.
        """
        size, dim = self.image_keys.shape
        batch = len(image_ids)
        if image_keys.shape != (batch, dim) or text_keys.shape != (batch, dim):
            raise ValueError(
                f"the bank takes keys of shape ({batch}, {dim}), got {tuple(image_keys.shape)} "
                f"and {tuple(text_keys.shape)}"
            )
        if text_ids is None:
            text_ids = torch.full_like(image_ids, EMPTY)
        if image_ids.shape != (batch,) or text_ids.shape != (batch,):
            raise ValueError(f"the bank takes ids of shape ({batch},), got "
                             f"{tuple(image_ids.shape)} and {tuple(text_ids.shape)}")
        if batch > size:
            raise ValueError(f"a batch of {batch} does not fit a memory bank of {size} slots")
        finite = image_keys.isfinite().all(dim=1) & text_keys.isfinite().all(dim=1)  # (B,)
        image_keys, text_keys = (keys.where(finite[:, None], 0.0)
                                 for keys in (image_keys, text_keys))
        image_ids, text_ids = (ids.where(finite, EMPTY) for ids in (image_ids, text_ids))
        # All of it stays on the device: no slice bound has to be read back from the pointer.
        slots = (self.pointer + torch.arange(batch, device=self.pointer.device)) % size  # (B,)
        self.image_keys.index_copy_(0, slots, image_keys.to(self.image_keys.dtype))
        self.text_keys.index_copy_(0, slots, text_keys.to(self.text_keys.dtype))
        self.image_ids.index_copy_(0, slots, image_ids.to(torch.int64))
        self.text_ids.index_copy_(0, slots, text_ids.to(torch.int64))
        self.pointer.copy_((self.pointer + batch) % size)

    def extra_repr(self) -> str:
        size, dim = self.image_keys.shape
        return f"size={size}, dim={dim}"
