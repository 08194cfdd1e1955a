"""Embeddings of photo files, some of which may be broken."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import InputError, one_line
from inputs.fitting import PhotoFit, fitted_pixels
from inputs.loader import close_workers, make_loader
from inputs.photos import load_photo, normalize
from model import DualEncoder
from searching.exact import are_unit_rows

NO_EMBEDDINGS = ("gives embeddings that are zero, NaN or infinite: it is damaged, or was not "
                 "trained well")


class Fault(NamedTuple):
    """Why a photo has no embedding.

    Attributes:
        index: the photo's place in the list of photos.
        reason: the error, in one line.
        permanent: whether the file itself is broken; otherwise another user, another day or a
            machine with more memory may be able to read it.
    """

    index: int
    reason: str
    permanent: bool


class EncodedBatch(NamedTuple):
    """The embeddings of a batch of photos, and the photos of the batch that have none.

    Attributes:
        indices: the encoded photos' places in the list of photos.
        embeds: (n, D) unit rows of those photos, float32, on the CPU.
        faults: the photos without an embedding.
    """

    indices: list[int]
    embeds: Tensor
    faults: list[Fault]


class PhotoFiles(Dataset):
    """Photo files as a data set: item i is (i, pixels), or a `Fault` where the photo is broken.

    Args:
        photos: the files.
        size: R; pixels are uint8 (3, R, R).
        fit: how photos are fitted into the square.
    """

    def __init__(self, photos: list[Path], size: int, fit: PhotoFit):
        self.photos, self.size, self.fit = photos, size, fit

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[int, Tensor] | Fault:
        try:
            photo = load_photo(self.photos[index], upright=True)
            return index, fitted_pixels(photo, self.size, self.fit)
        except InputError as error:
            return Fault(index, one_line(error), not is_temporary(error.__cause__))


def is_temporary(cause: BaseException | None) -> bool:
    """Return whether a photo was not read because of the machine, and not of the photo itself."""
    if isinstance(cause, MemoryError | FileNotFoundError):
        return True
    # Errors that Pillow raises itself are OSErrors as well, but without a number.
    return isinstance(cause, OSError) and cause.errno is not None


def collate(items: list) -> tuple[list[int], Tensor | None, list[Fault]]:
    """Return the indices, pixels (n, 3, R, R) and faults of a batch; no pixels where n is 0."""
    faults = [item for item in items if isinstance(item, Fault)]
    decoded = [item for item in items if not isinstance(item, Fault)]
    pixels = torch.stack([pixels for _, pixels in decoded]) if decoded else None
    return [index for index, _ in decoded], pixels, faults


@torch.no_grad()
def encode_files(
    model: DualEncoder, photos: list[Path], workers: int, batch_size: int
) -> Iterator[EncodedBatch]:
    """Yield the embeddings of photo files, batch by batch, in the order of the files.

    The embeddings are those of `evaluation.encode_photos`. A photo that cannot be read, or whose
    embedding is no unit row, becomes a fault of its batch and ends nothing.

    Args:
        model: a dual encoder with its `preparation`, in evaluation mode, on its device.
        photos: the files.
        workers: processes that load photos.
        batch_size: photos encoded at a time.

    Raises:
        InputError: no photo of a batch of several has an embedding, so the model is damaged.
    """
    device, preparation = next(model.parameters()).device, model.preparation
    batch_bytes = 3 * preparation.image_res**2 * batch_size
    loader = make_loader(
        PhotoFiles(photos, preparation.image_res, preparation.photo_fit), workers,
        device.type == "cuda", batch_bytes, batch_size=batch_size, collate_fn=collate)
    try:
        for indices, pixels, faults in loader:
            embeds = torch.empty(0, model.embed_size)
            if pixels is not None:
                pixels = normalize(pixels.to(device, non_blocking=True), preparation.mean,
                                   preparation.std)
                embeds = model.encode_image(pixels).float().cpu()  # (n, D)
            are_unit = are_unit_rows(embeds)  # (n,)
            if len(indices) > 1 and not are_unit.any():
                raise InputError(f"the model {NO_EMBEDDINGS}, of photo {photos[indices[0]]} and "
                                 "those after it, say")
            encoded = []
            for index, is_unit in zip(indices, are_unit.tolist()):
                if is_unit:
                    encoded.append(index)
                else:
                    reason = f"photo {photos[index]}: its embedding is zero, NaN or infinite"
                    faults.append(Fault(index, reason, True))
            yield EncodedBatch(encoded, embeds[are_unit], faults)
    finally:
        close_workers(loader)
