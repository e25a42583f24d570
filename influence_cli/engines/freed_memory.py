"""Freed memory is kept for the next batch, in place of being given back to the system after each.

A pass makes and drops the same large tensors batch after batch.  glibc gives freed memory at the end of its heap back
at once, so that every batch pays for the same pages anew: up to a tenth of the time of a pass on a CPU.
"""

from __future__ import annotations

from influence_cli.memory import tell_allocator

KEPT = 256 << 20  # bytes at the end of the heap that are not given back
MAPPED = 32 << 20  # bytes of an allocation that is a mapping of its own, which goes back when it is freed


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; whether it was told: not elsewhere, nor where the user has set it."""
    return tell_allocator(KEPT, MAPPED)
