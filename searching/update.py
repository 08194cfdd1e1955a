"""Bring an index up to date: encode only new and changed photos, and keep what is done.

While photos are encoded the index is written every now and then, and once more when a signal or an
error ends the command, so that the same command goes on from there.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from common import temporary
from common.errors import InputError, one_line
from common.locks import wait_for_lock
from common.terminal import print_note, progress, warn
from searching.encoding import EncodedBatch
from searching.index import (
    Damaged,
    Index,
    Origin,
    Table,
    load_index,
    make_table,
    read_index,
    write_index,
)
from searching.scan import Stat
from training.signals import stop_on_signals

SAVE_EVERY = 30  # least seconds between two times that the index is written
SAVE_SHARE = 0.05  # of the time that writing the index may take at most
Encode = Callable[[list[Path]], Iterator[EncodedBatch]]


def update_index(
    place: Path, origin: Origin, found: dict[str, Stat], dim: int, encode: Encode
) -> Index:
    """Return the index of the photos in a folder, and write its file where it is not up to date.

    Two commands that need the same index do not encode its photos twice: the second waits.

    Args:
        place: the index file, which may not exist yet.
        origin: the model and the folder that the index belongs to.
        found: size and time of each photo in the folder, sorted by name.
        dim: D, the length of an embedding.
        encode: yields the embeddings of photo files, (n, D) in each batch.

    Raises:
        InputError: the file is something else, or cannot be written.
        Stopped: a signal came; what is encoded is written.
    """
    with contextlib.suppress(Damaged):  # which is told below, once
        index = load_index(place, origin, dim)
        if index is not None and is_current(index, found):
            return index
    lock = wait_for_lock(
        place.with_name(f"{place.name[:200]}.lock"),
        lambda holder: print_note(f"{holder} is at work on {place}: waiting for its end"))
    with lock or contextlib.nullcontext():
        index = read_index(place, origin, dim)  # the lock's last holder may have done it all
        if index is not None and is_current(index, found):
            return index
        update = IndexUpdate(place, origin, found, index, dim)
        if not update.missing and index is not None and not is_writable(place):
            return update.without_vanished(index)
        check_writable(place)
        update.run(encode)
        index = read_index(place, origin, dim)
    if index is None:
        raise InputError(f"--index {place} cannot be read back: name another place")
    return index


def is_current(index: Index, found: dict[str, Stat]) -> bool:
    """Return whether an index holds exactly the photos of a folder, none of them changed.

    Args:
        found: size and time of each photo in the folder, sorted by name.
    """
    broken = dict(index.broken.rows())
    if any(found.get(name) != stat for name, stat in broken.items()):
        return False
    # Whole lists and arrays are compared: for a million photos, a second less than one by one.
    names = [name for name in found if name not in broken]
    stats = np.fromiter(itertools.chain.from_iterable(map(found.__getitem__, names)), np.int64)
    return names == index.photos.names and np.array_equal(stats, index.photos.stats.reshape(-1))


class IndexUpdate:
    """The photos that an index lacks, and what is known of the others.

    Args:
        place: the index file.
        origin: the model and the folder that the index belongs to.
        found: size and time of each photo in the folder, sorted by name.
        index: what the file holds; None where there is none.
        dim: D, the length of an embedding.

    Attributes:
        missing: names of the photos that are to be encoded.
        blocks: embeddings, (n, D) each; the first are those of `index`.
        row_of: the row of each photo that has an embedding, counted through all blocks.
        broken: size and time of each photo that cannot be read.
    """

    def __init__(
        self, place: Path, origin: Origin, found: dict[str, Stat], index: Index | None, dim: int
    ):
        self.place, self.origin, self.found = place, origin, found
        self.blocks, self.row_of, self.broken = [torch.empty(0, dim)], {}, {}
        if index is not None:
            self.blocks = [index.embeds]
            self.row_of = {name: row for row, (name, stat) in enumerate(index.photos.rows())
                           if found.get(name) == stat}
            self.broken = {name: stat for name, stat in index.broken.rows()
                           if found.get(name) == stat}
        self.rows = len(self.blocks[0])
        self.missing = [name for name in found
                        if name not in self.row_of and name not in self.broken]
        self.encoded = 0
        self.unsaved = True

    def without_vanished(self, index: Index) -> Index:
        """Return `index` without the photos that have vanished, and write nothing."""
        rows = list(self.row_of.values())
        photos = Table(list(self.row_of), index.photos.stats[rows])
        return Index(photos, index.embeds[rows], make_table(self.broken))

    def run(self, encode: Encode) -> None:
        """Encode the missing photos, and write the index."""
        started, folder = time.monotonic(), self.origin.folder
        try:
            with (stop_on_signals(self.save_and_say_how_to_go_on) as signals,
                  contextlib.closing(encode([folder / name for name in self.missing])) as batches,
                  progress(None, "encoding photos", len(self.missing), unit="photo") as bar):
                next_save = time.monotonic() + SAVE_EVERY
                for batch in batches:
                    self.add(batch)
                    bar.update(len(batch.indices) + len(batch.faults))
                    signals.stop_if_asked()
                    if time.monotonic() > next_save:
                        save_started = time.monotonic()
                        self.save()
                        seconds = time.monotonic() - save_started
                        next_save = (save_started + seconds
                                     + max(SAVE_EVERY, seconds / SAVE_SHARE))
        finally:
            if self.unsaved:
                self.save()
        seconds = time.monotonic() - started
        if self.missing:
            print_note(f"encoded {self.encoded:,} photos in {seconds:,.1f} s, "
                       f"{self.encoded / max(seconds, 1e-9):,.1f} a second")

    def add(self, batch: EncodedBatch) -> None:
        """Add a batch of embeddings to the index in memory, and warn of photos without one.

        Raises:
            InputError: the folder has vanished, and its photos with it.
        """
        for index in batch.indices:
            self.row_of[self.missing[index]] = self.rows
            self.rows += 1
        self.blocks.append(batch.embeds)
        self.encoded += len(batch.indices)
        self.unsaved = True
        folder = self.origin.folder
        if batch.faults and not folder.is_dir():
            raise InputError(f"--photos {folder} is gone: bring it back, and the same command goes "
                             "on")
        for fault in batch.faults:
            warn(f"{fault.reason}; it is passed over"
                 + (" until it changes" if fault.permanent else ""))
            if fault.permanent:
                name = self.missing[fault.index]
                self.broken[name] = self.found[name]

    def save(self) -> None:
        """Write the index."""
        self.unsaved = False  # also if writing fails, which is not tried a second time
        photos = {name: self.found[name] for name in self.row_of}
        if len(self.blocks) > 1:
            self.blocks = [self.blocks[0], torch.cat(self.blocks[1:])]
        write_index(self.place, self.origin, photos, self.blocks, self.row_of, self.broken)

    def save_and_say_how_to_go_on(self) -> str:
        """Write the index where that is due, and return the message for a stopped command."""
        if self.unsaved:
            self.save()
        return (f"{len(self.row_of):,} of {len(self.found):,} photos are in {self.place}: the same "
                "command goes on from there")


def is_writable(place: Path) -> bool:
    """Return whether an index can be written to `place`."""
    try:
        check_writable(place)
    except InputError:
        return False
    return True


def check_writable(place: Path) -> None:
    """Raise InputError where no file can be made beside `place`: before hours of encoding."""
    try:
        temporary.check_writable(place.parent)
    except OSError as error:
        raise InputError(f"--index {place} cannot be written ({one_line(error)}): name another "
                         "place with --index") from error
