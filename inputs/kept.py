"""Arrays that take long to make, kept in a folder and mapped when a later run asks for the same.

An entry is a folder: a file for each array, and `meta.json` with the whole key, and each array's
type, length and checksum. It is written under another name and renamed when it is whole. A wrong
hit would train on other data without a word, so a key holds contents and no times: digests of the
files that are read (of tar shards, sizes and times), every option that enters, and the reading code
itself. An entry whose sums do not agree is made anew. A folder that cannot be written costs time,
never the run.
"""

import functools
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import tokenizers

from common.errors import InputError, one_line
from common.files import flush_folder, user_cache_folder
from common.locks import wait_for_lock
from common.terminal import print_note, warn
from inputs.arrays import Parts, mapped

VERSION = 1
META = "meta.json"
CHECKED = 2**24  # bytes of which a sum is taken at a time
TYPES = {"|u1", "<u2", "<u4", "<i4", "<i8"}  # of arrays: numbers alone

Arrays = dict[str, np.ndarray]


def kept(
    folder: Path | None, kind: str, key: Callable[[], dict], fill: Callable[[Parts], None]
) -> Arrays:
    """The arrays that `fill` writes, in memory; or with a folder mapped from there, where they are
    kept for whoever asks for the same `key` again.

    Args:
        kind: what they are, for messages and the name of the entry.
        key: gives all that the arrays depend on, as plain values; asked again when they are made.

    Raises:
        InputError: of `fill`; or the key is another one when they are made.
    """
    if folder is None:
        return in_memory(fill)
    try:
        return entry(folder, kind, key, fill)
    except OSError as error:
        warn(f"--cache {folder} cannot be used ({one_line(error)}): {kind} are in memory, for this "
             "run alone")
        return in_memory(fill)


def in_memory(fill: Callable[[Parts], None]) -> Arrays:
    parts = Parts()
    fill(parts)
    return parts.finish()


def cache_folder(asked: Path | None) -> Path | None:
    """Where arrays are kept: where `asked`, or in the user's cache; None where there is none."""
    return asked if asked is not None else user_cache_folder("fne")


def entry(
    folder: Path, kind: str, key: Callable[[], dict], fill: Callable[[Parts], None]
) -> Arrays:
    """The arrays of a key from `folder`, where they are made if need be.

    Raises:
        OSError: the folder cannot be written.
    """
    wanted = key() | {"program": program()}
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    place = folder / f"{kind.replace(' ', '-')}-{digest[:32]}"
    found, _ = read(place, wanted)
    if found is not None:
        return found
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # captions may be private
    holds = wait_for_lock(folder / f"{place.name}.lock", lambda holder: print_note(
        f"--cache {folder}: waiting for {holder}, which makes the same {kind}"))
    try:
        found, fault = read(place, wanted)  # another process may have made it meanwhile
        if found is not None:
            return found
        if fault:
            warn(f"{place} is damaged ({fault}), and made anew")
        return make(place, wanted, key, fill, alone=holds is not None)
    finally:
        if holds is not None:
            holds.close()


def make(
    place: Path, wanted: dict, key: Callable[[], dict], fill: Callable[[Parts], None], alone: bool
) -> Arrays:
    """Make an entry; `alone` tells that no other process makes the same one."""
    for old in place.parent.glob(f"{place.name}.*.part") if alone else ():
        shutil.rmtree(old, ignore_errors=True)  # of a process that was killed
    work = place.with_name(f"{place.name}.{socket.gethostname()}-{os.getpid()}.part")
    work.mkdir(mode=0o700)
    parts = Parts(work)
    try:
        fill(parts)
        parts.finish()
        if key() | {"program": program()} != wanted:
            files = ", ".join(name for name, _ in wanted.get("files", ())) or place.name
            raise InputError(f"{files} has changed while it was read: start again when nobody "
                             "writes to it any more")
        for name in parts.told:
            flush(work / name)
        (work / META).write_text(json.dumps({"key": wanted, "arrays": parts.told}))
        flush(work / META)
        if alone:
            shutil.rmtree(place, ignore_errors=True)  # a damaged one
        try:
            os.rename(work, place)
        except OSError:
            if not place.is_dir():
                raise  # or else a process that no lock kept out was faster
        flush_folder(place.parent)
        found, fault = read(place, wanted)
        if found is None:
            raise OSError(f"{place} cannot be read back: {fault}")
        return found
    finally:
        parts.abandon()
        shutil.rmtree(work, ignore_errors=True)


def flush(path: Path) -> None:
    """Have the disk keep a file, before its folder gets its name."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read(place: Path, wanted: dict) -> tuple[Arrays | None, str]:
    """The arrays of an entry, mapped; or None, and what is wrong with it where there is one."""
    if not place.is_dir():
        return None, ""
    try:
        meta = json.loads((place / META).read_text())
        if meta["key"] != wanted:
            raise ValueError("it is of something else")
        if not all(name.isidentifier() and kind in TYPES
                   for name, (kind, _, _) in meta["arrays"].items()):
            raise ValueError("it holds other arrays")
        arrays = {name: mapped(place / name, kind, length)
                  for name, (kind, length, _) in meta["arrays"].items()}
        for name, (_, _, told) in meta["arrays"].items():
            if file_sum(place / name) != told:
                raise ValueError(f"{name} has changed")
        return arrays, ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return None, one_line(error)


def file_sum(path: Path) -> int:
    """The checksum of a file, as of an array that is written by `Parts`."""
    total, buffer = 0, bytearray(CHECKED)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total = crc32(memoryview(buffer)[:count], total)
    return total


# --------------------------------------------------------------------------------- what a key holds


def file_digest(path: Path) -> str:
    """A digest of a file's content: of 400 MB less than a second."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def program() -> list[str]:
    """What reads and cleans: the code of this folder, and what it rests on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return [str(VERSION), digest.hexdigest(), sys.version, tokenizers.__version__, np.__version__]
