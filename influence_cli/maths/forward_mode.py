"""Torch's forward mode, by one thread of a process at a time.

``torch.autograd.forward_ad`` keeps its level in a global of the module, and ``torch.func.jvp`` opens that level: of two
threads at work, the first to leave ends the level of the other, whose pass then fails.

    >>> import torch
    >>> with FORWARD_MODE:
    ...     torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))[1]
    tensor([1.])
"""

from __future__ import annotations

import threading

# Reentrant, since a derivative may be taken inside another.
FORWARD_MODE = threading.RLock()
