"""Splits, and the batches made from them.

Joins the records of a split's files (`inputs/split_files.py`, `inputs/formats.py`) to photos and
captions, finds the photos, and joins photo-caption pairs to a `Batch`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.errors import InputError
from common.files import read_json
from common.options import SourceOptions, TrainOptions
from common.processes import gather
from common.ranks import local_rows, world_size
from inputs.arrays import Texts
from inputs.augmentation import train_pixels
from inputs.captions import Captions
from inputs.captions import clean_caption as clean_caption  # is public here
from inputs.kept import cache_folder
from inputs.loader import EpochSampler, make_loader
from inputs.pairs import pair_arrays
from inputs.photos import Photo, eval_pixels, find_photos, load_from
from inputs.records import USUAL, Columns
from inputs.shard_index import (
    ShardPhotos,
    bare_name,
    check_left_out,
    find_in_shards,
    shard_index,
    shared_photos,
)
from inputs.shards import find_shards, is_shards
from inputs.split_files import captions_in_shards, find_split_file

NO_PHOTO = -1
STAND_INS = 20  # pairs tried in place of one with a broken photo: after that the folder is lost


# ------------------------------------------------------------------------------------------- splits


@dataclass
class Split:
    """N_i photos and N_t captions, in the order of the file.

    `images` (N_i) are names as the file writes them, `captions` (N_t) are raw, `image_of_text`
    (N_t,) int64 is each caption's photo. `matches` (N_t, N_i) bool, where known, holds every true
    match, annotated or not.
    """

    source: Path
    images: Sequence[str]
    captions: Sequence[str]
    image_of_text: np.ndarray
    matches: np.ndarray | None = None


def read_split(
    dataset: str, split: str, data_path: Path, json_path: Path | None = None,
    captions_per_image: int | None = None, columns: Columns = USUAL, cache: Path | None = None,
) -> Split:
    """Read the train, val or test split of a dataset.

    Args:
        dataset: flickr, mscoco, flickr8k, shapes or custom.
        captions_per_image: keep only the first so many captions of each photo (Fidelity note 9).
        columns: what the user calls photos and captions in a table.
        cache: folder in which what is read of a large file is kept.

    Raises:
        InputError: the file is missing, cannot be read, is empty, or a record lacks something.
    """
    if captions_in_shards(dataset, split, data_path, json_path):
        return split_of_shards(split, data_path, captions_per_image, columns, cache)
    path = find_split_file(dataset, split, data_path, json_path)
    pairs = pair_arrays(path, dataset, split, captions_per_image, columns, cache)
    matches = read_matches(path, pairs.in_file, len(pairs.images))
    return Split(path, pairs.images, pairs.captions, pairs.image_of_text,
                 None if matches is None else matches[pairs.rows])


def split_of_shards(
    split: str, data_path: Path, captions_per_image: int | None, columns: Columns,
    cache: Path | None,
) -> Split:
    """A split that is all pairs in its tar shards, in the shards' order.

    Raises:
        InputError: of `shard_index`; there is no pair; or in val and test one cannot be used.
    """
    index = shard_index(find_shards(data_path), columns.caption, cache)
    check_left_out(index, data_path, every=split != "train")
    images = ShardPhotos(index, index.pairs, names=True)
    captions, owners = index.captions, index.image_of_text
    if captions_per_image is not None:  # those of a photo follow each other
        kept = np.flatnonzero(np.arange(len(owners)) - np.searchsorted(owners, owners)
                              < captions_per_image)
        captions, owners = Texts.of(captions[row] for row in kept.tolist()), owners[kept]
    return Split(data_path, images, captions, owners)


def read_matches(path: Path, captions: int, images: int) -> np.ndarray | None:
    """The (N_t, N_i) true matches from `<split>_matches.json` beside the split, if it is there.

    The file is `{"matches": [[photo indices of caption 0], ...]}`, in the order of the split.
    """
    path = path.with_name(path.stem + "_matches.json")
    if not path.is_file():
        return None
    content = read_json(path)
    lists = content.get("matches") if isinstance(content, dict) else None
    if not isinstance(lists, list) or len(lists) != captions:
        raise InputError(f"{path} does not list the 'matches' of {captions} captions")
    matches = np.zeros((captions, images), dtype=bool)
    for number, found in enumerate(lists):
        if not isinstance(found, list) or not all(
                type(image) is int and 0 <= image < images for image in found):
            raise InputError(f"{path}: the matches of caption {number} are not a list of numbers "
                             f"from 0 to {images - 1}")
        matches[number, found] = True
    return matches


# ------------------------------------------------------------------------------------------ batches


class Batch(NamedTuple):
    """B training pairs. Where processes share them, each has pixels and captions of its own B / N,
    and, once `with_all_ids` has fetched them, the ids of all B."""

    pixels: Tensor  # (B, 3, R, R) uint8, or (B, 0)
    input_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L) int64, 1 on real tokens
    image_ids: Tensor  # (B,) int64, index of the photo in the split
    text_ids: Tensor  # (B,) int64, index of the caption in the split
    bad_photos: Tensor  # (B,) int64, a photo that this pair stands in for, or NO_PHOTO

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def with_all_ids(self) -> "Batch":
        """The ids of the whole batch, of a batch that is still on the CPU."""
        if world_size() == 1:
            return self
        ids = gather(torch.stack([self.image_ids, self.text_ids, self.bad_photos], dim=1))  # (B, 3)
        image_ids, text_ids, bad_photos = ids.T.contiguous()
        return self._replace(image_ids=image_ids, text_ids=text_ids, bad_photos=bad_photos)


class PairDataset(Dataset):
    """Photo-caption pairs of a split, one for each caption.

    An item is asked for as (caption index, seed); the seed decides its augmentation, and which pair
    stands in for it where its photo cannot be read. `photos` None leaves the pixels empty, (0,),
    for a run that has the features of all photos already.
    """

    def __init__(self, split: Split, photos: Sequence | None, captions: Captions, size: int,
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
                return load_from(self.photos, image_id), text_id, bad
            except InputError:
                if attempt == STAND_INS:
                    raise
                bad = image_id if bad == NO_PHOTO else bad
                text_id = others.randrange(len(self))


class Collator:
    """Joins items of a `PairDataset` to a `Batch`; `captions` say how theirs are padded."""

    def __init__(self, captions: Captions):
        self.captions = captions

    def __call__(self, items: list[tuple[Tensor, Tensor, int, int, int]]) -> Batch:
        pixels, rows, *numbers = zip(*items, strict=True)
        input_ids, mask = self.captions.padded(rows)
        return Batch(torch.stack(pixels), input_ids, mask, *map(torch.tensor, numbers))


# ----------------------------------------------------------------------------- what a command reads


class LoadedSplit(NamedTuple):
    """A split whose photos are found and whose captions are tokenised."""

    split: Split
    photos: Sequence[Photo]  # (N_i,)
    captions: Captions  # (N_t,)


def photos_place(options: SourceOptions, split: str) -> Path:
    """The folder or shards of a split's photos.

    Raises:
        InputError: the path is neither.
    """
    own = {"val": options.val_path, "test": options.test_path}.get(split)
    place = options.data_path if own is None else own
    if not is_shards(place) and not place.is_dir():
        flag = "data_path" if own is None else f"{split}_path"
        raise InputError(f"--{flag} {place} is neither a folder of photos nor tar shards")
    return place


def check_places(
    options: SourceOptions, splits: tuple[str, ...] = ("train", "val", "test")
) -> None:
    """Raise InputError where val or test would be the shards that are trained on, or each other, or
    where a column of photos is named and no split has one."""
    parts: dict[Path, str] = {}
    for split in splits:
        place = photos_place(options, split)
        if captions_in_shards(options.dataset, split, place, options.json_path):
            if place in parts:
                raise InputError(f"{split} would be {place}, as {parts[place]} is: name other "
                                 f"shards, or a folder, with --{split}_path; or a folder that has "
                                 f"a {split}.json with --json_path")
            parts[place] = split
    if len(parts) == len(splits) and options.image_column is not None:
        raise InputError(f"--image_column {options.image_column}: all splits are in shards, which "
                         "have no column of photos; leave it out")


def photos_of(
    images: Sequence[str], source: Path, place: Path, options: SourceOptions, every: bool = True
) -> Sequence[Photo]:
    """The photos that a split, or a file of embeddings, names: in a folder, or in tar shards.

    Args:
        place: of `photos_place`; every: see `find_photos`. An index of shards knows of all photos.

    Raises:
        InputError: of `find_photos`, `find_in_shards` or `shard_index`.
    """
    if isinstance(images, ShardPhotos):
        return ShardPhotos(images.index, images.rows)
    if not is_shards(place):
        return find_photos(images, source, place, options.follow_links, every)
    index = shard_index(find_shards(place), options.caption_column, cache_folder(options.cache))
    return find_in_shards(images, source, index)


def load_split(
    options: TrainOptions, name: str, tokenizer, captions_per_image: int | None = None,
    every_photo: bool = True,
) -> LoadedSplit:
    """Read, check and tokenise the split `name` as the options say.

    Raises:
        InputError: of `photos_place`, `read_split`, `photos_of` or `Captions`.
    """
    place, cache = photos_place(options, name), cache_folder(options.cache)
    split = read_split(options.dataset, name, place, options.json_path, captions_per_image,
                       Columns(options.image_column, options.caption_column), cache)
    photos = photos_of(split.images, split.source, place, options, every_photo)
    captions = Captions(split.captions, tokenizer, options.max_words, options.max_tokens,
                        padded=options.text_pooling == "padded", prefix=options.caption_prefix,
                        cache=cache)
    return LoadedSplit(split, photos, captions)


def load_train_set(options: TrainOptions, tokenizer) -> LoadedSplit:
    """`load_split` for training. Of very many photos a sample is checked, where another pair can
    stand in for one that turns out broken.

    Raises:
        InputError: of `check_places` or `load_split`.
    """
    check_places(options)
    return load_split(options, "train", tokenizer, every_photo=sees_photos_once(options))


def load_eval_set(options: TrainOptions, name: str, tokenizer) -> LoadedSplit:
    """`load_split` for scoring: COCO keeps five captions a photo, unless --all_captions."""
    limit = 5 if options.dataset == "mscoco" and not options.all_captions else None
    return load_split(options, name, tokenizer, limit)


def load_test_set(options: TrainOptions, tokenizer) -> LoadedSplit:
    """`load_eval_set` of the test split, beside a training split that --data_path names."""
    check_places(options, ("train", "test"))
    return load_eval_set(options, "test", tokenizer)


def check_apart(*parts: LoadedSplit) -> None:
    """Raise InputError where a photo is in two of the splits: a score on it would be too good."""
    for number, part in enumerate(parts):
        for other in parts[:number]:
            shared = photos_of_both(part, other)
            if shared and part.split.source != other.split.source:
                raise InputError(f"{len(shared):,} photos of {part.split.source} are in "
                                 f"{other.split.source} too, such as {shared[0]}: split by photo, "
                                 "as python -m scripts.split does")


def photos_of_both(one: LoadedSplit, other: LoadedSplit) -> list[Photo]:
    """Photos that are in two splits, in the order of the one that has fewer.

    Only of those whose bare name is in the smaller one does it ask where they are.
    """
    in_shards = [isinstance(part.photos, ShardPhotos) for part in (one, other)]
    if any(in_shards):
        return shared_photos(one.photos, other.photos) if all(in_shards) else []
    small, large = sorted((one, other), key=lambda part: len(part.photos))
    bare = {bare_name(name) for name in small.split.images}
    perhaps = {large.photos[number] for number, name in enumerate(large.split.images)
               if bare_name(name) in bare}
    return [photo for photo in small.photos if photo in perhaps] if perhaps else []


def sees_photos_once(options: TrainOptions) -> bool:
    """Whether no step could tell a photo's features from those of the first time."""
    return options.freeze == "image" and options.augment == "none"


def make_train_loader(options: TrainOptions, train_set: LoadedSplit, pin: bool) -> DataLoader:
    """Batches of the training split, of each the rows that are this process's; without pixels where
    `sees_photos_once`.

    Args:
        pin: give pinned memory, from which a GPU copies while it computes.
    """
    photos = None if sees_photos_once(options) else train_set.photos
    pairs = PairDataset(train_set.split, photos, train_set.captions, options.image_res,
                        augment=options.augment == "published")
    own = local_rows(options.batch_size_train)
    sampler = EpochSampler(len(pairs), options.batch_size_train, options.seed, own)
    pixels = 0 if photos is None else 3 * options.image_res**2 * (own.stop - own.start)
    return make_loader(pairs, options.workers, pin, pixels, batch_sampler=sampler,
                       collate_fn=Collator(train_set.captions))
