"""Freed memory is kept for the next batch, in place of being given back to the system after each.

A pass makes and drops the same large tensors batch after batch.  glibc gives freed memory at the end of its heap back
at once, so that every batch pays for the same pages anew: up to a tenth of the time of a pass on a CPU.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

KEPT = 256 << 20  # bytes at the end of the heap that are not given back
MAPPED = 32 << 20  # bytes of an allocation that is a mapping of its own, which goes back when it is freed
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_OF_USERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc once to keep what is freed; whether it was told: not elsewhere, nor where the user has set it."""
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _OF_USERS):
        return False
    try:
        tell = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(tell(_TRIM_THRESHOLD, KEPT)) and bool(tell(_MMAP_THRESHOLD, MAPPED))
