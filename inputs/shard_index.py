"""The index of tar shards: one array file a shard, which says where each photo and caption lies.

A sample is what shares a key, its path up to the first dot of the file's name, wherever in the
shard its parts are: a photo, and `.txt`, one caption, or `.json`, one or several. An index is made
once, on all cores, from headers, captions and the photos' first and last bytes; no pixel of a photo
that looks whole is read. It is kept in the user's cache, and never beside the shards, which may
come from anybody. It is made anew for a shard that has another size, time of change, or bytes at a
few places that are compared.
"""

import functools
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from zlib import crc32

import numpy as np

from common import files
from common.errors import InputError, one_line, reraise_out_of_memory
from common.locks import wait_for_lock
from common.pools import map_in_processes
from common.temporary import remove_left_overs
from common.terminal import print_note, progress, warn
from inputs.loader import usable_cores
from inputs.photos import MAX_BYTES, SUFFIXES, PhotoSequence, TooLarge, open_photo, photo_fault
from inputs.records import is_blank, listed
from inputs.shards import HeaderFile, Shard, TarPhoto, key_and_suffix, member_name, read_at
from inputs.splits import Split

VERSION = 2  # goes up whenever the same shard gives another index
FOLDER = "shards"  # in the cache
SAMPLED = 16  # blocks of a shard that are compared with those it had
MOST_BEHIND_END = 2**22  # bytes that writers of tapes fill up with zeros
PHOTO_SUFFIXES = {suffix.removeprefix(".") for suffix in SUFFIXES}
TEXT, JSON = "txt", "json"
CAPTION_KEYS = "caption", "captions", "text", "sentences"
LONGEST_CAPTION = 2**20  # bytes of a file of captions
BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
AGAIN = "fetch it again, or pack it anew"

# What a row of an index is good for. Only a PAIR has captions.
PAIR, NO_CAPTION, BAD_CAPTION, TWO_PHOTOS, BROKEN, TOO_LARGE, NO_PHOTO, CHECKSUM = range(8)
LEFT_OUT = {
    NO_CAPTION: "photos without a caption",
    BAD_CAPTION: "photos whose caption is empty or no text",
    TWO_PHOTOS: "photos that are not alone in their sample",
    BROKEN: "photos that are cut short or none",
    TOO_LARGE: "photos that are too large",
    NO_PHOTO: "captions without a photo",
}
UNUSABLE = {BROKEN: "is cut short or no photo: fetch it again",
            TOO_LARGE: "has more pixels or bytes than are decoded: make it smaller"}
NOWHERE, AMBIGUOUS = -1, -2  # in place of a photo's row
UNFOUND = {NOWHERE: "is in none of the shards",
           AMBIGUOUS: "is in the shards more than once: name it with its shard, as "
                      "000012.tar/000001.jpg"}

# A row is a photo, or a file of captions without one. Places are in bytes from the shard's start.
ROW = np.dtype([
    ("header", "<i8"),  # of the photo in the tar, which holds its name
    ("photo", "<i8"), ("size", "<u4"),
    ("text", "<i8"), ("text_size", "<u4"), ("is_json", "?"),
    ("captions", "<u4"),  # how many
    ("state", "u1"),
])


