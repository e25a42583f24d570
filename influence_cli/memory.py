"""What is freed goes back to the system, so that a process is as large as what it holds.

Of a million rows every column is an array of some megabytes.  Left to itself glibc soon puts those on its heap, where
what is freed between two that stay is of use to nobody else, and Arrow's own allocators keep what they have had.
Smaller pieces, such as those that columns are read in, stay on the heap: it is trimmed where many of them went.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Any

COLUMN = 4 << 20  # bytes of an array that is a mapping of its own, which goes back when it is freed
SLACK = 16 << 20  # bytes at the end of the heap that are kept
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_OF_USERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def _of_c(name: str) -> Any:
    """A function of glibc; None elsewhere, and where the user has set the allocator."""
    if not sys.platform.startswith("linux") or any(set_by in os.environ for set_by in _OF_USERS):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):  # another C library
        return None


def tell_allocator(kept: int, mapped: int) -> bool:
    """Tell glibc how many free bytes to keep, and from which size on an array is a mapping of its own; True if told."""
    tell = _of_c("mallopt")
    return tell is not None and bool(tell(_TRIM_THRESHOLD, kept)) and bool(tell(_MMAP_THRESHOLD, mapped))


@functools.cache
def give_back_freed_memory() -> bool:
    """Tell glibc, and Arrow where it is not imported yet, once to give back what is freed; whether glibc was told."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    return tell_allocator(SLACK, COLUMN)


def in_a_command() -> bool:
    """Whether this process is a command of ours, and not a program that calls us."""
    return bool(give_back_freed_memory.cache_info().currsize)


def trim_memory() -> None:
    """Give back what is free within the heap, after many small pieces of a large thing were freed.

    In a command what is freed from now on is given back too, whatever a pass has told glibc meanwhile.
    """
    trim = _of_c("malloc_trim")
    if trim is None:
        return
    if in_a_command():
        tell_allocator(SLACK, COLUMN)
    trim(0)
