"""Draws from a seed, as ``torch.manual_seed`` gives them, without what that does for devices that are not there.

Torch tells the library of every kind of device the seed.  One that is not in use notes it for later, with the whole
call stack as text: a small model's epoch takes no longer than that.
"""

from __future__ import annotations

import functools


def seed_draws(seed: int) -> None:
    """Have everything that is drawn from now on follow from the seed."""
    import torch

    if _has_devices():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@functools.cache
def _has_devices() -> bool:
    import torch

    return torch.accelerator.is_available()