class Index:
    """The rows of a list of shards, one shard behind the other.

    Attributes:
        rows: (N,) of type `ROW`.
        ends: (shards,) the number of rows up to the end of each shard.
        labels: (shards) the shards' paths from the last folder on that has all of them.
    """

    def __init__(self, shards: Sequence[Shard], arrays: list[np.ndarray], column: str | None):
        self.shards, self.column = shards, column
        self.rows = np.concatenate(arrays)
        self.ends = np.cumsum([len(array) for array in arrays])
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(shard.path))
                                     for shard in shards])
        self.labels = [os.path.relpath(os.path.abspath(shard.path), folder) for shard in shards]

    def shard_of(self, row: int) -> int:
        """Return the number of the shard that a row belongs to."""
        return int(np.searchsorted(self.ends, row, side="right"))

    def photo(self, row: int) -> TarPhoto:
        """Return the photo of a row."""
        header, offset, size = (int(self.rows[row][name]) for name in ("header", "photo", "size"))
        return TarPhoto(self.shards[self.shard_of(row)], header, offset, size)

    def member(self, row: int) -> str:
        """Return the path in its tar of a row's photo, or of its captions."""
        return member_name(self.shards[self.shard_of(row)], int(self.rows[row]["header"]))

    def name(self, row: int) -> str:
        """Return the name of a photo, which no other one has: "000012.tar/000001.jpg"."""
        return f"{self.labels[self.shard_of(row)]}/{self.member(row)}"

    def captions(self, row: int) -> list[str]:
        """Read the captions of a pair."""
        entry, shard = self.rows[row], self.shards[self.shard_of(row)]
        content = read_at(shard, int(entry["text"]), int(entry["text_size"]))
        texts = parsed_captions(content, bool(entry["is_json"]), self.column, shard.path)
        if not isinstance(texts, list) or len(texts) != entry["captions"]:
            raise InputError(f"shard {shard.path} has changed since it was looked at: start again")
        return texts

    def left_out(self) -> list[str]:
        """Return what of the shards makes no pair of photo and caption: how many, and the first."""
        said = []
        for state, kind in LEFT_OUT.items():
            rows = np.flatnonzero(self.rows["state"] == state)
            if len(rows):
                said.append(f"{len(rows):,} {kind}, such as {self.photo(int(rows[0]))}")
        photos = np.cumsum(self.rows["state"] != NO_PHOTO)
        counts = np.diff([0, *np.concatenate([[0], photos])[self.ends]])
        if empty := np.flatnonzero(counts == 0).tolist():
            said.append(f"{len(empty):,} shards without a photo, such as "
                        f"{self.shards[empty[0]].path}")
        return said


class ShardPhotos(PhotoSequence):
    """Photos of an index.

    Args:
        rows: (N_i,) rows of the index, `NOWHERE` or `AMBIGUOUS`.
        names: (N_i) as a split file calls the photos; None for the index's own names.
        upright: turn photos as their EXIF data say.
    """

    def __init__(self, index: Index, rows: np.ndarray, names: Sequence[str] | None = None,
                 upright: bool = False):
        self.index, self.rows, self.names, self.upright = index, rows, names, upright

    def __len__(self) -> int:
        return len(self.rows)

    def photo(self, index: int) -> TarPhoto:
        if self.rows[index] < 0:
            raise InputError(f"photo {self.label(index)} {UNFOUND[int(self.rows[index])]}")
        return self.index.photo(int(self.rows[index]))

    def label(self, index: int) -> str:
        return str(self.photo(index)) if self.names is None else self.names[index]

    def fault(self, index: int) -> str | None:
        row = int(self.rows[index])
        return UNFOUND.get(row) or UNUSABLE.get(int(self.index.rows["state"][row]))

    def faults(self, rows: Sequence[int], what: str) -> Iterator[tuple[int, str]]:
        """Yield the photos among `rows` that cannot be used: the index knows of all of them."""
        places = self.rows[np.asarray(rows, dtype=np.int64)]
        bad = (places < 0) | np.isin(self.index.rows["state"][places], list(UNUSABLE))
        yield from ((rows[number], self.fault(rows[number]))
                    for number in np.flatnonzero(bad).tolist())

    def missing(self, index: int) -> str | None:
        return {NOWHERE: "missing", AMBIGUOUS: "ambiguous"}.get(int(self.rows[index]))


class ShardNames(Sequence):
    """The names of photos of an index, each read when it is asked for."""

    def __init__(self, index: Index, rows: np.ndarray):
        self.index, self.rows = index, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[place] for place in range(len(self))[number]]
        return self.index.name(int(self.rows[number]))


class ShardCaptions(Sequence):
    """The captions of pairs of an index, each read when it is asked for.

    Args:
        rows: (N_t,) the row of each caption.
        places: (N_t,) which of the row's captions it is.
    """

    def __init__(self, index: Index, rows: np.ndarray, places: np.ndarray):
        self.index, self.rows, self.places = index, rows, places
        self.last: tuple[int, list[str]] = -1, []  # captions of one photo follow each other

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[place] for place in range(len(self))[number]]
        row = int(self.rows[number])
        if self.last[0] != row:
            self.last = row, self.index.captions(row)
        return self.last[1][int(self.places[number])]

    def fingerprint(self) -> str:
        """Return a digest that is another one where a caption may be."""
        digest = hashlib.sha256(repr([(shard.size, shard.changed, os.path.basename(shard.path))
                                      for shard in self.index.shards]).encode())
        digest.update(repr((VERSION, self.index.column)).encode())
        for array in self.rows, self.places, self.index.rows["text"][self.rows]:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


