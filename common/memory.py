"""Memory that is freed and asked for again in the next batch."""

import ctypes
import os
import sys

KEPT = 256 * 2**20  # bytes; what is larger goes back to the system when it is freed
KEPT_BEFORE_2_35 = 32 * 2**20  # the most that an older glibc takes
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of its malloc.h
USERS = "MALLOC_MMAP_", "MALLOC_TRIM_", "MALLOC_TOP_"  # variables of the environment that hold


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, for what is asked for next.

    By itself glibc gives large blocks back at once, and the system fills each new one with zeros,
    page by page: on a CPU that can take longer than the encoder whose activations they are. What a
    user says of it in the environment holds.

    Returns:
        Whether anything was changed: not without glibc.
    """
    if (any(name.startswith(USERS) for name in os.environ)
            or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:  # another C library
        return False
    kept = any(mallopt(MMAP_THRESHOLD, size) for size in (KEPT, KEPT_BEFORE_2_35))
    return bool(kept and mallopt(TRIM_THRESHOLD, 2**31 - 1))
