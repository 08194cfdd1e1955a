"""Splits, and the batches made from them. The way from a row of a file to a batch:

    row     what a file says of a photo                  inputs/records.py   each_record
    record  a photo's name, captions of it               inputs/records.py   check_record
    split   N_i photos, N_t captions, who is whose       inputs/sources.py   read_split, a `Split`
    photo   a file, or bytes inside a tar or table       inputs/photos.py    load_photo
    pixels  uint8 (3, R, R), augmented or only fitted    inputs/augmentation.py, inputs/fitting.py
    tokens  (L,) ids of a caption                        inputs/captions.py  Captions
    item    pixels, tokens and numbers of a pair         data.py             PairDataset
    batch   B items, padded and stacked                  data.py             Collator
    order   of the pairs in an epoch, and the workers    inputs/loader.py    make_loader

Each source of pairs (json, tables, tar shards) is a function of the table `inputs.sources.SOURCES`
that gives a `Split`; nothing behind it asks where a split came from.
"""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.errors import InputError
from common.options import EncodingOptions, SourceOptions
from common.processes import require_same
from common.ranks import local_rows, world_size
from common.terminal import warn
from inputs import sources
from inputs.augmentation import train_pixels
from inputs.captions import Captions
from inputs.captions import clean_caption as clean_caption  # is public here
from inputs.fitting import PUBLISHED_FIT, PhotoFit, fitted_pixels
from inputs.loader import EpochSampler, make_loader
from inputs.photos import Photo, PhotoSequence, check_photos, load_from
from inputs.shards import is_shards
from inputs.sources import (
    cache_folder,
    captions_in_arrow,
    captions_in_shards,
    photos_at,
    photos_place,
)
from inputs.splits import Split as Split  # is public here

NO_PHOTO = -1
NO_TOKENS = torch.empty(0, dtype=torch.int64)
NAMES_IN_DIGEST = 100_000
STAND_INS = 20  # pairs tried in place of one with a broken photo: after that the folder is lost


# ------------------------------------------------------------------------------------------- splits


def read_split(
    dataset: str, split: str, data_path: Path, json_path: Path | None = None,
    captions_per_image: int | None = None, **options,
) -> Split:
    """Read the train, val or test split of a dataset, for use from Python. No photo is looked at.

    Args:
        dataset: flickr, mscoco, flickr8k, shapes or custom.
        captions_per_image: keep only the first so many captions of each photo (Fidelity note 9).
        options: further fields of `common.options.SourceOptions`.

    Raises:
        InputError: the file is missing, cannot be read, is empty, or a record lacks something.
    """
    source = SourceOptions(dataset=dataset, data_path=Path(data_path), **options,
                           json_path=None if json_path is None else Path(json_path))
    return sources.read_split(source, split, captions_per_image)


# ------------------------------------------------------------------------------------------ batches