# ------------------------------------------------------------------------------------------- splits


def pairs_of_shards(
    index: Index, pattern: Path, every: bool, captions_per_image: int | None = None,
    upright: bool = False,
) -> Split:
    """Return the split of all pairs of an index, in the shards' order. What is no pair is left out,
    and a warning says so.

    Args:
        every: no sample that is spoilt may be left out: a score over the others would be another
            score.

    Raises:
        InputError: there is no pair, or `every` and a sample is spoilt.
    """
    states = index.rows["state"]
    rows = np.flatnonzero(states == PAIR)
    said = "; ".join(index.left_out())
    if not len(rows):
        raise InputError(f"{pattern}: no photo has a caption beside it, .txt or .json (under "
                         f"{', '.join(CAPTION_KEYS[:-1])} or {CAPTION_KEYS[-1]}, or the key that "
                         f"--caption_column names){f': {said}' if said else ''}")
    spoilt = np.flatnonzero(np.isin(states, [BAD_CAPTION, BROKEN, TOO_LARGE]))
    if every and len(spoilt):
        row, photos = int(spoilt[0]), int((states != NO_PHOTO).sum())
        raise InputError(f"{len(spoilt):,} of {photos:,} samples of {pattern}, which are to be "
                         f"scored, cannot be used; the first is {index.photo(row)}, one of the "
                         f"{LEFT_OUT[int(states[row])]}: pack it anew, or take it out")
    if said:
        warn(f"{pattern}: left out {said}")
    counts = index.rows["captions"][rows].astype(np.int64)
    if captions_per_image is not None:
        counts = counts.clip(max=captions_per_image)
    image_of_text = np.repeat(np.arange(len(rows)), counts)  # (N_t,)
    places = np.arange(len(image_of_text)) - np.repeat(counts.cumsum() - counts, counts)
    captions = ShardCaptions(index, rows[image_of_text], places)
    return Split(pattern, ShardNames(index, rows), captions, image_of_text,
                 photos=ShardPhotos(index, rows, upright=upright))


def find_in_shards(names: Sequence[str], index: Index, upright: bool = False) -> ShardPhotos:
    """Return the photos of an index that a split file names: by their path in the tar, by their
    name with the shard's before it, or at least by their bare name."""
    wanted = {*names, *map(bare_name, names)}
    found: list[dict[str, int]] = [{}, {}, {}]
    for row in np.flatnonzero(index.rows["state"] != NO_PHOTO).tolist():
        member, label = index.member(row), index.labels[index.shard_of(row)]
        for rows, name in zip(found, (member, f"{label}/{member}", bare_name(member))):
            if name in wanted:
                rows[name] = AMBIGUOUS if name in rows else row

    def row_of(name: str) -> int:
        for rows, key in zip(found, (name, name, bare_name(name))):
            if key in rows:
                return rows[key]
        return NOWHERE

    return ShardPhotos(index, np.array([row_of(name) for name in names], dtype=np.int64), names,
                       upright)


def bare_name(name: str) -> str:
    """Return a name without its folder."""
    return name.rpartition("/")[2]


# --------------------------------------------------------------------------------- kept, or made


def shard_index(
    shards: Sequence[Shard], caption_column: str | None = None, cache: Path | None = None
) -> Index:
    """Return the index of shards, as it was kept, or made now.

    Args:
        caption_column: the key of the captions in `.json`.
        cache: the folder to keep it in; None keeps it in memory, for this run alone.

    Raises:
        InputError: of `scan_shard`.
    """
    folder = None if cache is None else cache / FOLDER
    places = [place_of(shard, caption_column, folder) for shard in shards]
    arrays = [read_rows(place, shard) for place, shard in zip(places, shards)]
    if any(array is None for array in arrays):
        lock = lock_of(folder)
        try:  # another process may have made them meanwhile
            arrays = [read_rows(place, shard) if array is None else array
                      for place, shard, array in zip(places, shards, arrays)]
            lacking = [number for number, array in enumerate(arrays) if array is None]
            made = map_in_processes(
                functools.partial(scan_shard, caption_column=caption_column),
                [shards[number] for number in lacking], min(len(lacking), usable_cores()),
                "indexing shards")
            for number, rows in zip(lacking, progress(made, "indexing shards", len(lacking),
                                                      unit="shard")):
                arrays[number] = rows
                keep_rows(places[number], rows)
        finally:
            if lock is not None:
                lock.close()
    return Index(shards, arrays, caption_column)


