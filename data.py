"""Splits, captions, photos and batches.

Reads the json triples that the method's data comes in (`flickr30k_{train,val,test}.json`, ...) and
Karpathy's single `dataset_*.json`, checks that the photos are there, and makes batches of uint8
photos and token ids. Captions are tokenised once. What is random about a training example follows
from (seed, epoch, position) alone, so neither the number of workers nor a restart changes it.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from errors import InputError
from photos import eval_pixels, load_photo, train_pixels

FILE_PREFIX = {"flickr": "flickr30k", "mscoco": "coco", "flickr8k": "flickr8k", "shapes": "shapes"}
KARPATHY_SPLITS = {"train": {"train", "restval"}, "val": {"val"}, "test": {"test"}}
# Caption cleaning: these go, and those become spaces.
CLEANING = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")


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
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as json: {error}") from error


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
    if not isinstance(name, str) or name.startswith("/") or ".." in PurePosixPath(name).parts:
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
                isinstance(image, int) and 0 <= image < images for image in found):
            raise InputError(f"{path}: the matches of caption {number} are not a list of numbers "
                             f"from 0 to {images - 1}")
        matches[number, found] = True
    return matches


def clean_caption(text: str, max_words: int = 30) -> str:
    """Lower case, punctuation out, hyphens and slashes to spaces, the first `max_words` words.

    Exactly the published cleaning, quirks included: a lone tab or line break inside stays.
    """
    text = text.lower().translate(CLEANING).replace("<person>", "person")
    words = re.sub(r"\s\s+", " ", text).removesuffix("\n").strip(" ").split(" ")
    return " ".join(words[:max_words])


def token_ids(texts: list[str], tokenizer, max_tokens: int) -> list[list[int]]:
    """Token ids of texts, special ones included, at most `max_tokens` each."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
    core.enable_truncation(max_tokens)  # asked itself, in half the time of its wrapper
    return [encoding.ids for encoding in core.encode_batch_fast(texts)]


class Captions:
    """Token ids of many captions in one array, which worker processes can share without copying.

    `captions[i]` is an int64 tensor (L_i,). Made by cleaning, then tokenising to `max_tokens`.
    """

    def __init__(self, texts: list[str], tokenizer, max_words: int, max_tokens: int):
        rows: list[list[int]] = []
        chunk = 4096
        for start in tqdm(range(0, len(texts), chunk), "tokenising", leave=False, disable=None):
            cleaned = [clean_caption(text, max_words) for text in texts[start : start + chunk]]
            rows += token_ids(cleaned, tokenizer, max_tokens)
        self.lengths = np.array([len(row) for row in rows])  # (N_t,)
        self.ends = self.lengths.cumsum()
        self.ids = np.concatenate([np.array(row, dtype=np.int32) for row in rows])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Tensor:
        end = self.ends[index]
        return torch.from_numpy(self.ids[end - self.lengths[index] : end].astype(np.int64))


def pad_captions(rows: list[Tensor], pad_id: int, length: int | None) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) and attention mask (B, L), padded to `length` or to the longest row."""
    length = length or max(map(len, rows))
    input_ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(input_ids)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return input_ids, mask


class Batch(NamedTuple):
    """B training pairs."""

    pixels: Tensor  # (B, 3, R, R) uint8, or (B, 0)
    input_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L) int64, 1 on real tokens
    image_ids: Tensor  # (B,) int64, index of the photo in the split
    text_ids: Tensor  # (B,) int64, index of the caption in the split

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class PairDataset(Dataset):
    """Photo-caption pairs of a split, one for each caption.

    An item is asked for as (caption index, seed); the seed decides its augmentation. `photos` None
    leaves the pixels empty, (0,), for a run that has the features of all photos already.
    """

    def __init__(self, split: Split, photos: list[Path] | None, captions: Captions, size: int,
                 augment: bool):
        self.photos, self.captions, self.size = photos, captions, size
        self.image_of_text = split.image_of_text
        self.pixels = train_pixels if augment else eval_pixels

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor, int, int]:
        text_id, seed = item
        image_id = int(self.image_of_text[text_id])
        if self.photos is None:
            return torch.empty(0, dtype=torch.uint8), self.captions[text_id], image_id, text_id
        image = load_photo(self.photos[image_id])
        with torch.random.fork_rng(devices=[]):  # the caller's dropout and draws stay as they were
            torch.default_generator.manual_seed(seed)
            pixels = self.pixels(image, self.size)
        return pixels, self.captions[text_id], image_id, text_id


class Collator:
    """Joins items of a `PairDataset` to a `Batch`; captions padded to `length`, or the longest."""

    def __init__(self, pad_id: int, length: int | None = None):
        self.pad_id, self.length = pad_id, length

    def __call__(self, items: list[tuple[Tensor, Tensor, int, int]]) -> Batch:
        pixels, rows, image_ids, text_ids = zip(*items, strict=True)
        input_ids, mask = pad_captions(rows, self.pad_id, self.length)
        return Batch(torch.stack(pixels), input_ids, mask, torch.tensor(image_ids),
                     torch.tensor(text_ids))


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
                      persistent_workers=workers > 0, **order)
