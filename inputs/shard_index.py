"""The index of tar shards: where each photo lies, its name, and the captions, in mapped arrays.

It is made once, on all cores, and kept beside the shards in `.fne-index/`, or in the user's cache
where they cannot be written to (`inputs/kept.py`). Where a shard has another size or time of change
it is made anew.
"""

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.pools import map_in_processes
from common.terminal import progress, warn
from inputs.arrays import Lazy, Parts, Texts, rows_of
from inputs.kept import Arrays, kept
from inputs.loader import usable_cores
from inputs.shard_scan import (
    BAD_CAPTION,
    BROKEN,
    CAPTION_KEYS,
    NO_CAPTION,
    PAIR,
    TOO_LARGE,
    TWO_PHOTOS,
    Block,
    scan_shard,
)
from inputs.shards import Shard, TarPhoto

FOLDER = ".fne-index"
LEFT_OUT = {
    NO_CAPTION: "photos without a caption",
    BAD_CAPTION: "photos whose caption is empty or no text",
    TWO_PHOTOS: "photos that are not alone in their sample",
    BROKEN: "photos that are cut short or none",
    TOO_LARGE: "photos that are too large",
}
UNUSABLE = {BROKEN: "is cut short or no photo: fetch it again",
            TOO_LARGE: "has more pixels or bytes than are decoded: make it smaller"}
TWICE = "is in the shards more than once: name it with its shard, as 000012.tar/000001.jpg"


class ShardIndex:
    """N photos and N_t captions of a list of shards, counted through all of them.

    `pairs` (N_i,) are the photos that have captions and can be used, `image_of_text` (N_t,) int64
    is the place there of each caption's photo.
    """

    def __init__(self, shards: Sequence[Shard], arrays: Arrays):
        self.shards, self.labels = shards, labels_of(shards)
        self.offsets, self.sizes, self.states = (arrays[name] for name in
                                                 ("offsets", "sizes", "states"))  # (N,)
        self.members = Texts(*rows_of(arrays, "members"))  # (N,)
        self.captions = Texts(*rows_of(arrays, "captions"))  # (N_t,)
        self.pairs, self.image_of_text = arrays["pairs"], arrays["image_of_text"]
        self.photo_ends = arrays["photo_ends"]  # (shards,)
        self.alone, self.first_alone = arrays["alone"], Texts(*rows_of(arrays, "first_alone"))

    def __len__(self) -> int:
        return len(self.offsets)

    def shard_of(self, number: int) -> int:
        return int(np.searchsorted(self.photo_ends, number, side="right"))

    def photo(self, number: int) -> TarPhoto:
        return TarPhoto(self.shards[self.shard_of(number)], self.members[number],
                        int(self.offsets[number]), int(self.sizes[number]))

    def name(self, number: int) -> str:
        """A photo's name, which no other one has: "000012.tar/000001.jpg"."""
        return f"{self.labels[self.shard_of(number)]}/{self.members[number]}"

    def left_out(self) -> list[str]:
        """What of the shards makes no pair of photo and caption: how many, and the first."""
        told = []
        for state, kind in LEFT_OUT.items():
            numbers = np.flatnonzero(self.states == state)
            if len(numbers):
                told.append(f"{len(numbers):,} {kind}, such as {self.photo(int(numbers[0]))}")
        if alone := np.flatnonzero(self.alone).tolist():
            told.append(f"{int(self.alone.sum()):,} captions without a photo, such as "
                        f"{self.shards[alone[0]].path}: {self.first_alone[alone[0]]}")
        if empty := np.flatnonzero(np.diff(self.photo_ends, prepend=0) == 0).tolist():
            told.append(f"{len(empty):,} shards without a photo, such as "
                        f"{self.shards[empty[0]].path}")
        return told


def check_left_out(index: ShardIndex, pattern: Path, every: bool) -> None:
    """Tell in a line what of shards is left out.

    Args:
        every: no pair may be: a score over the others would be another score.

    Raises:
        InputError: nothing is left, or `every` and something that is wrong with a pair.
    """
    told = "; ".join(index.left_out())
    if not len(index.pairs):
        raise InputError(f"{pattern}: no photo has a caption beside it, .txt or .json (under "
                         f"{', '.join(CAPTION_KEYS[:-1])} or {CAPTION_KEYS[-1]}, or the key that "
                         f"--caption_column names){f': {told}' if told else ''}")
    spoilt = np.flatnonzero(np.isin(index.states, [BAD_CAPTION, BROKEN, TOO_LARGE]))
    if every and len(spoilt):
        number = int(spoilt[0])
        raise InputError(f"{len(spoilt):,} of {len(index):,} samples of {pattern}, which are to be "
                         f"scored, cannot be used; the first is {index.photo(number)}, one of the "
                         f"{LEFT_OUT[int(index.states[number])]}: pack it anew, or take it out")
    if told:
        warn(f"{pattern}: left out {told}")


class ShardPhotos(Lazy):
    """Some photos of an index, as `TarPhoto`; `names` true gives their names instead."""

    def __init__(self, index: ShardIndex, rows: np.ndarray, names: bool = False):
        self.index, self.rows = index, rows
        self.made = index.name if names else index.photo

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> TarPhoto | str:
        return self.made(int(self.rows[index]))

    def of_shard(self, number: int) -> np.ndarray:
        """Those that are in one shard, by their numbers in the index."""
        start = self.index.photo_ends[number - 1] if number else 0
        return self.rows[(self.rows >= start) & (self.rows < self.index.photo_ends[number])]


def labels_of(shards: Sequence[Shard]) -> list[str]:
    """The shards' paths from the last folder on that has all of them."""
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(shard.path)) for shard in shards])
    return [os.path.relpath(os.path.abspath(shard.path), folder) for shard in shards]


