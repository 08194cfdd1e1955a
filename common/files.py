"""Files that a command reads and writes: whole or not at all, and nobody else's overwritten."""

import contextlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

from common.errors import InputError, one_line, reraise_out_of_memory
from common.temporary import remove_left_overs, temporary_file

MAX_BYTES = 2**31  # of any file that is read as a whole
MAX_RESULT_BYTES = 2**24  # of files with the results of a command, which have some kB
MAX_DEPTH = 200  # of JSON content that comes from anywhere
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4096  # of Linux and its file systems


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        OSError: If it cannot be read, or is a folder, or a pipe or device, which may never end.
    """
    # Without waiting for somebody to write into a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no file")
    return open(descriptor, "rb")


def open_log(path: Path) -> IO[bytes]:
    """Open a log for appending; nothing that is in it is lost.

    Raises:
        OSError: If it cannot be written, or a folder, link, pipe or device is there.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no file")
    return open(descriptor, "ab")


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a whole file.

    Args:
        path: The file.
        max_bytes: The largest size that is read.

    Raises:
        OSError: If it cannot be read, is larger, or is a folder, pipe or device.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        # One byte more, should the file grow; files of /proc have no size.
        content = file.read(max(size, 2**16) + 1) if size <= max_bytes else b""
    if max(size, len(content)) > max_bytes:
        raise OSError(f"it has more than {max_bytes:,} bytes")
    return content


def read_start(path: Path, count: int = 2**10) -> bytes:
    """Read the first `count` bytes of a file; b"" if it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read(count)
    except OSError:
        return b""


def read_json(path: Path, max_bytes: int = MAX_BYTES):
    """Read and parse a JSON file.

    Args:
        path: The file.
        max_bytes: The largest size that is read.

    Raises:
        InputError: If the file cannot be read, is larger, or is not JSON.
    """
    try:
        return json.loads(read_bytes(path, max_bytes).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as json: {one_line(error)}") from error


def check_plain(value: object) -> None:
    """Check JSON content of unknown origin for what its users cannot work with, at any depth.

    Raises:
        ValueError: If it is nested deeper than `MAX_DEPTH`, holds an integer of more than 64 bits,
            or a text with half a letter (a lone surrogate).
    """
    waiting = [(value, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, str):
            if not value.isascii() and not is_unicode(value):
                raise ValueError("a text in it is no Unicode")
        elif isinstance(value, int) and not -2**63 <= value < 2**63:
            raise ValueError("a number in it is too large")


def write(path: Path, content: bytes | Callable[[IO[bytes]], None], description: str) -> None:
    """Write a file so that `path` holds either the whole former content or the whole new one.

    The content is written to a temporary file beside it, flushed to the disk, and renamed. The disk
    must have room for both. The new file has the permissions of the former one.

    Args:
        path: The file.
        content: The bytes, or a function that writes them to the open file.
        description: The flag or the kind of file, with which the error message begins.

    Raises:
        InputError: If a folder, pipe or device is there, the folder cannot be written, or the disk
            is full; `path` is as it was.
    """
    try:
        former = path.lstat() if os.path.lexists(path) else None
        if former is not None and not stat.S_ISREG(former.st_mode) and not path.is_symlink():
            raise FileExistsError("what is there is no file")
        with temporary_file(path.parent) as (file, temporary):
            if former is not None and stat.S_ISREG(former.st_mode):
                os.fchmod(file.fileno(), stat.S_IMODE(former.st_mode))
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        reraise_out_of_memory(error)
        # On a full disk torch raises a RuntimeError that speaks of its own file format.
        reason = "no room" if isinstance(error, RuntimeError) else one_line(error)
        raise InputError(f"{description} {path} cannot be written ({reason}): free some space or "
                         "name another place; the last one is untouched") from error
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush the renames in a folder to the disk.

    Some network file systems refuse it, and need none.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def resolve_output(
    path: Path, flag: str, is_replaceable: Callable[[Path], bool], other_files: list[Path]
) -> Path:
    """Return where `write` puts the output of a flag, and create its folder.

    Args:
        path: The flag's value; links are followed.
        flag: The flag, with which error messages begin.
        is_replaceable: Whether a file that is there already is of the kind that the flag writes.
            Empty files may always be replaced.
        other_files: Files that the command reads, and its other outputs.

    Raises:
        InputError: If something else is there, if it is one of `other_files`, or if the folder
            cannot be created.
    """
    target = Path(os.path.realpath(path))
    if target in {Path(os.path.realpath(other)) for other in other_files}:
        raise InputError(f"{flag} {path} is read or written by this command for something else: "
                         "name another file")
    if os.path.lexists(target):
        may_replace = target.is_file() and (target.stat().st_size == 0 or is_replaceable(target))
        if not may_replace:
            raise InputError(f"{flag} {path} cannot be written: what is there already is no file "
                             f"that {flag} writes; name another one")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written ({one_line(error)}): name another place"
                         ) from error
    remove_left_overs(target.parent)
    return target


def user_cache_folder(name: str) -> Path | None:
    """Return the folder `name` in the user's cache, or None if the user has no cache.

    The folder need not exist.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        cache = os.path.expanduser("~/.cache")
    return Path(cache) / name if os.path.isabs(cache) else None


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8.

    Names of files, and texts from files, may hold single surrogates, which cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_path(path: Path, flag: str) -> None:
    """Check that a file can have this path.

    Args:
        path: The flag's value.
        flag: The flag, with which the error message begins.

    Raises:
        InputError: If the path holds a zero byte, cannot be encoded, or is too long.
    """
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:
        is_possible = False
    else:
        longest_part = max(map(len, name.split(b"/")))
        is_possible = (b"\0" not in name and len(name) < MAX_PATH_BYTES
                       and longest_part <= MAX_NAME_BYTES)
    if not is_possible:
        raise InputError(f"{flag} {str(path)[:60]}: no file can have this name")


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path leads to a place in a folder when all links are followed.

    Links of the Hub's cache, from a snapshot to the blobs beside it, lead to no other place.
    """
    root = Path(os.path.realpath(folder))
    if root.parent.name == "snapshots":
        root = root.parent.parent
    return Path(os.path.realpath(path)).is_relative_to(root)


def leads_out_of_folder(name: str) -> bool:
    """Return whether a photo's name, as a path, leads out of the folder of photos."""
    return name.startswith("/") or ".." in name.split("/")
