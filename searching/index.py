"""The index of a folder: a file with each photo's path, size, time of change and embedding.

A safetensors file, written in blocks and mapped when read: `embeddings` (N, D) float32, `stats`
(N, 2) int64 (bytes, and nanoseconds of the last change), `names`, the paths in the folder as bytes
with a zero byte between two, and the like of photos that cannot be read, `broken_stats` and
`broken_names`. Its header names the format, the model's fingerprint and the folder. Numbers and
names are all that is in it: nothing can be run, and no path in it is ever opened.
"""

import contextlib
import hashlib
import itertools
import json
import os
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
from common.errors import InputError, one_line
from common.terminal import warn
from inputs.arrays import Texts
from inputs.photos import leads_out_of_folder
from searching.scan import Stat

FORMAT = "fne-search-1"
LONGEST_HEADER = 20_000  # bytes; ours have some hundred, and the path of a folder
ROWS = 2**15  # copied at a time
TENSORS = {"stats": torch.int64, "broken_stats": torch.int64, "embeddings": torch.float32,
           "names": torch.uint8, "broken_names": torch.uint8}
DTYPES = {torch.int64: "I64", torch.float32: "F32", torch.uint8: "U8"}
AGAIN = "delete it, or name another with --index"


class Table(NamedTuple):
    """Photos as they were when they were read."""

    names: Sequence[str]  # (N,) paths in the folder, in order
    stats: np.ndarray  # (N, 2) int64

    def rows(self) -> Iterator[tuple[str, Stat]]:
        return zip(self.names, map(tuple, self.stats.tolist()))


class Index(NamedTuple):
    """What an index file holds."""

    photos: Table
    embeds: Tensor  # (N, D) unit rows, float32
    broken: Table


class Marks(NamedTuple):
    """Whose index a file is."""

    model: str  # fingerprint
    folder: Path

    def header(self) -> dict[str, str]:
        return {"format": FORMAT, "model": self.model,
                "photos": quote_from_bytes(os.fsencode(os.path.realpath(self.folder)))}


def table_of(stats: dict[str, Stat]) -> Table:
    names = sorted(stats)
    return Table(names, np.array([stats[name] for name in names], dtype=np.int64).reshape(-1, 2))


def index_place(asked: Path | None, marks: Marks, inputs: list[Path]) -> Path:
    """Where the index of a folder and a model is kept: where `asked`, or in the user's cache.

    Raises:
        InputError: there is something else, or the cache is no place for it.
    """
    if asked is not None:
        return files.resolve_output(asked, "--index", is_index, inputs)
    cache, folder = files.user_cache_folder("fne-search"), os.path.realpath(marks.folder)
    if cache is None or Path(os.path.realpath(cache.parent)).is_relative_to(folder):
        raise InputError(f"the index would lie in {cache and cache.parent}, inside --photos or "
                         "nowhere: say where with --index")
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()
    place = cache / f"{name[:16]}-{marks.model[:16]}.safetensors"
    with contextlib.suppress(OSError):  # told in a moment
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # names are private
    return files.resolve_output(place, "--index", is_index, inputs)


# ----------------------------------------------------------------------------------------- writing