def lock_of(folder: Path | None) -> IO | None:
    """Wait until no other process makes an index in `folder`, and keep others out; None where that
    cannot be done."""
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_left_overs(folder)
        return wait_for_lock(folder / "index.lock", lambda holder: print_note(
            f"{folder}: waiting for {holder}, which indexes the same shards"))
    except OSError as error:
        warn(f"{folder} cannot be written ({one_line(error)}): the index of shards is in memory, "
             "for this run alone")
        return None


def place_of(shard: Shard, caption_column: str | None, folder: Path | None) -> Path | None:
    """Return the file of a shard's index. Whatever the index depends on is in its name."""
    if folder is None:
        return None
    name = os.path.basename(shard.path)
    key = repr((VERSION, ROW.descr, name, shard.size, shard.changed, sample_digest(shard),
                caption_column))
    return folder / f"{name[:100]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


def sample_digest(shard: Shard) -> str:
    """Return a digest of `SAMPLED` blocks of a shard, spread evenly: another shard may have the
    same name, size and time."""
    digest = hashlib.sha256()
    try:
        with files.open_file(shard.path) as file:
            for offset in np.linspace(0, max(0, shard.size - BLOCK), SAMPLED).astype(int).tolist():
                digest.update(os.pread(file.fileno(), BLOCK, offset))
    except OSError as error:
        raise InputError(f"shard {shard.path} cannot be read: {one_line(error)}") from error
    return digest.hexdigest()


