"""Locks on files, so that no two processes write the same thing at once."""

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from common.errors import InputError


class LockHeld(Exception):
    """Another process has the lock. The message says which one, as "process 123"."""


def lock(path: Path) -> IO[bytes] | None:
    """Lock a file until the returned file is closed or this process ends.

    The file is created if it is not there. Processes that this one starts do not have its lock.

    Returns:
        The open file; None if it cannot be opened, or its file system has no locks. Then no other
        process is kept out.

    Raises:
        LockHeld: If another process has the lock.
        InputError: If a folder, link, pipe or device is there.
    """
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise InputError(f"{path} is no file, so it cannot be locked: remove it, or name another "
                         "place")
    # A link or pipe that comes in between is neither followed nor waited for.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = open(os.open(path, flags, 0o666), "r+b", buffering=0)
    except OSError:
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = lock_holder(file.fileno())
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return None
        raise LockHeld(holder) from error
    return file


def wait_for_lock(
    path: Path, on_wait: Callable[[str], None], seconds: float = 0.5
) -> IO[bytes] | None:
    """Lock a file as `lock` does, once no other process has the lock.

    Args:
        path: The file.
        on_wait: Called once if another process has the lock, with the message of `LockHeld`.
        seconds: The time between two tries.

    Raises:
        InputError: If a folder, link, pipe or device is there.
    """
    has_waited = False
    while True:
        try:
            return lock(path)
        except LockHeld as held:
            if not has_waited:
                on_wait(str(held))
            has_waited = True
            time.sleep(seconds)


def lock_holder(descriptor: int) -> str:
    """Return the process that has the lock on an open file: "process 123", if the system knows."""
    layout = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, process
    query = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        process = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, query))[-1]
    except (OSError, struct.error):
        process = 0
    return f"process {process}" if process > 0 else "another process"
