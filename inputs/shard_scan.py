"""What is in a tar shard: its photos, where they lie, and their captions.

A sample is what shares a key, its path up to the first dot of the file's name, wherever in the
shard its parts are: a photo, and `.txt`, one caption, or `.json`, one or several. Headers, captions
and the photos' first and last bytes are read, and no pixel of a photo that looks whole.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, NamedTuple

import numpy as np

from common.errors import InputError, one_line, reraise_out_of_memory
from common.files import is_unicode
from inputs.photos import SUFFIXES, TooLarge, open_photo, photo_fault
from inputs.records import is_blank, listed
from inputs.shards import Shard, TarPhoto

PHOTOS = {suffix.removeprefix(".") for suffix in SUFFIXES}
TEXT, JSON = "txt", "json"
CAPTION_KEYS = "caption", "captions", "text", "sentences"
LONGEST_CAPTION = 2**20  # bytes of a file of captions
LARGEST_PHOTO = 2**30  # bytes, which are read at once
BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
AGAIN = "fetch it again, or pack it anew"

# What a photo of a shard is good for, by its number in the index.
PAIR, NO_CAPTION, BAD_CAPTION, TWO_PHOTOS, BROKEN, TOO_LARGE = range(6)


class Block(NamedTuple):
    """What is in a shard: N photos in its order, and M captions in the photos' order."""

    offsets: np.ndarray  # (N,) int64
    sizes: np.ndarray  # (N,) int64; of a whole photo up to 2**30
    states: np.ndarray  # (N,) uint8, PAIR and so on
    names: list[str]  # (N,) paths in the shard
    photo_of_text: np.ndarray  # (M,) int64
    texts: list[str]  # (M,)
    captions_alone: int  # samples with captions and no photo
    first_alone: str  # such as this one


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    size: int


@dataclass
class Sample:
    """The files of a tar that share a key."""

    photos: list[int] = field(default_factory=list)  # by number in the shard
    texts: dict[str, list[Member]] = field(default_factory=dict)


def scan_shard(shard: Shard, caption_column: str | None) -> Block:
    """Read a shard through.

    Args:
        caption_column: key of the captions in `.json`, else one of `CAPTION_KEYS`.

    Raises:
        InputError: it is no whole, plain tar file, or its captions lie under a key that it does not
            name alone.
    """
    photos: list[Member] = []
    samples: dict[str, Sample] = {}
    try:
        with open(shard.path, "rb") as file:
            for member in files_of(shard, file):
                key, suffix = key_and_suffix(member.name)
                if suffix in PHOTOS:
                    samples.setdefault(key, Sample()).photos.append(len(photos))
                    photos.append(member)
                elif suffix in (TEXT, JSON):
                    texts = samples.setdefault(key, Sample()).texts
                    texts.setdefault(suffix, []).append(member)
            return block_of(shard, file, photos, samples, caption_column)
    except OSError as error:
        reraise_out_of_memory(error)
        raise InputError(f"shard {shard.path} cannot be read: {one_line(error)}") from error


def key_and_suffix(name: str) -> tuple[str, str]:
    """A sample's key and, in lower case, what of it a file is: "a/1.JPG" is "a/1" and "jpg"."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


# ---------------------------------------------------------------------------------------- tar files


def files_of(shard: Shard, file: IO[bytes]) -> Iterator[Member]:
    """The files of a tar, in its order, but hidden ones and what macOS adds.

    Raises:
        InputError: it is compressed, no tar file, cut short or broken; a photo or caption in it is
            a link or has holes. It says behind which file.
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
        with tarfile.open(fileobj=file, mode="r:", errorlevel=1) as tar:
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
                    yield Member(name, member.offset_data, member.size)
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
    """Whether something in a tar is a file of a sample."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    if hidden or not (member.isreg() or member.islnk() or member.issym()):
        return False
    return key_and_suffix(name)[1] in PHOTOS | {TEXT, JSON}


def check_plain(shard: Shard, name: str, member: tarfile.TarInfo) -> None:
    """Raise InputError where a file's bytes do not lie in one piece behind its header."""
    if member.issparse() or not member.isreg():
        kind = "has holes" if member.issparse() else "is a link"
        raise InputError(f"shard {shard.path}: {name} {kind}, so its bytes are not there in one "
                         "piece: pack it anew with tar --dereference --hard-dereference")


