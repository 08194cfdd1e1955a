"""Files that a command writes: whole or not at all, and nobody else's overwritten."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from common.errors import InputError, one_line, reraise_out_of_memory

LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, of Linux and its file systems


def read_bytes(path: Path) -> bytes:
    """A whole file; OSError where it cannot be read or is none that ends, such as a pipe."""
    if path.exists() and not path.is_file():
        raise OSError("it is no file")
    return path.read_bytes()


def read_json(path: Path, most: int | None = None):
    """The parsed file; InputError where it cannot be read, is not json, or has above `most` bytes.
    """
    try:
        if most is not None and path.stat().st_size > most:
            raise OSError("it is too large")
        return json.loads(read_bytes(path).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as json: {one_line(error)}") from error


def write(path: Path, content: bytes | Callable[[IO[bytes]], None], what: str) -> None:
    """Write a file so that `path` always holds a whole one: beside, flushed, renamed.

    The former one stays until the new one is on the disk, so there must be room for both.

    Args:
        content: the bytes, or a function that writes them to the open file.
        what: the flag, or the kind of file, to begin an error with.

    Raises:
        InputError: the folder cannot be written or the disk is full; `path` is as it was.
    """
    part = path.with_name(f"{path.name[:200]}.part")
    try:
        with open(part, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        reraise_out_of_memory(error)
        # Where the disk is full, torch tells of its own file format instead.
        reason = "no room" if isinstance(error, RuntimeError) else one_line(error)
        raise InputError(f"{what} {path} cannot be written ({reason}): free some space or name "
                         "another place; the last one is untouched") from error
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Have the disk keep a rename too. Some network file systems refuse; they need none."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def output_place(path: Path, flag: str, is_own: Callable[[Path], bool], inputs: list[Path]) -> Path:
    """Where `write` may put the output of a flag: `path`, or what it links to; its folder is made.

    Args:
        is_own: whether a file that is there already is of the kind that the flag writes.
        inputs: files that the command reads, and other outputs.

    Raises:
        InputError: something else is there, or it is one of `inputs`.
    """
    place = Path(os.path.realpath(path))
    if place in {Path(os.path.realpath(other)) for other in inputs}:
        raise InputError(f"{flag} {path} is read or written by this command for something else: "
                         "name another file")
    if os.path.lexists(place) and not (place.is_file() and (
            place.stat().st_size == 0 or is_own(place))):
        raise InputError(f"{flag} {path} cannot be written: what is there already is no file that "
                         f"{flag} writes; name another one")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written ({one_line(error)}): name another place"
                         ) from error
    return place


def user_cache(name: str) -> Path | None:
    """The folder `name` of the user's cache, made or not; None where the user has none."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    cache = cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")
    return Path(cache) / name if os.path.isabs(cache) else None


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: names of files, and texts from files, may hold halves of
    letters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_path(path: Path, flag: str) -> None:
    """Raise InputError where no file can have this name."""
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:
        name = b"\0"
    if b"\0" in name or len(name) >= LONGEST_PATH or max(map(len, name.split(b"/"))) > LONGEST_NAME:
        raise InputError(f"{flag} {str(path)[:60]}: no file can have this name")


def leads_out_of_folder(name: str) -> bool:
    """Whether a photo's name is no path inside a folder."""
    return name.startswith("/") or ".." in name.split("/")
