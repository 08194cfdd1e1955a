"""Splits and captions.

Reads the json triples that the method's data comes in (`flickr30k_{train,val,test}.json`, ...) and
Karpathy's single `dataset_*.json`, and cleans and tokenises captions, once.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from errors import InputError, one_line
from terminal import progress

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
                type(image) is int and 0 <= image < images for image in found):
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
        for start in progress(range(0, len(texts), chunk), "tokenising"):
            cleaned = [clean_caption(text, max_words) for text in texts[start : start + chunk]]
            rows += token_ids(cleaned, tokenizer, max_tokens)
        if not all(rows):
            empty = rows.index([])
            raise InputError(f"caption {empty} (counted from 0), {texts[empty]!r}, has no tokens: "
                             "take it out of the split")
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
