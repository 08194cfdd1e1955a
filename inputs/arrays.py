"""Millions of texts, photos and rows of token ids as a few flat arrays, in memory or mapped.

A Python list of a million captions takes 100 bytes of objects for each, in every process that looks
at them, since looking at an object writes to it. An array takes its content alone, and processes
that are forked, or that map the same file, share it.
"""

import contextlib
import hashlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO
from zlib import crc32

import numpy as np

CHUNK = 2**14  # texts that are decoded or encoded together


class Lazy(Sequence):
    """A sequence whose items are made when they are asked for, by `item`; slices are such too.

    It equals any sequence of the same items, and joined to another one it is a list.
    """

    def item(self, index: int):
        """The item `index`, which is from 0 to below the length."""
        raise NotImplementedError

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Slice(self, range(len(self))[index])
        return self.item(range(len(self))[operator.index(index)])

    def __iter__(self) -> Iterator:
        return map(self.item, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None

    def __add__(self, other: Iterable) -> list:
        return [*self, *other]

    def __radd__(self, other: Iterable) -> list:
        return [*other, *self]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"<{len(self):,} items: {shown}{', ...' if len(self) > 3 else ''}>"


class Slice(Lazy):
    """The items `rows` of another."""

    def __init__(self, whole: Lazy, rows: range):
        self.whole, self.rows = whole, rows

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int):
        return self.whole.item(self.rows[index])


class Texts(Lazy):
    """N texts, of which each is decoded when it is asked for.

    Args:
        letters: uint8, the texts in UTF-8, one behind the other.
        ends: (N,) where each ends in `letters`.
        gap: bytes between two that belong to neither.
        errors: how what is no Unicode is encoded, as of `str.encode`: names of files, and json, can
            hold half a letter.
    """

    def __init__(self, letters: np.ndarray, ends: np.ndarray, gap: int = 0,
                 errors: str = "surrogatepass"):
        self.letters, self.ends, self.gap, self.errors = letters, ends, gap, errors

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """In memory."""
        parts = Parts()
        parts.add_texts("texts", list(texts))
        return cls(*rows_of(parts.finish(), "texts"))

    def __len__(self) -> int:
        return len(self.ends)

    def item(self, index: int) -> str:
        start = int(self.ends[index - 1]) + self.gap if index else 0
        return self.letters[start : int(self.ends[index])].tobytes().decode("utf-8", self.errors)

    def digest(self) -> str:
        """Of all of them, and of where each ends."""
        digest = hashlib.sha256(self.letters)
        digest.update(f"{self.ends.dtype} {self.gap} {self.errors}".encode())
        digest.update(self.ends)
        return digest.hexdigest()

    def __iter__(self) -> Iterator[str]:
        """As `item`, in a quarter of the time."""
        start = 0
        for first in range(0, len(self), CHUNK):
            ends = self.ends[first : first + CHUNK].tolist()
            block, offset = self.letters[start : ends[-1]].tobytes(), start
            for end in ends:
                yield block[start - offset : end - offset].decode("utf-8", self.errors)
                start = end + self.gap


def rows_of(arrays: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """What `Parts.add_rows` wrote as `name`: all rows in one array, and where each ends in it."""
    return arrays[name], arrays[ends_name(name)]


def ends_name(name: str) -> str:
    return f"{name}_ends"


class Parts:
    """Arrays that are written part by part: to files in `folder`, or without one in memory.

    `finish` gives them, mapped or not. `told` has by then of each its type, length and checksum.
    """

    def __init__(self, folder: Path | None = None):
        self.folder, self.told = folder, {}
        self.parts: dict[str, list] = {}  # of each array, or its open file
        self.lengths: dict[str, list[np.ndarray]] = {}  # of rows

    def add(self, name: str, part: np.ndarray) -> None:
        """Some more numbers (n,) of an array; all of its parts have one type."""
        if name not in self.parts:
            self.parts[name] = [] if self.folder is None else [open(self.folder / name, "xb")]
            self.told[name] = [part.dtype.str, 0, 0]
        told = self.told[name]
        assert part.dtype.str == told[0], f"{name}: {part.dtype} after {told[0]}"
        told[1] += len(part)
        if self.folder is None:
            self.parts[name].append(part)
        else:
            content = memoryview(np.ascontiguousarray(part)).cast("B")
            told[2] = crc32(content, told[2])
            self.parts[name][0].write(content)

    def add_rows(self, name: str, rows: np.ndarray, lengths: Sequence[int]) -> None:
        """Some more rows of an array, one behind the other, and their lengths."""
        self.add(name, rows)
        self.lengths.setdefault(name, []).append(np.array(lengths, dtype=np.uint32))

    def add_texts(self, name: str, texts: list[str]) -> None:
        """Some more texts, as rows of bytes."""
        for first in range(0, max(1, len(texts)), CHUNK):
            encoded = [text.encode("utf-8", "surrogatepass")
                       for text in texts[first : first + CHUNK]]
            self.add_rows(name, np.frombuffer(bytearray().join(encoded), dtype=np.uint8),
                          list(map(len, encoded)))

    def finish(self) -> dict[str, np.ndarray]:
        """All arrays; of rows also where each ends, in four bytes where these suffice.

        Raises:
            OSError: the disk is full, or the like.
        """
        for name, lengths in self.lengths.items():
            ends = np.concatenate(lengths).cumsum(dtype=np.int64)
            small = not len(ends) or ends[-1] < 2**32
            self.add(ends_name(name), ends.astype(np.uint32) if small else ends)
        self.lengths = {}
        if self.folder is None:
            return {name: np.concatenate(parts) for name, parts in self.parts.items()}
        for file in self.files():
            file.close()
        return {name: mapped(self.folder / name, kind, length)
                for name, (kind, length, _) in self.told.items()}

    def files(self) -> list[IO[bytes]]:
        return [] if self.folder is None else [file for file, in self.parts.values()]

    def abandon(self) -> None:
        """Close the files, also where the disk is full."""
        for file in self.files():
            with contextlib.suppress(OSError):
                file.close()


def mapped(path: Path, kind: str, length: int) -> np.ndarray:
    """The array (length,) that a file holds, and nothing else, mapped.

    It may be written to, which torch asks for, and which changes nothing in the file.

    Raises:
        ValueError: the file has another size.
        OSError: it cannot be read.
    """
    size, wanted = path.stat().st_size, length * np.dtype(kind).itemsize
    if size != wanted:
        raise ValueError(f"{path.name} has {size:,} bytes and not {wanted:,}")
    if not length:
        return np.empty(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="c", shape=(length,)).view(np.ndarray)
