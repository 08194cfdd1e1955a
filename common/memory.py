"""Memory that is free, and memory that is freed after a batch and allocated again for the next."""

import ctypes
import os
import sys

# Bytes; larger blocks go back to the system when they are freed.
MMAP_BYTES = 256 * 2**20
MMAP_BYTES_BEFORE_2_35 = 32 * 2**20  # the most that an older glibc takes
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from glibc's malloc.h
# Variables of the environment by which users set the same; theirs come first.
USER_VARIABLES = "MALLOC_MMAP_", "MALLOC_TRIM_", "MALLOC_TOP_"


def available_memory() -> int | None:
    """Return the bytes that this process can still take, or None where the system does not say.

    That is what Linux counts as available, or what a limit of the process's control group leaves.
    """
    free = []
    try:
        with open("/proc/meminfo") as file:
            free += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvail")]
    except (OSError, ValueError):
        pass
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open(
                "/sys/fs/cgroup/memory.current") as used:
            free.append(int(limit.read()) - int(used.read()))
    except (OSError, ValueError):  # no such group, or "max"
        pass
    return max(0, min(free)) if free else None


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next allocation.

    By itself glibc gives large blocks back to the system at once, and the system fills each new
    block with zeros, page by page. On a CPU that can take longer than the encoder whose activations
    the blocks hold. Settings of the user's environment are respected.

    Returns:
        Whether anything was changed. It is not where there is another C library.
    """
    set_by_user = (any(name.startswith(USER_VARIABLES) for name in os.environ)
                   or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""))
    if set_by_user or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    accepted = any(mallopt(MMAP_THRESHOLD, size) for size in (MMAP_BYTES, MMAP_BYTES_BEFORE_2_35))
    return bool(accepted and mallopt(TRIM_THRESHOLD, 2**31 - 1))
