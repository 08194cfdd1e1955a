"""The index of a folder: a file with path, size, time of change and embedding of each photo.

It is a safetensors file, written in blocks and mapped when it is read. It holds `embeddings` (N, D)
float32, `stats` (N, 2) int64 (size in bytes, and nanoseconds of the last change), and `names`, the
paths inside the folder as bytes with a zero byte between two; `broken_stats` and `broken_names` of
photos that cannot be read; and, at its end, `sha256` of all that stands before it. The
header names the format, the model's fingerprint and the folder. The file holds nothing but numbers
and names: no code can be run from it.
"""

import contextlib
import hashlib
import itertools
import json
import operator
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np
import safetensors
import torch
from torch import Tensor

from common import files
from common.errors import InputError, one_line, reraise_out_of_memory
from common.terminal import warn
from inputs.photos import leads_out_of_folder
from searching.exact import are_unit_rows
from searching.scan import Stat

FORMAT_NUMBER = 2
FORMAT = "fne-search-{}"
LONGEST_HEADER = 20_000  # bytes; a header that is written here has some hundred, and a path
ROWS_PER_BLOCK = 2**15  # embeddings copied at a time
BYTES_PER_BLOCK = 2**20  # of the file, for its digest
# In the order in which they lie in the file.
TENSORS = {"stats": torch.int64, "broken_stats": torch.int64, "embeddings": torch.float32,
           "names": torch.uint8, "broken_names": torch.uint8, "sha256": torch.uint8}
DTYPES = {torch.int64: "I64", torch.float32: "F32", torch.uint8: "U8"}  # names in safetensors
WAY_OUT = "delete it, or name another with --index"


class Table(NamedTuple):
    """Photos and their size and time when they were read, sorted by name."""

    names: Sequence[str]  # N paths inside the folder
    stats: np.ndarray  # (N, 2) int64

    def rows(self) -> Iterator[tuple[str, Stat]]:
        """Yield the name, and the size and time, of each photo."""
        return zip(self.names, map(tuple, self.stats.tolist()))


class Index(NamedTuple):
    """The content of an index file."""

    photos: Table
    embeds: Tensor  # (N, D) unit rows of `photos`, float32
    broken: Table  # photos that cannot be read, until they change


class Origin(NamedTuple):
    """The model and the folder that an index belongs to."""

    model: str  # fingerprint
    folder: Path

    def header(self) -> dict[str, str]:
        """Return what the header of the index file says of it."""
        folder = quote_from_bytes(os.fsencode(os.path.realpath(self.folder)))
        return {"format": FORMAT.format(FORMAT_NUMBER), "model": self.model, "photos": folder}


def make_table(stats: dict[str, Stat]) -> Table:
    """Return the table of photos whose size and time are given by name."""
    names = sorted(stats)
    return Table(names, np.array([stats[name] for name in names], dtype=np.int64).reshape(-1, 2))


def index_place(path: Path | None, origin: Origin, inputs: list[Path]) -> Path:
    """Return the file in which the index of a folder and a model is kept, and make its folder.

    Args:
        path: the value of --index; None for a file in the user's cache folder.
        origin: the model and the folder.
        inputs: files that the command reads or writes for something else.

    Raises:
        InputError: something else is there, or there is no cache folder outside of the photos.
    """
    if path is not None:
        return files.resolve_output(path, "--index", is_index, inputs)
    place = cache_place(origin.folder, f"-{origin.model[:16]}.safetensors")
    if place is None:
        raise InputError(f"the index would lie in {files.user_cache_folder('')}, inside --photos "
                         "or nowhere: say where with --index")
    # Names are private, so nobody else may read the folder. `resolve_output` tells of an error.
    with contextlib.suppress(OSError):
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return files.resolve_output(place, "--index", is_index, inputs)


def cache_place(folder: Path, ending: str) -> Path | None:
    """Return a file in the user's cache folder that belongs to a folder of photos.

    Args:
        folder: of the photos.
        ending: of the file's name.

    Returns:
        The file, which need not exist; None where there is no cache folder outside of the photos.
    """
    cache, folder = files.user_cache_folder("fne-search"), os.path.realpath(folder)
    if cache is None or Path(os.path.realpath(cache.parent)).is_relative_to(folder):
        return None
    return cache / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}{ending}"


# ----------------------------------------------------------------------------------------- writing


