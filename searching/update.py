"""An index brought up to date: only new and changed photos are encoded, and what is done is kept.

While photos are encoded the index is written again and again, and once more when a signal or an
error ends it, so that the same command goes on where it was.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError, one_line
from common.locks import wait_for_lock
from common.terminal import print_note, progress, warn
from searching.encoding import Encoded
from searching.index import Index, Marks, Table, read_index, table_of, write_index
from searching.scan import Stat
from training.signals import stop_on_signals

SAVE_EVERY = 30  # seconds
SHARE = 0.05  # of the time that writing the index may take
Encode = Callable[[list[Path]], Iterator[Encoded]]


def up_to_date(
    place: Path, marks: Marks, found: dict[str, Stat], dim: int, encode: Encode
) -> Index:
    """The index of the photos `found` in a folder, read from its file or made.

    Args:
        encode: gives the embeddings of photo files, (n, `dim`) in each batch.

    Raises:
        InputError: the file is something else, or cannot be written.
        Stopped: by a signal; what is encoded is written.
    """
    index = read_index(place, marks, dim)
    if index is not None and is_true(index, found):
        return index
    lock = wait_for_lock(
        place.with_name(f"{place.name[:200]}.lock"),
        lambda holder: print_note(f"{holder} is at work on {place}: waiting for its end"))
    with lock or contextlib.nullcontext():
        index = read_index(place, marks, dim)  # whoever had the lock may have done it all
        if index is not None and is_true(index, found):
            return index
        work = Work(place, marks, found, index, dim)
        if not work.todo and index is not None and not writable(place):
            return work.remaining(index)
        check_writable(place)
        work.run(encode)
        index = read_index(place, marks, dim)
    if index is None:
        raise InputError(f"--index {place} cannot be read back: name another place")
    return index


def is_true(index: Index, found: dict[str, Stat]) -> bool:
    """Whether an index holds the photos that were found, which are in order, and no others."""
    broken = dict(index.broken.rows())
    if any(found.get(name) != stat for name, stat in broken.items()):
        return False
    names = [name for name in found if name not in broken]
    stats = np.fromiter(itertools.chain.from_iterable(map(found.__getitem__, names)), np.int64)
    # Whole lists and arrays: of a million photos, a second less than one by one.
    return names == index.photos.names and np.array_equal(stats, index.photos.stats.reshape(-1))


class Work:
    """The photos that an index lacks, and what is known of the others."""

    def __init__(
        self, place: Path, marks: Marks, found: dict[str, Stat], index: Index | None, dim: int
    ):
        self.place, self.marks, self.found = place, marks, found
        self.parts, self.row_of, self.broken = [torch.empty(0, dim)], {}, {}
        if index is not None:
            self.parts = [index.embeds]
            self.row_of = {name: row for row, (name, stat) in enumerate(index.photos.rows())
                           if found.get(name) == stat}
            self.broken = {name: stat for name, stat in index.broken.rows()
                           if found.get(name) == stat}
        self.rows = len(self.parts[0])
        self.todo = [name for name in found
                     if name not in self.row_of and name not in self.broken]
        self.done = 0
        self.unsaved = True

    def remaining(self, index: Index) -> Index:
        """An index without the photos that have vanished, which nothing is written of."""
        rows = list(self.row_of.values())
        photos = Table(list(self.row_of), index.photos.stats[rows])
        return Index(photos, index.embeds[rows], table_of(self.broken))

    def run(self, encode: Encode) -> None:
        """Encode what is to be done, and write the index."""
        begun, folder = time.monotonic(), self.marks.folder
        try:
            with (stop_on_signals(self.stopped) as signals,
                  contextlib.closing(encode([folder / name for name in self.todo])) as batches,
                  progress(None, "encoding photos", len(self.todo), unit="photo") as bar):
                save_at = time.monotonic() + SAVE_EVERY
                for batch in batches:
                    self.add(batch)
                    bar.update(len(batch.numbers) + len(batch.faults))
                    signals.stop_if_asked()
                    if time.monotonic() > save_at:
                        before = time.monotonic()
                        self.save()
                        took = time.monotonic() - before
                        save_at = before + took + max(SAVE_EVERY, took / SHARE)
        finally:
            if self.unsaved:
                self.save()
        seconds = time.monotonic() - begun
        if self.todo:
            print_note(f"encoded {self.done:,} photos in {seconds:,.1f} s, "
                       f"{self.done / max(seconds, 1e-9):,.1f} a second")

    def add(self, batch: Encoded) -> None:
        """Take a batch in; a photo without an embedding is named."""
        for number in batch.numbers:
            self.row_of[self.todo[number]] = self.rows
            self.rows += 1
        self.parts.append(batch.embeds)
        self.done += len(batch.numbers)
        self.unsaved = True
        if batch.faults and not self.marks.folder.is_dir():
            raise InputError(f"--photos {self.marks.folder} is gone: bring it back, and the same "
                             "command goes on")
        for number, reason, lasting in batch.faults:
            warn(f"{reason}; it is passed over" + (" until it changes" if lasting else ""))
            if lasting:
                self.broken[self.todo[number]] = self.found[self.todo[number]]

    def save(self) -> None:
        self.unsaved = False  # also where it fails: it is not tried a second time
        photos = {name: self.found[name] for name in self.row_of}
        self.parts = [self.parts[0], *joined(self.parts[1:])]
        write_index(self.place, self.marks, photos, self.parts, self.row_of, self.broken)

    def stopped(self) -> str:
        """Write what is done, and say how to go on."""
        if self.unsaved:
            self.save()
        return (f"{len(self.row_of):,} of {len(self.found):,} photos are in {self.place}: the same "
                "command goes on from there")


def joined(parts: list[Tensor]) -> list[Tensor]:
    """One part of many small ones."""
    return [torch.cat(parts)] if parts else []


def writable(place: Path) -> bool:
    """Whether an index can be written there."""
    try:
        check_writable(place)
    except InputError:
        return False
    return True


def check_writable(place: Path) -> None:
    """Raise InputError where a file cannot be made beside `place`: before hours of encoding."""
    probe = place.with_name(f"{place.name[:200]}.part")
    try:
        probe.write_bytes(b"1")
        probe.unlink()
    except OSError as error:
        raise InputError(f"--index {place} cannot be written ({one_line(error)}): name another "
                         "place with --index") from error
