"""Convolutions on a CPU whose weights are laid out for the processor once, not in every batch.

oneDNN wants a convolution's weight in blocks that fit the processor's registers, and torch lays it out anew in every
call.  Directions and folded weights stay the same for a whole pass, so here that is done once; and a second convolution
is added to the first inside the kernel (x' W + x W'), which saves a pass over memory.  Values are in channels-last
order, as the input came.  Where torch lacks these operations, or an input is none of theirs, plain convolutions are
run: the same numbers to rounding.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Settings = tuple[Any, ...]  # of aten.convolution: stride, padding, dilation, transposed, output padding, groups

_laid_out: Any = WeakTensorKeyDictionary()  # weight -> {(version, settings, shape of a row): the weight in blocks}


@functools.cache
def available(kind: torch.dtype) -> bool:
    """Whether this torch and this processor have the kernels, and they say what plain convolutions say."""
    if not torch.backends.mkldnn.is_available() or kind not in (torch.float32, torch.bfloat16):
        return False
    try:
        if kind == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        x = torch.linspace(-1, 1, 2 * 3 * 5 * 5).view(2, 5, 5, 3).permute(0, 3, 1, 2).to(kind)
        weight, bias = torch.linspace(-1, 1, 4 * 3 * 3 * 3).view(4, 3, 3, 3).to(kind), torch.arange(4.0).to(kind)
        settings = [2, 2], [1, 1], [1, 1], False, [0, 0], 1
        plain = torch.ops.aten.convolution(x, weight, bias, *settings)
        found = _run(x, weight, bias, settings, None)
        twice = _run(x, weight, bias, settings, found.clone(memory_format=torch.channels_last))
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
    error = max(float((found - plain).abs().max()), float((twice - 2 * plain).abs().max()))
    return error <= (1e-5 if kind == torch.float32 else 0.1) * float(plain.abs().max())


def in_channels_last(x: Any, sizes: list[int], settings: Settings) -> bool:
    """Whether ``convolve`` takes such an input, for an output of these spatial sizes."""
    if x.ndim != 4 or x.device.type != "cpu" or settings[3] or not torch.backends.mkldnn.enabled:
        return False
    ordered = x.is_contiguous(memory_format=torch.channels_last) and (not x.is_contiguous() or max(sizes) == 1)
    return ordered and available(x.dtype)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, onto: Tensor | None = None) -> Tensor:
    """``x * weight + bias``, in channels-last order; added to ``onto``, in place, where that is given."""
    if onto is not None and not onto.is_contiguous(memory_format=torch.channels_last):
        return onto.add_(_run(x, weight, bias, settings, None))
    return _run(x, weight, bias, settings, onto)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, onto: Tensor | None) -> Tensor:
    stride, padding, dilation, groups = list(settings[0]), list(settings[1]), list(settings[2]), settings[5]
    kept = _laid_out.setdefault(weight, {})
    key = (weight._version, tuple(stride), tuple(padding), tuple(dilation), groups, x.shape[1:])
    if key not in kept:
        kept[key] = torch.ops.mkldnn._reorder_convolution_weight(
            weight, padding, stride, dilation, groups, list(x.shape)
        )
    made = x, kept[key], bias, padding, stride, dilation, groups
    if onto is None:
        return torch.ops.mkldnn._convolution_pointwise(*made, "none", [], "")
    return torch.ops.mkldnn._convolution_pointwise_.binary(onto, *made, "add", 1.0, None, [], None)
