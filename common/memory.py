"""Memory that is freed after a batch and allocated again for the next one."""

import ctypes
import os
import sys

# Bytes; larger blocks go back to the system when they are freed.
MMAP_BYTES = 256 * 2**20
MMAP_BYTES_BEFORE_2_35 = 32 * 2**20  # the most that an older glibc takes
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from glibc's malloc.h
# Variables of the environment by which users set the same; theirs come first.
USER_VARIABLES = "MALLOC_MMAP_", "MALLOC_TRIM_", "MALLOC_TOP_"


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
