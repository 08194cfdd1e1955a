"""Batches of uint8 photos and token ids, for training.

What is random about a training example follows from (seed, epoch, position) alone, so neither the
number of workers nor a restart changes it.
"""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data import Captions, Split, pad_captions
from errors import InputError
from photos import eval_pixels, load_photo, train_pixels

NO_PHOTO = -1
GRACE = 20  # seconds that a worker goes on after SIGTERM
STAND_INS = 20  # pairs tried in place of one with a broken photo: after that the folder is lost


class Batch(NamedTuple):
    """B training pairs."""

    pixels: Tensor  # (B, 3, R, R) uint8, or (B, 0)
    input_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L) int64, 1 on real tokens
    image_ids: Tensor  # (B,) int64, index of the photo in the split
    text_ids: Tensor  # (B,) int64, index of the caption in the split
    bad_photos: Tensor  # (B,) int64, a photo that this pair stands in for, or NO_PHOTO

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class PairDataset(Dataset):
    """Photo-caption pairs of a split, one for each caption.

    An item is asked for as (caption index, seed); the seed decides its augmentation, and which pair
    stands in for it where its photo cannot be read. `photos` None leaves the pixels empty, (0,),
    for a run that has the features of all photos already.
    """

    def __init__(self, split: Split, photos: list[Path] | None, captions: Captions, size: int,
                 augment: bool):
        self.photos, self.captions, self.size = photos, captions, size
        self.image_of_text = split.image_of_text
        self.pixels = train_pixels if augment else eval_pixels

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor, int, int, int]:
        text_id, seed = item
        if self.photos is None:
            image_id, pixels = int(self.image_of_text[text_id]), torch.empty(0, dtype=torch.uint8)
            return pixels, self.captions[text_id], image_id, text_id, NO_PHOTO
        image, text_id, bad = self.readable_photo(text_id, seed)
        with torch.random.fork_rng(devices=[]):  # the caller's dropout and draws stay as they were
            torch.default_generator.manual_seed(seed)
            pixels = self.pixels(image, self.size)
        return pixels, self.captions[text_id], int(self.image_of_text[text_id]), text_id, bad

    def readable_photo(self, text_id: int, seed: int) -> tuple[Image.Image, int, int]:
        """The photo of a pair, or of one that `seed` chooses in its place where it is broken.

        Returns:
            The photo, the caption's index, and the broken photo's index or NO_PHOTO.

        Raises:
            InputError: none of `STAND_INS` others can be read either.
        """
        bad, others = NO_PHOTO, random.Random(seed)
        for attempt in range(STAND_INS + 1):
            image_id = int(self.image_of_text[text_id])
            try:
                return load_photo(self.photos[image_id]), text_id, bad
            except InputError:
                if attempt == STAND_INS:
                    raise
                bad = image_id if bad == NO_PHOTO else bad
                text_id = others.randrange(len(self))


class Collator:
    """Joins items of a `PairDataset` to a `Batch`; captions padded to `length`, or the longest."""

    def __init__(self, pad_id: int, length: int | None = None):
        self.pad_id, self.length = pad_id, length

    def __call__(self, items: list[tuple[Tensor, Tensor, int, int, int]]) -> Batch:
        pixels, rows, *numbers = zip(*items, strict=True)
        input_ids, mask = pad_captions(rows, self.pad_id, self.length)
        return Batch(torch.stack(pixels), input_ids, mask, *map(torch.tensor, numbers))


class EpochSampler(Sampler):
    """Batches of (caption index, augmentation seed), a new order each epoch; the rest is dropped.

    Set `epoch` and `start` (the first batch to give) before iterating: order and seeds follow
    from (seed, epoch) alone, so an interrupted epoch goes on exactly where it stopped.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        if size < batch_size:
            raise InputError(f"--batch_size_train {batch_size} is more than the {size} pairs of "
                             "the training split")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.size, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.size,), generator=generator).tolist()
        pairs = list(zip(order, seeds, strict=True))
        for batch in range(self.start, len(self)):
            yield pairs[batch * self.batch_size : (batch + 1) * self.batch_size]


def make_loader(dataset: Dataset, workers: int, pin: bool, **order) -> DataLoader:
    """A DataLoader whose workers live on between epochs; `order` is its batching.

    More workers than the machine has cores would only get in each other's way, so it takes fewer.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(workers, cores)
    # Its own generator: the loader must not take a number from the stream that dropout uses.
    return DataLoader(dataset, num_workers=workers, pin_memory=pin, generator=torch.Generator(),
                      persistent_workers=workers > 0, worker_init_fn=outlive_signals, **order)


def outlive_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the workers as well, which the main process needs to
    finish its step. It sends SIGTERM itself to one that hangs, so that is obeyed after a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))


def close_workers(loader: DataLoader) -> None:
    """End a loader's workers in order. The garbage collector takes their queues away first, and
    then waits ten seconds for each."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()
        loader._iterator = None
