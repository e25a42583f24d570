"""Convolutions on a CPU whose weights are laid out for the processor once, not in every batch.

oneDNN wants a convolution's weight in blocks that fit the processor's registers, and torch lays it out anew in every
call.  Directions and folded weights stay the same for a whole pass, so here that is done once; and a second convolution
is added to the first inside the kernel (x' W + x W'), which saves a pass over memory.  Values are in channels-last
order, as the input came.

On a map of a few pixels most of a kernel lies outside: a 3x3 kernel meets 4 of its 9 places on 2x2 pixels, and one of
them on a single pixel, while the processor works on all.  There the convolution is the matrix product that it is, from
all values of a row to all values of its output, with every block of weights in its place.

Where torch lacks these operations, or an input is none of theirs, plain convolutions are
run: the same numbers to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

SIZES = 2  # batch sizes that a weight is laid out for at once
PRODUCT = ([0, 0], [1, 1], [1, 1], 1)  # padding, stride, dilation and groups of a convolution that is a matrix product
Settings = tuple[Any, ...]  # of aten.convolution: stride, padding, dilation, transposed, output padding, groups

_laid_out: Any = WeakTensorKeyDictionary()  # weight -> {(version, settings, shape of a row): in blocks, or a matrix}


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


def output_sizes(pixels: Sequence[int], kernel: Sequence[int], settings: Settings) -> list[int]:
    """Spatial sizes of a convolution's output.

    >>> output_sizes([5, 2], [3, 3], ([2, 2], [1, 1], [1, 1], False, [0, 0], 1))
    [3, 1]
    """
    stride, padding, dilation = settings[:3]
    every = zip(pixels, padding, dilation, kernel, stride, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in every]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, onto: Tensor | None = None) -> Tensor:
    """``x * weight + bias``, in channels-last order; added to ``onto``, in place, where that is given."""
    if onto is not None and not onto.is_contiguous(memory_format=torch.channels_last):
        return onto.add_(_run(x, weight, bias, settings, None))
    return _run(x, weight, bias, settings, onto)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, onto: Tensor | None) -> Tensor:
    stride, padding, dilation, groups = list(settings[0]), list(settings[1]), list(settings[2]), settings[5]
    kept = _laid_out.setdefault(weight, {})
    key = (weight._version, tuple(stride), tuple(padding), tuple(dilation), groups, x.shape[1:])
    if groups == 1 and 2 * x.shape[2:].numel() <= weight.shape[2:].numel():
        if key not in kept:
            kept[key] = _as_matrix(weight, settings, x.shape[2:])
        return _multiplied(x, kept[key], bias, onto)
    how = (padding, stride, dilation, groups)
    return _pointwise(x, _laid(kept.setdefault(key, {}), weight, how, x.shape), bias, how, onto)


def _laid(kept: dict[int, Tensor], weight: Tensor, how: tuple[Any, ...], shape: torch.Size) -> Tensor:
    """The weight in the blocks that inputs of this shape want.

    They differ with the number of rows, and a kernel that is given others lays them out anew, slowly, in every call.
    """
    rows = shape[0] * shape[2:].numel()
    if rows not in kept:
        while len(kept) >= SIZES:
            kept.pop(next(iter(kept)))
        kept[rows] = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, list(shape))
    return kept[rows]


def _pointwise(x: Tensor, laid: Tensor, bias: Tensor | None, how: tuple[Any, ...], onto: Tensor | None) -> Tensor:
    if onto is None:
        return torch.ops.mkldnn._convolution_pointwise(x, laid, bias, *how, "none", [], "")
    return torch.ops.mkldnn._convolution_pointwise_.binary(onto, x, laid, bias, *how, "add", 1.0, None, [], None)


# -- on a few pixels -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrix:
    """A convolution on maps of one size as a matrix [P_out C_out, P_in C_in, 1, 1]."""

    weight: Tensor
    laid: dict[int, Tensor]
    sizes: tuple[int, ...]  # of the output's map


def _as_matrix(weight: Tensor, settings: Settings, pixels: torch.Size) -> _Matrix:
    """The weight between every pixel of the input and every pixel of the output, zero where the kernel is not."""
    stride, padding, dilation = settings[:3]
    kernel = weight.shape[2:]
    sizes = output_sizes(pixels, kernel, settings)
    dense = weight.new_zeros(*sizes, weight.shape[0], *pixels, weight.shape[1])
    for to in product(*map(range, sizes)):
        for at in product(*map(range, pixels)):
            off = [i + p - o * s for i, p, o, s in zip(at, padding, to, stride, strict=True)]
            if all(n % d == 0 and 0 <= n // d < k for n, d, k in zip(off, dilation, kernel, strict=True)):
                y, x = (n // d for n, d in zip(off, dilation, strict=True))
                dense[to[0], to[1], :, at[0], at[1], :] = weight[:, :, y, x]
    wide = dense.view(dense.shape[:3].numel(), dense.shape[3:].numel(), 1, 1)
    return _Matrix(wide, {}, tuple(sizes))


def _multiplied(x: Tensor, by: _Matrix, bias: Tensor | None, onto: Tensor | None) -> Tensor:
    """The product for all rows, as a convolution of width 1 whose pixels are the rows: oneDNN is fastest on that."""
    spread = None if bias is None else bias.repeat(by.sizes[0] * by.sizes[1])
    rows = _as_pixels(x)
    laid = _laid(by.laid, by.weight, PRODUCT, rows.shape)
    if onto is not None:
        _pointwise(rows, laid, spread, PRODUCT, _as_pixels(onto))
        return onto
    out = _pointwise(rows, laid, spread, PRODUCT, None).permute(0, 2, 3, 1)
    return out.reshape(len(x), *by.sizes, -1).permute(0, 3, 1, 2)


def _as_pixels(x: Tensor) -> Tensor:
    """[b, C, H, W] in channels-last order as [1, H W C, b, 1] in that order, of the same memory."""
    return x.permute(0, 2, 3, 1).view(1, len(x), 1, -1).permute(0, 3, 1, 2)
