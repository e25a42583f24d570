"""Convolutions on maps of a few pixels as the matrix products that they are, for derivatives of any kind.

On a map of 2x2 pixels a 3x3 kernel meets 4 of its 9 places, and one of them on a single pixel; the rest is padding,
over which a processor works as well: most of all in the gradient of the weights, 50 times as long for 512 channels on
one pixel.  There

    y[b, o, p] = sum_(i, q) W[o, i, k(p, q)] x[b, i, q]

with k(p, q) the place in the kernel through which pixel p of the output sees pixel q of the input, is a product of x
[b, I Q] with a matrix [O P, I Q] of the same weights.  The matrix is made by torch's own operations, so that what can
be differentiated stays so, backwards, forwards, twice and row by row; the numbers are the same to rounding.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PLAIN = (Tensor, nn.Parameter)  # anything else has rules of its own


class FewPixels(TorchFunctionMode):
    """Within it, convolutions of plain tensors on a CPU are run as products wherever most of the kernel is outside.

    >>> x, w = torch.ones(1, 1, 1, 1), torch.arange(9.0).view(1, 1, 3, 3)
    >>> with FewPixels():
    ...     F.conv2d(x, w, padding=1).tolist()
    [[[[4.0]]]]
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What ``func`` gives."""
        if func is F.conv2d:
            found = _as_product(*args, **(kwargs or {}))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))


def _as_product(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """The convolution, by torch's own names; None where it is not one for a product."""
    plain = type(input) in PLAIN and type(weight) in PLAIN and input.device.type == "cpu"
    if not plain or input.ndim != 4 or groups != 1 or isinstance(padding, str):
        return None
    pixels, kernel = input.shape[2:], weight.shape[2:]
    if 2 * pixels.numel() > kernel.numel():
        return None
    sizes, places = _places(tuple(pixels), tuple(kernel), _pair(stride), _pair(padding), _pair(dilation))
    if not places or len(places) > 2 * kernel.numel():
        return None
    (rows, inputs), outputs = input.shape[:2], weight.shape[0]
    flat, to = weight.flatten(2), sizes[0] * sizes[1]
    if len(places) == 1 and places[0] < kernel.numel():
        matrix = flat[..., places[0]]
    else:
        flat = F.pad(flat, (0, 1)) if max(places) == kernel.numel() else flat
        matrix = flat.index_select(2, torch.tensor(places)).view(outputs, inputs, to, -1)
        matrix = matrix.transpose(1, 2).reshape(outputs * to, -1)
    spread = bias if bias is None or to == 1 else bias.repeat_interleave(to)
    made = F.linear(input.flatten(1), matrix, spread).view(rows, outputs, *sizes)
    return made.clone()  # no view: whoever notes it and changes it in place has a tensor that stands for itself


@functools.lru_cache(256)
def _places(
    pixels: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, ...]]:
    """The output's sizes, and for each of its pixels and each of the input's the place in the kernel, or one past it.

    >>> _places((1, 2), (1, 3), (1, 1), (0, 1), (1, 1))
    ((1, 2), (1, 2, 0, 1))
    """
    every = zip(pixels, padding, dilation, kernel, stride, strict=True)
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in every]
    if min(sizes) < 1:
        return (0, 0), ()  # torch says what is wrong
    found = list[int]()
    for to, at in product(product(*map(range, sizes)), product(*map(range, pixels))):
        off = [i + p - o * s for i, p, o, s in zip(at, padding, to, stride, strict=True)]
        inside = all(n % d == 0 and 0 <= n // d < k for n, d, k in zip(off, dilation, kernel, strict=True))
        y, x = (n // d for n, d in zip(off, dilation, strict=True))
        found.append(y * kernel[1] + x if inside else kernel[0] * kernel[1])
    return (sizes[0], sizes[1]), tuple(found)


def _pair(value: Any) -> tuple[int, int]:
    """A setting for both dimensions."""
    a, b = (value, value) if isinstance(value, int) else (value * 2 if len(value) == 1 else value)
    return int(a), int(b)


def where_it_helps(model: nn.Module) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """``FewPixels`` for a model with convolutions; of any other nothing is watched."""
    return FewPixels if any(isinstance(m, nn.Conv2d) for m in model.modules()) else contextlib.nullcontext
