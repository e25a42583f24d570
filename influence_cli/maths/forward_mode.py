"""Torch's forward mode, by one thread of a process at a time.

``torch.autograd.forward_ad`` keeps its level in a global of the module, and ``torch.func.jvp`` opens that level: of two
threads at work, the first to leave ends the level of the other, whose pass then fails.

A derivative may be taken inside another:

    >>> with FORWARD_MODE, FORWARD_MODE:
    ...     print("its own turn, twice")
    its own turn, twice
"""

from __future__ import annotations

import threading

FORWARD_MODE = threading.RLock()