# ------------------------------------------------------------------------------------------- making


def shard_index(
    shards: Sequence[Shard], caption_column: str | None = None, cache: Path | None = None
) -> ShardIndex:
    """The index of shards, as it has been kept, or made now.

    Args:
        caption_column: key of the captions in `.json`.
        cache: the folder to keep it in, where `index_folder` has not found a better one.

    Raises:
        InputError: of `scan_shard`.
    """
    def key() -> dict:
        states = [os.stat(shard.path) for shard in shards]
        return {"shards": [[os.path.basename(shard.path), state.st_size, state.st_mtime_ns]
                           for shard, state in zip(shards, states)],
                "places": labels_of(shards), "caption_column": caption_column}

    def fill(parts: Parts) -> None:
        scan = functools.partial(scan_shard, caption_column=caption_column)
        blocks = map_in_processes(scan, shards, min(len(shards), usable_cores()), "indexing shards")
        add_blocks(progress(blocks, "indexing shards", len(shards), unit="shard"), parts)

    return ShardIndex(shards, kept(index_folder(shards, cache), "shard indexes", key, fill))


def index_folder(shards: Sequence[Shard], cache: Path | None) -> Path | None:
    """Where the index of shards is kept: beside the first one where that can be, else in `cache`.
    """
    folder = Path(shards[0].path).parent
    beside = folder / FOLDER
    return beside if os.access(beside if beside.is_dir() else folder, os.W_OK) else cache


def add_blocks(blocks: Iterator[Block], parts: Parts) -> None:
    """Write the arrays of `ShardIndex`, from shards one after another."""
    photos = pairs = 0
    photo_ends, alone = [], []
    for block in blocks:
        usable = block.states == PAIR
        place = np.cumsum(usable) - 1 + pairs
        parts.add("offsets", block.offsets)
        parts.add("sizes", block.sizes.astype(np.uint32))
        parts.add("states", block.states)
        parts.add_texts("members", block.names)
        parts.add("pairs", np.flatnonzero(usable).astype(np.int64) + photos)
        parts.add_texts("captions", block.texts)
        parts.add("image_of_text", place[block.photo_of_text].astype(np.int64))
        parts.add_texts("first_alone", [block.first_alone])
        photos, pairs = photos + len(usable), pairs + int(usable.sum())
        photo_ends.append(photos)
        alone.append(block.captions_alone)
    parts.add("photo_ends", np.array(photo_ends, dtype=np.int64))
    parts.add("alone", np.array(alone, dtype=np.int64))


# ---------------------------------------------------------------------------------------- by name


def look_up(images: Sequence[str], index: ShardIndex) -> tuple[np.ndarray, np.ndarray]:
    """Photos of an index (N,) that are named by their path in the tar, by `ShardIndex.name`, or at
    least by their bare name; and how many each name may be, 0 where there is none."""
    wanted = [Wanted(images), Wanted(images), Wanted(map(bare_name, images))]
    starts, members = [0, *index.photo_ends.tolist()], iter(index.members)
    for label, start, end in zip(index.labels, starts, starts[1:]):
        for number, member in zip(range(start, end), members):
            for names, name in zip(wanted, (member, f"{label}/{member}", bare_name(member))):
                names.see(name, number)
    rows, times = (np.stack(tables) for tables in zip(*(names.result() for names in wanted)))
    kinds = (times > 0).argmax(axis=0)  # the first under which a photo is there
    return rows[kinds, np.arange(len(kinds))], times[kinds, np.arange(len(kinds))]


class Wanted:
    """Names of photos, and which photos of an index have them."""

    def __init__(self, names: Iterable[str]):
        self.number_of: dict[str, int] = {}
        self.numbers = np.fromiter((self.number_of.setdefault(name, len(self.number_of))
                                    for name in names), np.int64)  # (N,), of each name
        self.rows, self.times = np.zeros((2, len(self.number_of)), dtype=np.int64)

    def see(self, name: str, row: int) -> None:
        """Photo `row` of the index has this name."""
        if (number := self.number_of.get(name)) is not None:
            self.rows[number] = row
            self.times[number] += 1

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) a photo of each name, and how many have it."""
        return self.rows[self.numbers], self.times[self.numbers]


def bare_name(name: str) -> str:
    return name.rpartition("/")[2]


def find_in_shards(images: Sequence[str], source: Path, index: ShardIndex) -> ShardPhotos:
    """The photos of an index that a split file `source` names.

    Raises:
        InputError: one is missing, broken, or there more than once under that name.
    """
    rows, times = look_up(images, index)
    faults = {"is in none of the shards": times == 0, TWICE: times > 1}
    faults |= {told: (times == 1) & (index.states[rows] == state)
               for state, told in UNUSABLE.items()}
    bad = np.any(list(faults.values()), axis=0)
    if bad.any():
        first = int(bad.argmax())
        told = next(told for told, places in faults.items() if places[first])
        raise InputError(f"{int(bad.sum()):,} of {len(images):,} photos of {source} cannot be used;"
                         f" the first, {images[first]}, {told}")
    return ShardPhotos(index, rows)


def shared_photos(one: ShardPhotos, other: ShardPhotos) -> list[TarPhoto]:
    """Photos of `one` that are among `other`, however their shards are named."""
    theirs = {os.path.realpath(shard.path): other.of_shard(number)
              for number, shard in enumerate(other.index.shards)}
    shared = []
    for number, shard in enumerate(one.index.shards):
        rows = theirs.get(os.path.realpath(shard.path))
        if rows is not None:
            own = one.of_shard(number)
            same = np.isin(one.index.offsets[own], other.index.offsets[rows])
            shared += map(one.index.photo, own[same].tolist())
    return shared
