"""Temporary files and folders: under names that nobody has, removed by those who made them alone.

A temporary file or folder is made under a new name, locked, and then named after its own inode. A
process that is killed leaves it behind. Such a left-over has its own inode's number in its name,
belongs to the user, and is locked by no process; a file that somebody else made, copied or renamed
has another inode, whatever its name.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

NAME = re.compile(r"\.fne-([0-9a-f]+)-[0-9a-f]{16}\.part")


def temporary_path(folder: Path, inode: int) -> Path:
    """Return a new path in a folder for a temporary file with this inode number."""
    return Path(folder) / f".fne-{inode:x}-{secrets.token_hex(8)}.part"


@contextlib.contextmanager
def temporary_file(folder: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """Make an empty file in a folder, and remove it at the end unless it was renamed.

    Its permissions are those of any new file.

    Yields:
        The file, open for writing, and its path.

    Raises:
        OSError: If the folder takes no new file.
    """
    new = Path(folder) / f".fne-{secrets.token_hex(8)}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with named_after_inode(new, os.open(new, flags, 0o666)) as (descriptor, path):
        with open(descriptor, "wb", closefd=False) as file:
            yield file, path


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make an empty folder in another one, and remove it at the end unless it was renamed.

    Raises:
        OSError: If `parent` takes no new folder.
    """
    new = Path(parent) / f".fne-{secrets.token_hex(8)}.part"
    new.mkdir()
    descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with named_after_inode(new, descriptor) as (_, path):
        yield path


@contextlib.contextmanager
def named_after_inode(new: Path, descriptor: int) -> Iterator[tuple[int, Path]]:
    """Lock and rename a new file or folder; close it at the end, and remove it unless renamed.

    Args:
        new: The path under which it was made.
        descriptor: The open file or folder.

    Yields:
        `descriptor` and the path.
    """
    path = new
    try:
        with contextlib.suppress(OSError):  # a file system without locks: it is never a left-over
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path = temporary_path(new.parent, os.fstat(descriptor).st_ino)
        new.rename(path)
        yield descriptor, path
    finally:
        os.close(descriptor)
        for left in new, path:
            remove(left)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing happens where that fails."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def check_writable(folder: Path) -> None:
    """Check that a folder takes a new file with a byte in it.

    Raises:
        OSError: If it does not.
    """
    with temporary_file(folder) as (file, _):
        file.write(b"1")
        file.flush()


def remove_left_overs(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            if NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    remove_left_over(entry)


def remove_left_over(entry: os.DirEntry) -> None:
    """Remove a file or folder named like a temporary one, if a killed process left it behind.

    Raises:
        OSError: If it cannot be opened, or a living process holds its lock.
    """
    is_folder = entry.is_dir(follow_symlinks=False)
    if not is_folder and not entry.is_file(follow_symlinks=False):
        return
    flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR  # as locks over NFS need
    descriptor = os.open(entry.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        state = os.fstat(descriptor)
        is_of_kind = stat.S_ISDIR(state.st_mode) if is_folder else stat.S_ISREG(state.st_mode)
        has_own_name = int(NAME.fullmatch(entry.name)[1], 16) == state.st_ino
        if is_of_kind and has_own_name and state.st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(Path(entry.path))
    finally:
        os.close(descriptor)
