"""Convolutions that wait to see whether a BatchNorm follows, and take it into their weights if so.

In evaluation mode a BatchNorm is y = s (c - mean) + shift per channel with s = scale / sqrt(variance + eps): after
c = conv(x; W) + b that is conv(x; s W) + s (b - mean) + shift, one pass over the data less; the tangents of the new
weight and bias follow by the product rule.  A convolution's output is therefore only noted.  A BatchNorm that takes it
computes the folded convolution; whatever else takes it (a second consumer, a hook) has the convolution itself computed
then.  So nothing needs to be known of the model's graph, and no number depends on what was guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence_cli.engines.dual.dual import Dual, compute_before_writes, rule, tangents_of, value_of
from influence_cli.engines.dual.packed import convolve, in_channels_last, output_sizes

aten = torch.ops.aten
Affine = tuple[Tensor | None, Tensor | None]  # weight and bias; None is zero


@dataclass
class Pending:
    """A convolution, or a linear map x @ weight + bias, that was asked for and not computed yet."""

    x: Any
    weight: Any
    bias: Any
    settings: tuple[Any, ...] | None  # of the convolution: stride, padding, dilation, transposed, padding, groups
    last: bool = False  # a convolution in channels-last order, with weights that are laid out once

    @property
    def device(self) -> torch.device:
        """Where its output will be."""
        return value_of(self.weight).device

    def compute(self) -> tuple[Tensor, tuple[Tensor, ...], bool]:
        """Values and tangents of the map itself."""
        return self.run((value_of(self.weight), value_of(self.bias)), _along(self.weight, self.bias))

    def run(self, at: Affine, along: list[Affine]) -> tuple[Tensor, tuple[Tensor, ...], bool]:
        """Values and tangents with these weights: x W + b, and x' W + x W' + b'."""
        x, tx = value_of(self.x), tangents_of(self.x)
        value = self._apply(x, *at)
        tangents = []
        for k in range(max(len(tx), len(along))):
            weight, bias = along[k] if along else (None, None)
            t = None if weight is None else self._apply(x, weight, bias)
            if tx:
                t = self._apply(tx[k], at[0], None, onto=t)
            if weight is None and bias is not None:
                spread = bias.view(1, -1, *[1] * (value.ndim - 2)).expand(value.shape)
                t = spread.clone() if t is None else t.add_(spread)
            assert t is not None
            tangents.append(t)
        return value, tuple(tangents), True

    def _apply(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, onto: Tensor | None = None) -> Tensor:
        """X weight + bias, added to ``onto`` in place where that is given."""
        assert weight is not None
        if self.settings is not None:
            if self.last:
                return convolve(x, weight, bias, self.settings, onto)
            made = aten.convolution(x, weight, bias, *self.settings)
            return made if onto is None else onto.add_(made)
        if onto is not None:
            return onto.addmm_(x, weight)
        return x @ weight if bias is None else torch.addmm(bias, x, weight)

    def folded(self, norm: Norm) -> tuple[Affine, list[Affine]]:
        """Weight and bias with the norm in them, and their tangents along each direction."""
        kind = value_of(self.weight).dtype
        exact = torch.float64 if kind == torch.float64 else torch.float32
        cast = lambda x: x.to(exact)  # noqa: E731
        weight, bias = cast(value_of(self.weight)), value_of(self.bias)
        spread = torch.rsqrt(cast(norm.variance) + norm.eps)
        scale = spread if norm.scale is None else cast(value_of(norm.scale)) * spread
        lanes = (-1, *[1] * (weight.ndim - 1)) if self.settings is not None else (1, -1)
        centre = -cast(norm.mean) if bias is None else cast(bias) - cast(norm.mean)
        shift = torch.zeros_like(spread) if norm.shift is None else cast(value_of(norm.shift))
        along: list[Affine] = []
        for (dw, db), (ds, dh) in _pairs(_along(self.weight, self.bias), _along(norm.scale, norm.shift)):
            weights = [cast(dw) * scale.view(lanes)] if dw is not None else []
            biases = [cast(dh)] if dh is not None else []
            if ds is not None:
                moved = cast(ds) * spread
                weights.append(weight * moved.view(lanes))
                biases.append(centre * moved)
            if db is not None:
                biases.append(cast(db) * scale)
            along.append((_total(weights, kind), _total(biases, kind)))
        return ((weight * scale.view(lanes)).to(kind), (centre * scale + shift).to(kind)), along


def _total(parts: list[Tensor], kind: torch.dtype) -> Tensor | None:
    return torch.stack(parts).sum(dim=0).to(kind) if parts else None