class Batch(NamedTuple):
    """B training pairs.

    Where N processes share a batch, each has the pixels and captions of its local B / N rows, and,
    once `training.exchange.exchange_ids` has fetched them, the ids of all B.
    """

    pixels: Tensor  # (B, 3, R, R) uint8, or (B, 0) where features are known
    input_ids: Tensor  # (B, L) int64, or (B, 0) where features are known
    attention_mask: Tensor  # (B, L) int64, 1 on real tokens, or (B, 0)
    image_ids: Tensor  # (B,) int64, index of the photo in the split
    text_ids: Tensor  # (B,) int64, index of the caption in the split
    bad_photos: Tensor  # (B,) int64, a photo that this pair stands in for, or NO_PHOTO

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class PairDataset(Dataset):
    """Photo-caption pairs of a split, one for each caption.

    An item is asked for as (caption index, seed); the seed decides its augmentation, and which pair
    stands in for it where its photo cannot be read. It is pixels (3, size, size), tokens (L,), the
    photo's index, the caption's index, and the index of the broken photo or `NO_PHOTO`.

    Args:
        photos: (N_i); None leaves the pixels empty, (0,), for a run that has the features of all
            photos already.
        captions: (N_t) tokens; None leaves the tokens empty, (0,), likewise.
        size: R, the side of a photo in pixels.
        augment: crop, flip and change photos as published; else only fit them.
        fit: how photos that are not augmented are fitted into the square.
    """

    def __init__(self, split: Split, photos: Sequence | None, captions: Captions | None, size: int,
                 augment: bool, fit: PhotoFit = PUBLISHED_FIT):
        self.photos, self.captions, self.size = photos, captions, size
        self.image_of_text = split.image_of_text
        self.augment, self.fit = augment, fit

    def __len__(self) -> int:
        return len(self.image_of_text)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor, int, int, int]:
        text_id, seed = item
        if self.photos is None:
            pixels, bad = torch.empty(0, dtype=torch.uint8), NO_PHOTO
        else:
            image, text_id, bad = self.readable_photo(text_id, seed)
            with torch.random.fork_rng(devices=[]):  # the caller's draws stay as they were
                torch.default_generator.manual_seed(seed)
                pixels = (train_pixels(image, self.size) if self.augment
                          else fitted_pixels(image, self.size, self.fit))
        tokens = NO_TOKENS if self.captions is None else self.captions[text_id]
        return pixels, tokens, int(self.image_of_text[text_id]), text_id, bad

    def readable_photo(self, text_id: int, seed: int) -> tuple[Image.Image, int, int]:
        """Return the photo of a pair, or of a pair that `seed` chooses where the photo is broken.

        Returns:
            The photo, the caption's index, and the broken photo's index or `NO_PHOTO`.

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
    """Joins items of a `PairDataset` to a `Batch`.

    Args:
        captions: these say how their tokens are padded; None where the tokens are empty.
    """

    def __init__(self, captions: Captions | None):
        self.captions = captions

    def __call__(self, items: list[tuple[Tensor, Tensor, int, int, int]]) -> Batch:
        pixels, rows, *numbers = zip(*items, strict=True)
        input_ids = mask = NO_TOKENS.expand(len(items), 0)
        if self.captions is not None:
            input_ids, mask = self.captions.padded(rows)
        return Batch(torch.stack(pixels), input_ids, mask, *map(torch.tensor, numbers))


# ----------------------------------------------------------------------------- what a command reads


class LoadedSplit(NamedTuple):
    """A split whose photos are found and whose captions are tokenised.

    `training.features` adds the features that frozen encoders gave of them.
    """

    split: Split
    photos: Sequence[Photo]  # (N_i,)
    captions: Captions  # (N_t,)
    image_features: Tensor | None = None  # (N_i, W), on the CPU
    text_features: Tensor | None = None  # (N_t, W), on the CPU


class LoadingOptions(Protocol):
    """The options that decide how training pairs are loaded.

    `training.options.TrainOptions` has them, beside the `EncodingOptions` that `load_split` reads.
    It is not imported here, since `training` builds on this file.
    """

    image_res: int
    workers: int
    augment: str
    freeze: str | None
    batch_size_train: int
    seed: int


def check_place(options: SourceOptions, split: str) -> Path:
    """Return the folder or shards of a split's photos.

    Raises:
        InputError: the path is neither.
    """
    place = photos_place(options, split)
    in_tables = options.dataset == "hub" or captions_in_arrow(options, split)
    if not in_tables and not is_shards(place) and not place.is_dir():
        flag = "data_path" if place == options.data_path else f"{split}_path"
        raise InputError(f"--{flag} {place} is neither a folder of photos nor tar shards")
    return place


def check_places(
    options: SourceOptions, splits: tuple[str, ...] = ("train", "val", "test")
) -> None:
    """Raise InputError where val or test would be the shards that are trained on, or each other, or
    where a column of photos is named and no split has one."""
    split_in: dict[Path, str] = {}
    for split in splits:
        place = check_place(options, split)
        if captions_in_shards(options, split):
            if place in split_in:
                raise InputError(f"{split} would be {place}, as {split_in[place]} is: name other "
                                 f"shards, or a folder, with --{split}_path; or a folder that has "
                                 f"a {split}.json with --json_path")
            split_in[place] = split
    if len(split_in) == len(splits) and options.image_column is not None:
        raise InputError(f"--image_column {options.image_column}: all splits are in shards, which "
                         "have no column of photos; leave it out")


def photos_of_names(names: Sequence[str], source: Path, options: SourceOptions, split: str
                    ) -> PhotoSequence:
    """Return the photos that a file of embeddings names, after a check of each.

    Args:
        source: the file, for messages.
        split: the split whose folder or shards they are in.

    Raises:
        InputError: of `check_place` or `inputs.photos.check_photos`.
    """
    photos = photos_at(names, check_place(options, split), options)
    check_photos(photos, source)
    return photos


def load_split(
    options: EncodingOptions, name: str, tokenizer, captions_per_image: int | None = None,
    every_photo: bool = True,
) -> LoadedSplit:
    """Read, check and tokenise the split `name` as the options say.

    Args:
        captions_per_image: keep only the first so many captions of each photo.
        every_photo: of very many photos look at all, and not at a sample.

    Raises:
        InputError: of `check_place`, `inputs.sources.read_split`, `inputs.photos.check_photos` or
            `Captions`.
    """
    check_place(options, name)
    split = sources.read_split(options, name, captions_per_image)
    if name == "train" and options.missing_photos == "skip":
        split = without_missing_photos(split)
    check_photos(split.photos, split.source, every_photo)
    captions = Captions(split.captions, tokenizer, options.max_words, options.max_tokens,
                        padded=options.text_pooling == "padded", prefix=options.caption_prefix,
                        cleaning=options.captions, cache=cache_folder(options.cache))
    return LoadedSplit(split, split.photos, captions)


def without_missing_photos(split: Split) -> Split:
    """Return the split without the photos that are not there, and without their captions; a warning
    says how many these are.

    Raises:
        InputError: no photo is there.
    """
    found = [number for number in range(len(split.photos)) if not split.photos.missing(number)]
    count = len(split.photos)
    if len(found) in (0, count):
        return split  # of which `check_photos` says what is missing, if anything
    number_of = np.full(count, -1)
    number_of[found] = np.arange(len(found))
    texts = np.flatnonzero(number_of[split.image_of_text] >= 0)
    first = int(np.flatnonzero(number_of < 0)[0])
    warn(f"{split.source}: {count - len(found):,} of {count:,} photos are not there, and are left "
         f"out (--missing_photos skip), the first: {split.images[first]}")
    return Split(
        split.source, [split.images[number] for number in found],
        [split.captions[number] for number in texts.tolist()],
        number_of[split.image_of_text[texts]],
        None if split.matches is None else split.matches[np.ix_(texts, found)],
        split.photos.subset(found))


def load_train_set(options: LoadingOptions, tokenizer) -> LoadedSplit:
    """Call `load_split` for training. Of very many photos a sample is checked, where another pair
    can stand in for one that turns out broken.

    Raises:
        InputError: of `check_places` or `load_split`.
    """
    check_places(options)
    return load_split(options, "train", tokenizer, every_photo=sees_photos_once(options))


def load_eval_set(options: EncodingOptions, name: str, tokenizer) -> LoadedSplit:
    """Call `load_split` for scoring: COCO keeps five captions a photo, unless --all_captions."""
    limit = 5 if options.dataset == "mscoco" and not options.all_captions else None
    return load_split(options, name, tokenizer, limit)


def load_test_set(options: EncodingOptions, tokenizer) -> LoadedSplit:
    """Call `load_eval_set` for the test split, beside a training split that --data_path names."""
    check_places(options, ("train", "test"))
    return load_eval_set(options, "test", tokenizer)


def load_all_splits(
    options: LoadingOptions, tokenizer
) -> tuple[LoadedSplit, LoadedSplit, LoadedSplit]:
    """Load train, val and test for a run, so that what is wrong with any of them shows at once.

    Raises:
        InputError: a split cannot be used, or splits of the user's own data share a photo.
    """
    train_set = load_train_set(options, tokenizer)
    val_set = load_eval_set(options, "val", tokenizer)
    test_set = load_test_set(options, tokenizer)
    if options.dataset == "custom":
        check_apart(train_set, val_set, test_set)
    return train_set, val_set, test_set


def check_same_data(**splits: LoadedSplit) -> None:
    """Check that all processes of the run have loaded the same splits; every process calls this.

    Args:
        splits: by name.

    Raises:
        InputError: captions, their tokens, their order or the photos' names differ.
    """
    if world_size() > 1:
        require_same({f"the {name} split": split_text(loaded) for name, loaded in splits.items()})


def split_text(loaded: LoadedSplit) -> str:
    """Return the size of a split, and a digest of its tokens and of its photos' names.

    Of very many names `NAMES_IN_DIGEST` are taken, evenly spread.
    """
    split, captions = loaded.split, loaded.captions
    digest = hashlib.sha256()
    for array in captions.ids, captions.ends, split.image_of_text:
        digest.update(np.ascontiguousarray(array))
    count = len(split.images)
    for number in range(0, count, -(-count // NAMES_IN_DIGEST)):
        name = str(split.images[number]).rpartition("/")[2]  # folders may differ
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
    return f"{count:,} photos, {len(captions):,} captions, digest {digest.hexdigest()[:8]}"


def check_apart(*loaded: LoadedSplit) -> None:
    """Raise InputError where a photo is in two of the splits: a score on it would be too good."""
    for number, one in enumerate(loaded):
        for other in loaded[:number]:
            shared = photos_of_both(one, other)
            if shared and one.split.source != other.split.source:
                raise InputError(f"{len(shared):,} photos of {one.split.source} are in "
                                 f"{other.split.source} too, such as {shared[0]}: split by photo, "
                                 "as python -m scripts.split does")


def photos_of_both(one: LoadedSplit, other: LoadedSplit) -> list[Photo]:
    """Return the photos that are in two splits, in the order of the split that has fewer.

    Where a photo is is asked only of those whose `PhotoSequence.clues` are among those of the
    smaller split.
    """
    small, large = sorted((one.photos, other.photos), key=len)
    clues = set(small.clues())
    places = {identity(large[number]) for number, clue in enumerate(large.clues())
              if clue in clues}
    return [photo for photo in small if identity(photo) in places] if places else []


def identity(photo: Photo) -> object:
    """Return what no other photo has: a path, or what a photo inside a tar or a table says."""
    return photo if isinstance(photo, Path) else photo.identity


def sees_photos_once(options: LoadingOptions) -> bool:
    """Return whether no step could tell a photo's features from those of the first time."""
    return options.freeze in ("image", "both") and options.augment == "none"


