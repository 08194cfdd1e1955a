"""Tar shards in the WebDataset layout: which ones a pattern names, and bytes of a photo inside one.

`shards/{00000..00331}.tar` names 332 files. A photo in one of them is a `TarPhoto`: its bytes are
read at their place, so photos are found at random as in a folder, in any order, by any process.
"""

import functools
import io
import itertools
import os
import re
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from common.errors import InputError
from common.files import open_file

SUFFIX = ".tar"
COMPRESSED = ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"
MOST_SHARDS = 10**6
LARGEST_HEADER = 2**20  # bytes
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d{1,15})\.\.(\d{1,15})")
# Files that a process keeps open: a share of what it may open, and no more than serve.
MOST_OPEN = max(8, min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


class Shard(NamedTuple):
    """A tar file as it was when it was looked at."""

    path: str
    size: int  # bytes
    changed: int  # time of the last change, in nanoseconds


class TarPhoto(NamedTuple):
    """A photo inside a shard. It stands wherever the `Path` of a photo in a folder does.

    Attributes:
        header: the place of its header in the shard, which holds its name.
        offset: the place of its first byte.
        size: in bytes.
    """

    shard: Shard
    header: int
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard.path}: {self.member}"

    @property
    def member(self) -> str:
        """Its path in the shard; of a shard that cannot be read any more, its place there."""
        try:
            return member_name(self.shard, self.header)
        except (InputError, OSError):
            return f"the photo at byte {self.offset:,}"

    @property
    def name(self) -> str:
        """The shard's name and its path in there."""
        return f"{os.path.basename(self.shard.path)}/{self.member}"

    @property
    def identity(self) -> tuple:
        """Return what identifies the photo, however its shard is named."""
        return real_path(self.shard.path), self.offset

    def open(self) -> io.BytesIO:
        """Return its bytes, as a file."""
        return io.BytesIO(read_at(self.shard, self.offset, self.size))

    def ends(self, length: int) -> tuple[int, bytes, bytes]:
        """Return its size and its first and last bytes, `length` of each."""
        length = min(length, self.size)
        return self.size, *(read_at(self.shard, self.offset + start, length)
                            for start in (0, self.size - length))

    def state(self) -> str:
        """Return a text that is another one where its bytes may be."""
        return (f"{os.path.basename(self.shard.path)!r} {self.offset} {self.size} "
                f"{self.shard.size} {self.shard.changed}")


real_path = functools.lru_cache(maxsize=2**16)(os.path.realpath)


def member_name(shard: Shard, header: int) -> str:
    """Return the path of a file in a shard whose header begins at `header`.

    Raises:
        InputError: of `read_at`.
    """
    block = read_at(shard, header, tarfile.BLOCKSIZE)
    if block[156:157] in (b"0", b"\0"):  # a plain header, as nearly all are
        name = block[:100].partition(b"\0")[0]
        folder = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
        text = (folder + b"/" * bool(folder) + name).decode("utf-8", "surrogateescape")
    else:  # a long name has headers of its own before this one
        try:
            with open_file(shard.path) as file:
                file.seek(header)
                with tarfile.open(fileobj=HeaderFile(file), mode="r:") as tar:
                    text = tar.next().name
        except (OSError, tarfile.TarError, ValueError, AttributeError) as error:
            raise changed(shard) from error
    return text.removeprefix("./")


class HeaderFile:
    """A tar file of which headers are read: none of more than `LARGEST_HEADER` bytes, which
    `tarfile` would read at once."""

    def __init__(self, file: IO[bytes]):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Read some bytes.

        Raises:
            tarfile.ReadError: these are too many.
        """
        if size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


def key_and_suffix(name: str) -> tuple[str, str]:
    """Return a sample's key and, in lower case, what of the sample a file is: of "a/1.JPG", "a/1"
    and "jpg"."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


# ----------------------------------------------------------------------------------------- patterns


def is_shards(path: Path | None) -> bool:
    """Return whether a path, maybe with braces, names tar files and not a folder."""
    if path is None or path.is_dir():
        return False
    # What braces hold does not matter here, but for a suffix.
    ends = BRACES.sub(lambda found: found[1], str(path)).lower()
    return ends.endswith((SUFFIX, *COMPRESSED))