def write_index(
    place: Path, origin: Origin, photos: dict[str, Stat], blocks: list[Tensor],
    row_of: dict[str, int], broken: dict[str, Stat],
) -> None:
    """Write an index, whole or not at all.

    Args:
        place: the file, which may be the one that `blocks` are mapped from.
        origin: the model and the folder that the index belongs to.
        photos: size and time of each photo that has an embedding.
        blocks: embeddings, (n, D) each, in memory or mapped.
        row_of: the row of each photo, counted through all blocks.
        broken: size and time of each photo that cannot be read.

    Raises:
        InputError: there is no room, or the file cannot be written.
    """
    table, broken_table = make_table(photos), make_table(broken)
    order = np.array([row_of[name] for name in table.names], dtype=np.int64)  # (N,)
    names, broken_names = join_names(table.names), join_names(broken_table.names)
    shapes = {"stats": table.stats.shape, "broken_stats": broken_table.stats.shape,
              "embeddings": (len(order), blocks[0].shape[1]), "names": names.shape,
              "broken_names": broken_names.shape, "sha256": (hashlib.sha256().digest_size,)}
    header = safetensors_header(origin.header(), shapes)

    def write_content(file: IO[bytes]) -> None:
        digest = hashlib.sha256()
        for part in itertools.chain([header, table.stats, broken_table.stats],
                                    gather_rows(blocks, order), [names, broken_names]):
            digest.update(part)
            file.write(part)
        file.write(digest.digest())

    files.write(place, write_content, "--index")


def join_names(names: Sequence[str]) -> np.ndarray:
    """Return names as one array of bytes, uint8, with a zero byte between two."""
    return np.frombuffer(b"\0".join(map(os.fsencode, names)), dtype=np.uint8)