def sees_captions_once(options: LoadingOptions) -> bool:
    """Return whether no step could tell a caption's features from those of the first time."""
    return options.freeze in ("text", "both")


def make_train_loader(
    options: LoadingOptions, train_set: LoadedSplit, pin: bool, fit: PhotoFit = PUBLISHED_FIT
) -> DataLoader:
    """Return a loader of the training split, which gives of each batch the rows that belong to this
    process; without pixels where `sees_photos_once`, and without tokens where `sees_captions_once`.

    Args:
        pin: give pinned memory, from which a GPU copies while it computes.
        fit: how photos are fitted into a square where they are not augmented.
    """
    photos = None if sees_photos_once(options) else train_set.photos
    captions = None if sees_captions_once(options) else train_set.captions
    pairs = PairDataset(train_set.split, photos, captions, options.image_res,
                        augment=options.augment == "published", fit=fit)
    local = local_rows(options.batch_size_train)
    sampler = EpochSampler(len(pairs), options.batch_size_train, options.seed, local)
    pixels = 0 if photos is None else 3 * options.image_res**2 * (local.stop - local.start)
    # Where a batch is numbers alone, handing it over takes longer than making it.
    workers = 0 if photos is None and captions is None else options.workers
    return make_loader(pairs, workers, pin, pixels, batch_sampler=sampler,
                       collate_fn=Collator(captions))
