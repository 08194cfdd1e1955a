"""Splits, and the batches made from them.

Reads the json triples that the method's data comes in (`flickr30k_{train,val,test}.json`, ...) and
Karpathy's single `dataset_*.json`, finds the photos, and joins photo-caption pairs to a `Batch`.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.errors import InputError, one_line
from common.files import is_unicode, read_bytes
from common.options import TrainOptions
from inputs.captions import Captions
from inputs.captions import clean_caption as clean_caption  # is public here
from inputs.loader import EpochSampler, make_loader
from inputs.photos import (
    eval_pixels,
    find_photos,
    leads_out_of_folder,
    load_photo,
    train_pixels,
)

FILE_PREFIX = {"flickr": "flickr30k", "mscoco": "coco", "flickr8k": "flickr8k", "shapes": "shapes"}
KARPATHY_SPLITS = {"train": {"train", "restval"}, "val": {"val"}, "test": {"test"}}
NO_PHOTO = -1
STAND_INS = 20  # pairs tried in place of one with a broken photo: after that the folder is lost


# ------------------------------------------------------------------------------------------- splits


@dataclass
class Split:
    """N_i photos and N_t captions, in the order of the file.

    `images` (N_i) are names as the json writes them, `captions` (N_t) are raw, `image_of_text`
    (N_t,) int64 is each caption's photo. `matches` (N_t, N_i) bool, where known, holds every true
    match, annotated or not.
    """

    source: Path
    images: list[str]
    captions: list[str]
    image_of_text: np.ndarray
    matches: np.ndarray | None = None


def find_json(dataset: str, split: str, data_path: Path, json_path: Path | None) -> Path:
    """The file that holds a split: under `json_path`, or `json/`, or beside the photos.

    Raises:
        InputError: it is in none of these places.
    """
    prefix = FILE_PREFIX[dataset]
    folders = [json_path] if json_path else [Path("json"), data_path, data_path.parent]
    names = f"{prefix}_{split}.json", f"dataset_{prefix}.json"
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    if not data_path.is_dir():
        raise InputError(f"--data_path {data_path} is not a folder")
    raise InputError(f"neither {names[0]} nor {names[1]} is in {', '.join(map(str, folders))}: "
                     "name their folder with --json_path")


def read_json(path: Path):
    """The parsed file; InputError where it cannot be read or is not json."""
    try:
        return json.loads(read_bytes(path).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as json: {one_line(error)}") from error


def flatten_karpathy(content: dict, split: str, path: Path) -> list[dict]:
    """Records {image, caption: [...]} of one split of Karpathy's format."""
    if not isinstance(content.get("images"), list):
        raise InputError(f"{path}: an object without a list 'images' is no Karpathy split file")
    records = []
    for number, image in enumerate(content["images"]):
        try:
            if image["split"] in KARPATHY_SPLITS[split]:
                name = PurePosixPath(image.get("filepath", "")) / image["filename"]
                captions = [sentence["raw"] for sentence in image["sentences"]]
                records.append({"image": str(name), "caption": captions})
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: images[{number}] lacks 'split', 'filename' or the 'raw' of "
                             "its 'sentences'") from error
    return records


def check_record(record, number: int, path: Path) -> tuple[str, list[str]]:
    """A record's photo name and its captions; InputError says which record is not in order."""
    for key in "image", "caption":
        if not isinstance(record, dict) or not record.get(key):
            raise InputError(f"{path}: record {number} (counted from 0) has no '{key}'")
    name, captions = record["image"], record["caption"]
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise InputError(f"{path}: record {number}: 'caption' is neither text nor a list of texts")
    if not all(map(is_unicode, captions)):  # json may hold half a letter, \ud800
        raise InputError(f"{path}: record {number}: 'caption' {captions} is no Unicode text")
    if not isinstance(name, str) or leads_out_of_folder(name):
        raise InputError(f"{path}: record {number}: 'image' {name!r} must be a path inside the "
                         "photo folder")
    return name, captions


def read_split(
    dataset: str, split: str, data_path: Path, json_path: Path | None = None,
    captions_per_image: int | None = None,
) -> Split:
    """Read the train, val or test split of a dataset.

    Args:
        dataset: flickr, mscoco, flickr8k or shapes.
        captions_per_image: keep only the first so many captions of each photo (Fidelity note 9).

    Raises:
        InputError: the file is missing, is not json, is empty, or a record lacks something.
    """
    path = find_json(dataset, split, data_path, json_path)
    content = read_json(path)
    records = flatten_karpathy(content, split, path) if isinstance(content, dict) else content
    if not isinstance(records, list) or not records:
        raise InputError(f"{path} holds no {split} records: expected a list of "
                         '{"image": ..., "caption": ...}')
    number_of, captions, image_of_text, kept, seen = {}, [], [], [], Counter()
    for number, record in enumerate(records):
        name, texts = check_record(record, number, path)
        image = number_of.setdefault(name, len(number_of))
        for text in texts:
            seen[image] += 1
            if captions_per_image is None or seen[image] <= captions_per_image:
                kept.append(len(captions))
            captions.append(text)
            image_of_text.append(image)
    matches = read_matches(path, len(captions), len(number_of))
    return Split(path, list(number_of), [captions[index] for index in kept],
                 np.array(image_of_text, dtype=np.int64)[kept],
                 None if matches is None else matches[kept])


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
    photos: list[Path]  # (N_i,)
    captions: Captions  # (N_t,)


def load_split(
    options: TrainOptions, name: str, tokenizer, captions_per_image: int | None = None
) -> LoadedSplit:
    """Read, check and tokenise the split `name` as the options say.

    Raises:
        InputError: of `read_split`, `find_photos` or `Captions`.
    """
    split = read_split(options.dataset, name, options.data_path, options.json_path,
                       captions_per_image)
    photos = find_photos(split.images, split.source, options.data_path, options.follow_links)
    captions = Captions(split.captions, tokenizer, options.max_words, options.max_tokens,
                        padded=options.text_pooling == "padded", prefix=options.caption_prefix)
    return LoadedSplit(split, photos, captions)


def load_eval_set(options: TrainOptions, name: str, tokenizer) -> LoadedSplit:
    """`load_split` for scoring: COCO keeps five captions a photo, unless --all_captions."""
    limit = 5 if options.dataset == "mscoco" and not options.all_captions else None
    return load_split(options, name, tokenizer, limit)


def sees_photos_once(options: TrainOptions) -> bool:
    """Whether no step could tell a photo's features from those of the first time."""
    return options.freeze == "image" and options.augment == "none"


def make_train_loader(options: TrainOptions, train_set: LoadedSplit, pin: bool) -> DataLoader:
    """Batches of the training split; without pixels where `sees_photos_once`.

    Args:
        pin: give pinned memory, from which a GPU copies while it computes.
    """
    photos = None if sees_photos_once(options) else train_set.photos
    pairs = PairDataset(train_set.split, photos, train_set.captions, options.image_res,
                        augment=options.augment == "published")
    sampler = EpochSampler(len(pairs), options.batch_size_train, options.seed)
    pixels = 0 if photos is None else 3 * options.image_res**2 * options.batch_size_train
    return make_loader(pairs, options.workers, pin, pixels, batch_sampler=sampler,
                       collate_fn=Collator(train_set.captions))
