"""The numbers of a model in another precision."""

from __future__ import annotations

import torch
from torch import nn


def in_precision(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The model, in place, with its real numbers in ``dtype`` and its complex ones in pairs of float64 or float32.

    ``Module.to`` would cast complex numbers to real ones, and drop the imaginary part.
    """
    if dtype is None:
        return model
    complex_ = torch.complex128 if dtype == torch.float64 else torch.complex64
    return model._apply(lambda t: t.to(dtype if t.is_floating_point() else complex_ if t.is_complex() else t.dtype))