def safetensors_header(metadata: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Return the beginning of a safetensors file: the header's length, and the header as json.

    Args:
        metadata: texts by name that the header holds beside the tensors.
        shapes: of all `TENSORS`, which follow the header in that order.
    """
    header, end = {"__metadata__": metadata}, 0
    for name, dtype in TENSORS.items():
        start, end = end, end + int(np.prod(shapes[name])) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shapes[name]),
                        "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors to begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def gather_rows(blocks: list[Tensor], order: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows `order` of all blocks together, some thousand at a time.

    Args:
        blocks: embeddings, (n, D) each.
        order: (N,) rows, counted through all blocks.
    """
    ends = np.cumsum([len(block) for block in blocks]).tolist()
    for first in range(0, len(order), ROWS_PER_BLOCK):
        rows = order[first : first + ROWS_PER_BLOCK]
        gathered = np.empty((len(rows), blocks[0].shape[1]), dtype=np.float32)
        for block, end in zip(blocks, ends):
            start = end - len(block)
            in_block = (start <= rows) & (rows < end)
            gathered[in_block] = block.numpy()[rows[in_block] - start]
        yield gathered


# ----------------------------------------------------------------------------------------- reading


def read_header(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file, by name; {} for any other file."""
    try:
        if not path.is_file():
            return {}
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length >= LONGEST_HEADER:
                return {}
            metadata = json.loads(file.read(length))["__metadata__"]
        return metadata if all(isinstance(value, str) for value in metadata.values()) else {}
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError,
            struct.error):
        return {}


def format_number(header: dict[str, str]) -> int | None:
    """Return the number of an index's format, or None where a header is that of no index."""
    found = re.fullmatch(FORMAT.format(r"(\d{1,9})"), header.get("format", ""))
    return found and int(found[1])


def is_index(path: Path) -> bool:
    """Return whether a file says that it is an index, whole or damaged."""
    return format_number(read_header(path)) is not None


class Damaged(ValueError):
    """An index that is not whole, or of an earlier format."""


def read_index(place: Path, origin: Origin, dim: int) -> Index | None:
    """Return the index in a file, for a search that makes it anew where it is damaged.

    Args:
        place: the file.
        origin: the model and the folder that the index must belong to.
        dim: D, the length of an embedding.

    Returns:
        The index; None where there is no file, or it is damaged, of which a warning tells.

    Raises:
        InputError: something else is there, or the index of another model or folder.
    """
    try:
        return load_index(place, origin, dim)
    except Damaged as damage:
        warn(f"--index {place} {damage}: it is made anew")
        return None


def read_index_as_is(place: Path, origin: Origin, dim: int) -> Index:
    """Return the index in a file, for a search that does not look into the folder first.

    Args:
        place: the file.
        origin: the model and the folder that the index must belong to.
        dim: D, the length of an embedding.

    Raises:
        InputError: there is no whole index of this model and folder, or a name leads out of it.
    """
    try:
        index = load_index(place, origin, dim)
    except Damaged as damage:
        raise InputError(f"--as_is: --index {place} {damage}: search without the flag, which makes "
                         "it anew") from damage
    if index is None:
        raise InputError(f"--as_is: there is no index {place} yet: search without the flag first")
    if any(map(leads_out_of_folder, index.photos.names)):
        raise InputError(f"--index {place} names photos outside of the folder: {WAY_OUT}")
    return index


def load_index(place: Path, origin: Origin, dim: int) -> Index | None:
    """Return the index in a file, or None where there is no file or an empty one.

    Args:
        place: the file.
        origin: the model and the folder that the index must belong to.
        dim: D, the length of an embedding.

    Raises:
        InputError: something else is there, or the index of another model or folder.
        Damaged: the index is not whole, or of an earlier format.
    """
    if not os.path.lexists(place) or place.is_file() and place.stat().st_size == 0:
        return None
    if place.is_file() and not os.access(place, os.R_OK):
        raise InputError(f"--index {place} may not be read: name another file")
    found, wanted = read_header(place), origin.header()
    number = format_number(found)
    if number is None:
        raise InputError(f"--index {place} is no index of search.py: {WAY_OUT}")
    if number > FORMAT_NUMBER:
        raise InputError(f"--index {place} has format {number}, of a later version of search.py: "
                         f"{WAY_OUT}")
    if found.get("model") != wanted["model"]:
        raise InputError(f"--index {place} is of another model, or of another --precision: "
                         f"{WAY_OUT}")
    # The index of a folder that was moved serves at its new place; that of a folder that still
    # exists somewhere else does not.
    folder = Path(os.fsdecode(unquote_to_bytes(found.get("photos", ""))))
    if found.get("photos") != wanted["photos"] and is_folder(folder):
        raise InputError(f"--index {place} is of another folder, {folder}: name another file")
    if number < FORMAT_NUMBER:
        raise Damaged(f"has format {number}, of an earlier version")
    try:
        check_digest(place)
        with safetensors.safe_open(place, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        return parse_index(tensors, dim)
    except Exception as error:  # damaged bytes raise errors of several kinds
        reraise_out_of_memory(error)
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"--index {place} cannot be read ({one_line(error)}): name another "
                             "file") from error
        raise Damaged(f"is damaged ({one_line(error)[:200]})") from error


def check_digest(place: Path) -> None:
    """Raise ValueError where a file does not end with the SHA-256 of all that stands before it."""
    digest = hashlib.sha256()
    with open(place, "rb") as file:
        left = os.fstat(file.fileno()).st_size - digest.digest_size
        while left > 0 and (block := file.read(min(left, BYTES_PER_BLOCK))):
            digest.update(block)
            left -= len(block)
        if file.read(digest.digest_size) != digest.digest():
            raise ValueError("its content is not that of its digest")


def is_folder(path: Path) -> bool:
    """Return whether an absolute path is that of a folder; false of a path that none can have."""
    try:
        return path.is_absolute() and path.is_dir()
    except (OSError, ValueError):
        return False


def parse_index(tensors: dict[str, Tensor], dim: int) -> Index:
    """Return the index that the tensors of a file hold.

    Args:
        tensors: all tensors of the file, by name.
        dim: D, the length of an embedding.

    Raises:
        ValueError: the tensors are not what `write_index` writes.
    """
    if {name: value.dtype for name, value in tensors.items()} != TENSORS:
        raise ValueError("other tensors")
    embeds = tensors["embeddings"]
    if embeds.ndim != 2 or embeds.shape[1] != dim:
        raise ValueError(f"embeddings {tuple(embeds.shape)}")
    if not all(bool(are_unit_rows(block).all()) for block in embeds.split(ROWS_PER_BLOCK)):
        raise ValueError("embeddings that are no unit rows")
    photos = parse_table(tensors["names"], tensors["stats"])
    broken = parse_table(tensors["broken_names"], tensors["broken_stats"])
    if len(photos.names) != len(embeds):
        raise ValueError(f"{len(photos.names)} names of {len(embeds)} embeddings")
    return Index(photos, embeds, broken)


def parse_table(names: Tensor, stats: Tensor) -> Table:
    """Return the table of photos that two tensors hold; the names stay mapped.

    Args:
        names: uint8, paths with a zero byte between two.
        stats: (N, 2) int64, size and time of each.

    Raises:
        ValueError: the names are not sorted, or their number is not N.
    """
    letters = names.numpy()
    if len(letters):
        ends = np.append(np.flatnonzero(letters == 0), len(letters))
    else:
        ends = np.empty(0)
    found = Names(letters, ends)
    if stats.shape != (len(found), 2) or any(
            left >= right for left, right in itertools.pairwise(found)):
        raise ValueError("names out of order")
    return Table(found, stats.numpy())


class Names(Sequence):
    """N names of files in a mapped array, each decoded when it is asked for.

    Args:
        letters: uint8, the names as bytes, with a zero byte between two.
        ends: (N,) where each name ends in `letters`.
    """

    def __init__(self, letters: np.ndarray, ends: np.ndarray):
        self.letters, self.ends = letters, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        index = range(len(self))[operator.index(index)]
        start = int(self.ends[index - 1]) + 1 if index else 0
        return os.fsdecode(self.letters[start : int(self.ends[index])].tobytes())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None
