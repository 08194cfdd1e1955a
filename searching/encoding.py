"""Photos to embeddings, where some photos may be broken."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import InputError, one_line
from inputs.loader import close_workers, make_loader
from inputs.photos import eval_pixels, load_photo, normalize
from model import DualEncoder


class Fault(NamedTuple):
    """Why a photo has no embedding."""

    number: int
    reason: str
    lasting: bool  # the file is to blame, and not who may read it, or the machine


class Encoded(NamedTuple):
    """Some photos: embeddings (n, D) on the CPU, the photos' numbers, and those without any."""

    numbers: list[int]
    embeds: Tensor
    faults: list[Fault]


class PhotoFiles(Dataset):
    """Item i is (i, uint8 (3, size, size)), or a `Fault`."""

    def __init__(self, photos: list[Path], size: int):
        self.photos, self.size = photos, size

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, number: int) -> tuple[int, Tensor] | Fault:
        try:
            return number, eval_pixels(load_photo(self.photos[number]), self.size)
        except InputError as error:
            cause = error.__cause__
            # Pillow's own errors are an OSError as well, without a number.
            passing = isinstance(cause, MemoryError | FileNotFoundError) or (
                isinstance(cause, OSError) and cause.errno is not None)
            return Fault(number, one_line(error), not passing)


def collate(items: list) -> tuple[list[int], Tensor | None, list[Fault]]:
    """Numbers, pixels (n, 3, size, size), or None of no photo, and faults."""
    faults = [item for item in items if isinstance(item, Fault)]
    good = [item for item in items if not isinstance(item, Fault)]
    pixels = torch.stack([pixels for _, pixels in good]) if good else None
    return [number for number, _ in good], pixels, faults


@torch.no_grad()
def encode_files(
    model: DualEncoder, photos: list[Path], workers: int, batch_size: int
) -> Iterator[Encoded]:
    """Embeddings of photo files, batch by batch in their order, as `evaluation.encode_photos` has
    them; a photo that cannot be read ends nothing.

    Args:
        model: with its `preparation`, in evaluation mode, on its device.
        workers: processes that load photos.
    """
    device, prepared = next(model.parameters()).device, model.preparation
    loader = make_loader(
        PhotoFiles(photos, prepared.image_res), workers, device.type == "cuda",
        3 * prepared.image_res**2 * batch_size, batch_size=batch_size, collate_fn=collate)
    try:
        for numbers, pixels, faults in loader:
            embeds = torch.empty(0, model.embed_size)
            if pixels is not None:
                embeds = model.encode_image(normalize(pixels.to(device, non_blocking=True),
                                                      prepared.mean, prepared.std)).float().cpu()
            finite = embeds.isfinite().all(dim=1)
            kept = []
            for number, good in zip(numbers, finite.tolist()):
                if good:
                    kept.append(number)
                else:
                    faults.append(Fault(number, f"photo {photos[number]}: its embedding is NaN or "
                                        "infinite", True))
            yield Encoded(kept, embeds[finite], faults)
    finally:
        close_workers(loader)