def check_end(shard: Shard, file: IO[bytes], offset: int, last: str | None) -> None:
    """Raise InputError where a tar ends without the zeros that mark its end: `tarfile` takes a file
    that is cut between two members, or broken there, for a whole one."""
    file.seek(offset)
    if file.read(BLOCK) != bytes(BLOCK):
        raise InputError(f"shard {shard.path} is cut short or broken behind {last}, at byte "
                         f"{offset:,} of {shard.size:,}: {AGAIN}")


# ----------------------------------------------------------------------------------------- samples


def block_of(
    shard: Shard, file: IO[bytes], photos: list[Member], samples: dict[str, Sample],
    caption_column: str | None,
) -> Block:
    """The photos of a shard with what they are good for, and their captions."""
    states = np.zeros(len(photos), dtype=np.uint8)
    captions: dict[int, list[str]] = {}
    alone = []
    for key, sample in samples.items():
        if not sample.photos:
            alone.append(key)
        for number in sample.photos:
            states[number] = photo_state(shard, photos[number])
        if len(sample.photos) > 1:
            keep_worst(states, sample.photos, TWO_PHOTOS)
        elif sample.photos and states[sample.photos[0]] == PAIR:
            texts = sample_captions(shard, file, sample, caption_column)
            if isinstance(texts, list):
                captions[sample.photos[0]] = texts
            else:
                states[sample.photos[0]] = texts
    order = sorted(captions)
    return Block(
        np.array([photo.offset for photo in photos], dtype=np.int64),
        np.array([min(photo.size, 2**32 - 1) for photo in photos], dtype=np.int64), states,
        [photo.name for photo in photos],
        np.repeat(np.array(order, dtype=np.int64), [len(captions[number]) for number in order]),
        [text for number in order for text in captions[number]], len(alone),
        alone[0] if alone else "")


def keep_worst(states: np.ndarray, numbers: list[int], state: int) -> None:
    """Give the photos `numbers` a state, but those that are in a worse one."""
    states[numbers] = np.maximum(states[numbers], state)


def photo_state(shard: Shard, member: Member) -> int:
    """PAIR where a photo looks whole, BROKEN or TOO_LARGE."""
    if member.size > LARGEST_PHOTO:
        return TOO_LARGE
    photo = TarPhoto(shard, member.name, member.offset, member.size)
    if photo_fault(photo) is None:
        return PAIR
    try:
        open_photo(photo).close()
    except TooLarge:
        return TOO_LARGE
    except InputError:
        pass
    return BROKEN


def sample_captions(
    shard: Shard, file: IO[bytes], sample: Sample, caption_column: str | None
) -> list[str] | int:
    """The captions of a sample, or why it has none: NO_CAPTION or BAD_CAPTION.

    `.txt` goes before `.json`, which then only says more of the photo, unless the user has named a
    key of that.
    """
    order = (JSON, TEXT) if caption_column else (TEXT, JSON)
    suffix = next((suffix for suffix in order if suffix in sample.texts), None)
    if suffix is None:
        return NO_CAPTION
    members = sample.texts[suffix]
    if len(members) > 1 or members[0].size > LONGEST_CAPTION:
        return BAD_CAPTION
    try:
        text = os.pread(file.fileno(), members[0].size, members[0].offset).decode("utf-8-sig")
        found = text if suffix == TEXT else json.loads(text)
    except (ValueError, RecursionError):
        return BAD_CAPTION
    if isinstance(found, dict):
        key = caption_key(found, caption_column, f"{shard.path}: {members[0].name}")
        found = found.get(key)
        if found is None:
            return NO_CAPTION
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not found:
        return BAD_CAPTION
    texts = [text.get("raw") if isinstance(text, dict) else text for text in found]
    if not all(isinstance(text, str) and is_unicode(text) and "\0" not in text
               and not is_blank(text) for text in texts):
        return BAD_CAPTION
    return [text.strip() for text in texts]


def caption_key(sample: dict, asked: str | None, told: str) -> str | None:
    """The key that holds a sample's captions; capitals do not count. None where none does.

    Raises:
        InputError: several may.
    """
    wanted = CAPTION_KEYS if asked is None else (asked.strip().lower(),)
    found = [key for key in sample if key.lower() in wanted and sample[key] is not None]
    if len(found) > 1:
        raise InputError(f"{told} has captions under {listed(found)}: name one with "
                         "--caption_column")
    return found[0] if found else None