def find_shards(pattern: Path) -> tuple[Shard, ...]:
    """Return the shards that a pattern names, in its order.

    Raises:
        InputError: the braces cannot be read, or a shard is missing, compressed or named twice.
    """
    paths = [str(pattern)] if pattern.is_file() else list(expanded(str(pattern)))
    other = next((path for path in paths if not path.lower().endswith(SUFFIX)), None)
    if other is not None:
        raise InputError(f"shards {pattern}: {other} is no .tar; a compressed one must be unpacked "
                         "first, since only a plain tar can be read at any place")
    paths = list(map(os.path.expanduser, paths))  # which no shell does in quotes
    shards, missing = [], []
    for path in paths:
        try:
            if not os.path.isfile(path):  # a pipe might never end
                raise FileNotFoundError
            state = os.stat(path)
            shards.append(Shard(path, state.st_size, state.st_mtime_ns))
        except (OSError, ValueError):
            missing.append(path)
    if missing:
        raise InputError(f"{len(missing):,} of {len(paths):,} shards {pattern} are missing, such "
                         f"as {missing[0]}: name those that are there, as "
                         "'shards/{00000..00331}.tar'")
    if len(set(map(os.path.realpath, paths))) < len(paths):
        raise InputError(f"shards {pattern}: one is named twice")
    return tuple(shards)


def expanded(pattern: str) -> Iterator[str]:
    """Yield what a pattern with `{00000..00331}` and `{a,b}` stands for, the last braces first."""
    texts = BRACES.split(pattern)  # text, inside of braces, text, ...
    if any(set(text) & set("{}") for text in texts[::2]):
        raise InputError(f"shards {pattern}: braces must be closed, and none may be inside others")
    choices = [brace_choices(inside, pattern) for inside in texts[1::2]]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MOST_SHARDS:
        raise InputError(f"shards {pattern}: these are {count:,}, more than {MOST_SHARDS:,}: make "
                         "them larger")
    for chosen in itertools.product(*choices):
        yield "".join(itertools.chain(*zip(texts[::2], chosen), texts[-1:]))


def brace_choices(inside: str, pattern: str) -> "list[str] | Numbers":
    """Return the texts that one pair of braces stands for."""
    if found := RANGE.fullmatch(inside):
        return Numbers(*found.groups())
    if "," in inside:
        return inside.split(",")
    raise InputError(f"shards {pattern}: {{{inside}}} is neither a range such as {{00000..00331}} "
                     "nor a choice such as {a,b}")


class Numbers:
    """The numbers of `first..last` with the zeros in front that either has, as shells count."""

    def __init__(self, first: str, last: str):
        step = 1 if int(last) >= int(first) else -1
        self.numbers = range(int(first), int(last) + step, step)
        padded = [text for text in (first, last) if text != "0" and text.startswith("0")]
        self.width = max(map(len, (first, last))) if padded else 0

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[str]:
        return (f"{number:0{self.width}}" for number in self.numbers)


# ------------------------------------------------------------------------------------------ reading


class Descriptor:
    """An open file, closed with the last use of it."""

    def __init__(self, shard: Shard):
        self.number = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
        state = os.fstat(self.number)
        self.is_same = (state.st_size, state.st_mtime_ns) == (shard.size, shard.changed)

    def __del__(self, close=os.close):  # `os` may be gone when Python ends
        if hasattr(self, "number"):
            close(self.number)


# A process that is forked has these too: reading at a place moves nothing that they share.
open_shard = functools.lru_cache(maxsize=MOST_OPEN)(Descriptor)


def read_at(shard: Shard, offset: int, size: int) -> bytes:
    """Return `size` bytes of a shard from `offset` on.

    Raises:
        InputError: it cannot be read, or is no longer the file that it was.
    """
    try:
        descriptor = open_shard(shard)
        content = os.pread(descriptor.number, size, offset) if descriptor.is_same else b""
        while 0 < len(content) < size:  # a read gives 2 GiB at most
            more = os.pread(descriptor.number, size - len(content), offset + len(content))
            if not more:
                break
            content += more
    except FileNotFoundError as error:
        raise InputError(f"shard {shard.path} is missing") from error
    if len(content) < size or not descriptor.is_same:
        open_shard.cache_clear()
        raise changed(shard)
    return content


def changed(shard: Shard) -> InputError:
    """Return the error of a shard that is no longer the file that it was."""
    return InputError(f"shard {shard.path} has changed since it was looked at: start again")