def read_rows(place: Path | None, shard: Shard) -> np.ndarray | None:
    """Read a shard's index; None where there is none, and a warning where it is damaged."""
    if place is None or not place.is_file():
        return None
    try:
        most = 2**20 + (shard.size // BLOCK + 1) * ROW.itemsize  # a row has a header of its own
        array = np.load(io.BytesIO(files.read_bytes(place, most)), allow_pickle=False)
        if array.dtype != ROW or array.ndim != 1 or not len(array) or (
                array[-1]["state"] != CHECKSUM) or (
                array[-1]["header"] != crc32(array[:-1].tobytes())):
            raise ValueError("it is not what was written")
        check_rows(array[:-1], shard)
        return array[:-1]
    except Exception as error:  # of many kinds, as bytes come
        reraise_out_of_memory(error)
        warn(f"{place} is damaged ({one_line(error)}), and made anew")
        return None


def check_rows(rows: np.ndarray, shard: Shard) -> None:
    """Check that the rows of an index are in order, and lead to no place outside of their parts of
    the shard.

    Raises:
        ValueError: they do not.
    """
    headers, photos, sizes = (rows[name].astype(np.int64) for name in ("header", "photo", "size"))
    texts, text_sizes = rows["text"], rows["text_size"].astype(np.int64)
    ends = np.append(headers[1:], shard.size)  # a row's photo lies before the next row's header
    is_photo, is_pair = rows["state"] != NO_PHOTO, rows["state"] == PAIR
    photo_lies_well = (photos >= headers + BLOCK) & (photos + sizes <= ends)
    text_lies_well = (texts >= BLOCK) & (texts <= shard.size - text_sizes)
    if (np.any(headers < 0) or np.any(np.diff(headers) <= 0) or np.any(rows["state"] >= CHECKSUM)
            or not photo_lies_well[is_photo & (rows["state"] != TOO_LARGE)].all()
            or not text_lies_well[is_pair].all() or not (rows["captions"][is_pair] > 0).all()):
        raise ValueError("its rows are out of order")


def keep_rows(place: Path | None, rows: np.ndarray) -> None:
    """Write a shard's index, whose last row is a checksum; that it cannot be written costs a
    warning."""
    if place is None:
        return
    last = np.zeros(1, dtype=ROW)
    last["state"], last["header"] = CHECKSUM, crc32(rows.tobytes())
    try:
        files.write(place, lambda file: np.save(file, np.concatenate([rows, last])), "the index")
    except (OSError, InputError) as error:
        warn(f"{place} cannot be written ({one_line(error)}): it is made anew the next time")


# ------------------------------------------------------------------------------------- one shard


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    header: int
    offset: int
    size: int


@dataclass
class Sample:
    """The files of a tar that share a key."""

    photos: list[Member] = field(default_factory=list)
    texts: dict[str, list[Member]] = field(default_factory=dict)


def scan_shard(shard: Shard, caption_column: str | None) -> np.ndarray:
    """Read a shard through; return its rows, (N,) of type `ROW`, in the photos' order.

    Args:
        caption_column: the key of the captions in `.json`, else one of `CAPTION_KEYS`.

    Raises:
        InputError: it is no whole, plain tar file, or its captions lie under a key that it does not
            name alone.
    """
    samples: dict[str, Sample] = {}
    try:
        with open(shard.path, "rb") as file:
            for member in files_of(shard, file):
                key, suffix = key_and_suffix(member.name)
                sample = samples.setdefault(key, Sample())
                if suffix in PHOTO_SUFFIXES:
                    sample.photos.append(member)
                else:
                    sample.texts.setdefault(suffix, []).append(member)
            rows = [row for sample in samples.values()
                    for row in rows_of(shard, file, sample, caption_column)]
            return np.sort(np.array(rows, dtype=ROW), order="header")
    except OSError as error:
        reraise_out_of_memory(error)
        raise InputError(f"shard {shard.path} cannot be read: {one_line(error)}") from error


def rows_of(
    shard: Shard, file: IO[bytes], sample: Sample, caption_column: str | None
) -> Iterator[tuple]:
    """Yield the rows of a sample: a photo each; or one for captions without a photo."""
    order = (JSON, TEXT) if caption_column else (TEXT, JSON)
    suffix = next((suffix for suffix in order if suffix in sample.texts), None)
    texts = sample.texts.get(suffix, [])
    if not sample.photos:
        yield texts[0].header, 0, 0, texts[0].offset, 0, False, 0, NO_PHOTO
    for photo in sample.photos:
        state, captions, text = photo_state(shard, photo), 0, (0, 0, False)
        if len(sample.photos) > 1:
            state = max(state, TWO_PHOTOS)
        elif state == PAIR and not texts:
            state = NO_CAPTION
        elif state == PAIR:
            found = BAD_CAPTION
            if len(texts) == 1 and texts[0].size <= LONGEST_CAPTION:
                content = os.pread(file.fileno(), texts[0].size, texts[0].offset)
                found = parsed_captions(content, suffix == JSON, caption_column,
                                        f"{shard.path}: {texts[0].name}")
            if isinstance(found, list):
                captions, text = len(found), (texts[0].offset, texts[0].size, suffix == JSON)
            else:
                state = found
        size = min(photo.size, 2**32 - 1)
        yield photo.header, photo.offset, size, *text, captions, state


def photo_state(shard: Shard, member: Member) -> int:
    """Return PAIR where a photo looks whole, else BROKEN or TOO_LARGE."""
    if member.size > MAX_BYTES:
        return TOO_LARGE
    photo = TarPhoto(shard, member.header, member.offset, member.size)
    if photo_fault(photo) is None:
        return PAIR
    try:
        open_photo(photo).close()
    except TooLarge:
        return TOO_LARGE
    except InputError:
        pass
    return BROKEN


def parsed_captions(
    content: bytes, is_json: bool, caption_column: str | None, name: str
) -> list[str] | int:
    """Return the captions that a file of a shard holds, or why none: NO_CAPTION or BAD_CAPTION.

    `.txt` goes before `.json`, which then only says more of the photo, unless the user has named a
    key of that.
    """
    try:
        text = content.decode("utf-8-sig")
        found = json.loads(text) if is_json else text
    except (ValueError, RecursionError):
        return BAD_CAPTION
    if isinstance(found, dict):
        found = found.get(caption_key(found, caption_column, name))
        if found is None:
            return NO_CAPTION
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not found:
        return BAD_CAPTION
    texts = [text.get("raw") if isinstance(text, dict) else text for text in found]
    if not all(isinstance(text, str) and files.is_unicode(text) and "\0" not in text
               and not is_blank(text) for text in texts):
        return BAD_CAPTION
    return [text.strip() for text in texts]


def caption_key(sample: dict, named: str | None, name: str) -> str | None:
    """Return the key that holds a sample's captions; capitals do not count. None where none does.

    Raises:
        InputError: several may.
    """
    wanted = CAPTION_KEYS if named is None else (named.strip().lower(),)
    found = [key for key in sample if key.lower() in wanted and sample[key] is not None]
    if len(found) > 1:
        raise InputError(f"{name} has captions under {listed(found)}: name one with "
                         "--caption_column")
    return found[0] if found else None


# ---------------------------------------------------------------------------------------- tar files


def files_of(shard: Shard, file: IO[bytes]) -> Iterator[Member]:
    """Yield the photos and captions of a tar, in its order, but hidden ones and what macOS adds.

    Raises:
        InputError: it is compressed, no tar file, cut short or broken; a photo or caption in it is
            a link or has holes. The message says behind which file.
    """
    start = file.read(BLOCK)
    packed = next((kind for mark, kind in COMPRESSED.items() if start.startswith(mark)), None)
    if packed is not None and start[257:262] != b"ustar":  # a tar begins with a name: BZhu.jpg
        raise InputError(f"shard {shard.path} is compressed ({packed}): unpack it first, since "
                         "only a plain tar can be read at any place")
    if not start:
        raise InputError(f"shard {shard.path} is empty: {AGAIN}")
    file.seek(0)
    last, end = None, 0
    try:
        with tarfile.open(fileobj=HeaderFile(file), mode="r:", errorlevel=1) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # which it would keep, all of them
                if member.size < 0 or member.offset_data < end:
                    raise tarfile.ReadError("a size that no file has")
                has_bytes = member.isreg() and not member.issparse()
                end = member.offset_data + (member.size if has_bytes else 0)
                name = member.name.removeprefix("./")
                if end > shard.size:
                    raise InputError(f"shard {shard.path} is cut short inside {name}, at byte "
                                     f"{shard.size:,}: {AGAIN}")
                last = name
                if is_wanted(name, member):
                    check_plain(shard, name, member)
                    yield Member(name, member.offset, member.offset_data, member.size)
            check_end(shard, file, tar.offset, last)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        if last is None:
            raise InputError(f"shard {shard.path} is no tar file ({one_line(error)}): {AGAIN}"
                             ) from error
        raise InputError(f"shard {shard.path} is cut short or broken behind {last} "
                         f"({one_line(error)}): {AGAIN}") from error


def is_wanted(name: str, member: tarfile.TarInfo) -> bool:
    """Return whether something in a tar is a file of a sample."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    if hidden or not (member.isreg() or member.islnk() or member.issym()):
        return False
    return key_and_suffix(name)[1] in PHOTO_SUFFIXES | {TEXT, JSON}


def check_plain(shard: Shard, name: str, member: tarfile.TarInfo) -> None:
    """Raise InputError where a file's bytes do not lie in one piece behind its header."""
    if member.issparse() or not member.isreg():
        kind = "has holes" if member.issparse() else "is a link"
        raise InputError(f"shard {shard.path}: {name} {kind}, so its bytes are not there in one "
                         "piece: pack it anew with tar --dereference --hard-dereference")


def check_end(shard: Shard, file: IO[bytes], offset: int, last: str | None) -> None:
    """Raise InputError where a tar ends without the zeros that mark its end, or goes on behind
    them: `tarfile` takes a file that is cut between two members, or broken there, for a whole one,
    and reads one of two tars that were put together."""
    file.seek(offset)
    if file.read(BLOCK) != bytes(BLOCK):
        raise InputError(f"shard {shard.path} is cut short or broken behind {last}, at byte "
                         f"{offset:,} of {shard.size:,}: {AGAIN}")
    behind = file.read(MOST_BEHIND_END + 1)
    if len(behind) > MOST_BEHIND_END or behind.count(0) < len(behind):
        raise InputError(f"shard {shard.path} goes on behind its end, at byte {offset:,} of "
                         f"{shard.size:,}, as two tars in one file do: part them, or pack it anew")