@dataclass(frozen=True)
class Norm:
    """An evaluation-mode BatchNorm: y = scale (x - mean) / sqrt(variance + eps) + shift."""

    scale: Any
    shift: Any
    mean: Tensor
    variance: Tensor
    eps: float

    def parts(self) -> tuple[Any, ...]:
        """What it is made of; the same objects make the same norm."""
        return self.scale, self.shift, self.mean, self.variance


def _along(a: Any, b: Any) -> list[Affine]:
    ta, tb = tangents_of(a), tangents_of(b)
    return [(ta[k] if ta else None, tb[k] if tb else None) for k in range(max(len(ta), len(tb)))]


def _pairs(a: list[Affine], b: list[Affine]) -> list[tuple[Affine, Affine]]:
    nothing: Affine = (None, None)
    return [(a[k] if a else nothing, b[k] if b else nothing) for k in range(max(len(a), len(b)))]


def _folded_once(pending: Pending, norm: Norm) -> tuple[Affine, list[Affine]]:
    """The folded weights, made on the first batch and kept with the weight."""
    kept = pending.weight.folded if isinstance(pending.weight, Dual) and pending.weight.from_outside else {}
    parts = (pending.bias, *norm.parts())
    key = tuple(map(id, parts))
    if key not in kept:
        kept[key] = parts, pending.folded(norm)  # the parts too, so that no other object takes their places
    return kept[key][1]


@rule(aten.convolution.default)
def _convolution(x: Any, weight: Any, bias: Any, *settings: Any) -> Dual:
    """Convolution: x' W + x W' + b', computed by whatever takes its output."""
    pending = Pending(x, weight, bias, settings)
    if settings[3]:  # transposed
        return Dual(*pending.compute())
    sizes = output_sizes(x.shape[2:], weight.shape[2:], settings)
    if min(sizes) < 1:
        return Dual(*pending.compute())  # torch says what is wrong
    pending.last = in_channels_last(x, sizes, settings)
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last or pending.last else torch.contiguous_format
    form = torch.empty((x.shape[0], weight.shape[0], *sizes), dtype=x.dtype, device="meta", memory_format=layout)
    return compute_before_writes(Dual(form, pending=pending), x)


@rule(aten.addmm.default)
def _linear(bias: Any, x: Any, weight: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """Linear layer: x' W + x W' + b', computed by whatever takes its output."""
    if beta != 1 or alpha != 1 or bias.ndim != 1:
        return NotImplemented
    form = torch.empty((x.shape[0], weight.shape[1]), dtype=x.dtype, device="meta")
    return compute_before_writes(Dual(form, pending=Pending(x, weight, bias, None)), x)


def folds(parameters: Iterable[Any]) -> int:
    """How many BatchNorms were folded into these weights."""
    made = [p.folded for p in parameters if isinstance(p, Dual)]
    made += [m["t"][2] for m in made if "t" in m]
    return sum(1 for m in made for key in m if key != "t")


@rule(aten.native_batch_norm.default)
def _batch_norm(
    x: Any, scale: Any, shift: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float
) -> Any:
    """BatchNorm in evaluation mode: W' x + W x' + b' by channel, folded into what made x or run as such."""
    if training or mean is None or variance is None:
        return NotImplemented
    norm = Norm(scale, shift, value_of(mean), value_of(variance), eps)
    if isinstance(x, Dual) and isinstance(x.pending, Pending):
        out = Dual(*x.pending.run(*_folded_once(x.pending, norm)))
    else:
        out = Dual(*_by_channel(x, norm))
    return out, torch.empty(0), torch.empty(0)


@rule(aten.cudnn_batch_norm.default)
def _batch_norm_by_cudnn(*args: Any) -> Any:
    """BatchNorm in evaluation mode, by cuDNN: the same, with a fourth output that is empty."""
    out = _batch_norm(*args)
    return out if out is NotImplemented else (*out, torch.empty(0, dtype=torch.uint8))


def _by_channel(x: Any, norm: Norm) -> tuple[Tensor, tuple[Tensor, ...], bool]:
    """The norm by itself: as a convolution of width 1 with a bias, channel by channel."""
    ones = torch.ones((1, x.shape[1]), dtype=x.dtype, device=value_of(x).device)
    (weight, bias), along = Pending(x, ones, None, None).folded(norm)
    lanes = (1, -1, *[1] * (x.ndim - 2))
    lay = lambda v: v.reshape(lanes)  # noqa: E731
    value, tx = value_of(x), tangents_of(x)
    assert weight is not None
    assert bias is not None
    tangents = []
    for k in range(max(len(tx), len(along))):
        t = tx[k] * lay(weight) if tx else torch.zeros_like(value)
        dw, db = along[k] if along else (None, None)
        t = t if dw is None else torch.addcmul(t, value, lay(dw))
        tangents.append(t if db is None else t.add_(lay(db)))
    return torch.addcmul(lay(bias), value, lay(weight)), tuple(tangents), True