def write_index(
    place: Path, marks: Marks, photos: dict[str, Stat], parts: list[Tensor],
    row_of: dict[str, int], broken: dict[str, Stat],
) -> None:
    """Write an index, whole or not at all.

    Args:
        parts: embeddings (n, D) each, mapped or not; `row_of`: each photo's row in all of them.

    Raises:
        InputError: there is no room, or it cannot be written.
    """
    table, lost = table_of(photos), table_of(broken)
    order = np.array([row_of[name] for name in table.names], dtype=np.int64)
    shape = [len(order), parts[0].shape[1]]
    names, lost_names = (np.frombuffer(b"\0".join(map(os.fsencode, part.names)), dtype=np.uint8)
                         for part in (table, lost))
    shapes = dict(zip(TENSORS, [table.stats.shape, lost.stats.shape, shape, names.shape,
                                lost_names.shape]))
    header, end = {"__metadata__": marks.header()}, 0
    for name, kind in TENSORS.items():
        start, end = end, end + int(np.prod(shapes[name])) * kind.itemsize
        header[name] = {"dtype": DTYPES[kind], "shape": list(shapes[name]),
                        "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def fill(file: IO[bytes]) -> None:
        file.write(struct.pack("<Q", len(text)) + text + table.stats.tobytes()
                   + lost.stats.tobytes())
        for block in gathered(parts, order):
            file.write(block)
        file.write(names.tobytes() + lost_names.tobytes())

    files.write(place, fill, "--index")


def gathered(parts: list[Tensor], order: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of the rows `order` (N,) of `parts`, counted through all of them."""
    ends = np.cumsum([len(part) for part in parts])
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        block = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
        for part, end in zip(parts, ends.tolist()):
            mine = (end - len(part) <= rows) & (rows < end)
            block[mine] = part.numpy()[rows[mine] - (end - len(part))]
        yield block


# ----------------------------------------------------------------------------------------- reading


def header_of(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says of it; {} of anything else."""
    try:
        if not path.is_file():
            return {}
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            told = json.loads(file.read(length))["__metadata__"] if length < LONGEST_HEADER else {}
        return told if all(isinstance(value, str) for value in told.values()) else {}
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError,
            struct.error):
        return {}


def is_index(path: Path) -> bool:
    """Whether a file says that it is an index, whole or damaged."""
    return header_of(path).get("format", "").startswith("fne-search-")


def read_index(place: Path, marks: Marks, dim: int) -> Index | None:
    """The index in a file; None where there is none, or a warning tells that it is damaged.

    Raises:
        InputError: something else is there, or the index of another model or folder.
    """
    if not os.path.lexists(place) or place.is_file() and place.stat().st_size == 0:
        return None
    if place.is_file() and not os.access(place, os.R_OK):
        raise InputError(f"--index {place} may not be read: name another file")
    told = header_of(place)
    if not is_index(place):
        raise InputError(f"--index {place} is no index of search.py: {AGAIN}")
    wanted = marks.header()
    if told.get("model") != wanted["model"]:
        raise InputError(f"--index {place} is of another model, or of another --precision: {AGAIN}")
    folder = Path(os.fsdecode(unquote_to_bytes(told.get("photos", ""))))
    if told.get("photos") != wanted["photos"] and is_folder(folder):
        raise InputError(f"--index {place} is of another folder, {folder}: name another file")
    try:
        with safetensors.safe_open(place, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        return index_of(tensors, dim)
    except Exception as error:  # of several kinds, as bytes come
        warn(f"--index {place} is damaged and made anew ({one_line(error)[:200]})")
        return None


def whole_index(place: Path, marks: Marks, dim: int) -> Index:
    """An index that is searched as it is: its names will be used, so they must stay inside.

    Raises:
        InputError: there is none, or not a whole one of this model and folder.
    """
    index = read_index(place, marks, dim)
    if index is None:
        raise InputError(f"--as_is: there is no whole index {place} yet: search without the flag "
                         "first")
    if any(map(leads_out_of_folder, index.photos.names)):
        raise InputError(f"--index {place} names photos outside of the folder: {AGAIN}")
    return index


def is_folder(path: Path) -> bool:
    """Whether there is a folder; a moved one's index serves at its new place."""
    try:
        return path.is_absolute() and path.is_dir()
    except (OSError, ValueError):
        return False


def index_of(tensors: dict[str, Tensor], dim: int) -> Index:
    """An `Index` of what a file holds; ValueError where that is not what `write_index` writes."""
    if {name: value.dtype for name, value in tensors.items()} != TENSORS:
        raise ValueError("other tensors")
    embeds = tensors["embeddings"]
    if embeds.ndim != 2 or embeds.shape[1] != dim:
        raise ValueError(f"embeddings {tuple(embeds.shape)}")
    photos, broken = (read_table(tensors[f"{kind}names"], tensors[f"{kind}stats"])
                      for kind in ("", "broken_"))
    if len(photos.names) != len(embeds):
        raise ValueError(f"{len(photos.names)} names of {len(embeds)} embeddings")
    return Index(photos, embeds, broken)


def read_table(names: Tensor, stats: Tensor) -> Table:
    """The table of names, which stay mapped, with a zero byte between two."""
    letters = names.numpy()
    ends = np.append(np.flatnonzero(letters == 0), len(letters)) if len(letters) else np.empty(0)
    texts = Texts(letters, ends, gap=1, errors="surrogateescape")  # as `os.fsdecode`
    if stats.shape != (len(texts), 2) or any(
            left >= right for left, right in itertools.pairwise(texts)):
        raise ValueError("names out of order")
    return Table(texts, stats.numpy())
