"""Locks on files, so that no two processes write one thing at once."""

import errno
import fcntl
import os
import struct
import time
from pathlib import Path
from typing import IO


class Held(Exception):
    """Another process has the lock; its message says which."""


def lock(path: Path) -> IO[bytes] | None:
    """Lock a file, which is made if need be, until what this gives is closed or the process ends.

    A lock of `fcntl`: worker processes do not have it. None where the file cannot be opened, or its
    file system has no locks: then nobody is kept out.

    Raises:
        Held: another process has it.
    """
    try:
        file = open(path, "ab")
    except OSError:
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = lock_holder(file.fileno())
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return None
        raise Held(holder) from error
    return file


def wait_for_lock(path: Path, told, seconds: float = 0.5) -> IO[bytes] | None:
    """`lock`, as soon as nobody else has it; `told` is called once, with who has it."""
    waits = False
    while True:
        try:
            return lock(path)
        except Held as held:
            if not waits:
                told(str(held))
            waits = True
            time.sleep(seconds)


def lock_holder(descriptor: int) -> str:
    """Who has the lock: "process 123", where the system tells."""
    layout = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, process
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        process = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[-1]
    except (OSError, struct.error):
        process = 0
    return f"process {process}" if process > 0 else "another process"
