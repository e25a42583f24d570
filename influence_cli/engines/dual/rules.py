"""How the operations that networks spend their time in run on duals: products, sums, activations and norms.

A map that is linear in each of two arguments has the product rule.  An activation acts element by element, and the
derivatives of the softmax and of the bare LayerNorm are symmetric matrices: for those, torch's backward kernel fed with
a tangent in the place of a gradient is the forward derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from influence_cli.engines.dual.dual import Dual, leaf, rule, tangents_of, value_of

aten = torch.ops.aten


def _sum(a: Any, b: Any, scale: Any) -> Any:
    """A + scale b, and the same of the tangents."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return NotImplemented
    out = torch.add(value_of(a), value_of(b), alpha=scale)
    ta, tb = tangents_of(a), tangents_of(b)
    if ta and tb:
        return Dual(out, tuple(torch.add(x, y, alpha=scale) for x, y in zip(ta, tb, strict=True)), overwritable=True)
    for x in (a, b):
        if isinstance(x, Dual):
            x.overwritable = False  # the sum holds its tangents too
    alone = ta or (tb if scale == 1 else tuple(y * scale for y in tb))
    return Dual(out, tuple(t.expand(out.shape) for t in alone))


@rule(aten.add.Tensor)
def _add(a: Any, b: Any, *, alpha: Any = 1) -> Any:
    """Sum: a' + b'."""
    return _sum(a, b, alpha)


@rule(aten.sub.Tensor)
def _subtract(a: Any, b: Any, *, alpha: Any = 1) -> Any:
    """Difference: a' - b'."""
    return _sum(a, b, -alpha)


@rule(aten.add_.Tensor)
def _add_in_place(a: Dual, b: Any, *, alpha: Any = 1) -> Any:
    """Residual sum: a' + b', written over the tangents of a where nothing else holds them."""
    ta, tb = a.tangents, tangents_of(b)
    if not isinstance(b, Tensor) or not a.overwritable or not tb:
        return NotImplemented
    a.assign(
        a.value.add_(value_of(b), alpha=alpha),
        tuple(x.add_(y, alpha=alpha) for x, y in zip(ta, tb, strict=True)),
        overwritable=True,
    )
    return a


@rule(aten.mul.Tensor)
def _mul(a: Any, b: Any) -> Any:
    """Product, element by element: a'b + ab'."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return NotImplemented
    va, vb, ta, tb = value_of(a), value_of(b), tangents_of(a), tangents_of(b)
    out = va * vb
    if ta and tb:
        tangents = tuple(torch.addcmul(x * vb, va, y) for x, y in zip(ta, tb, strict=True))
    else:
        tangents = tuple(x * vb for x in ta) or tuple(va * y for y in tb)
    return Dual(out, tuple(t.expand(out.shape) for t in tangents))


@rule(aten.mm.default, aten.bmm.default)
def _product(a: Any, b: Any) -> Dual:
    """Matrix product: A'B + AB'."""
    va, vb, ta, tb = value_of(a), value_of(b), tangents_of(a), tangents_of(b)
    if ta and tb:
        add = torch.addmm if va.ndim == 2 else torch.baddbmm
        tangents = tuple(add(va @ y, x, vb) for x, y in zip(ta, tb, strict=True))
    else:
        tangents = tuple(x @ vb for x in ta) or tuple(va @ y for y in tb)
    return Dual(va @ vb, tangents, overwritable=True)


@rule(aten.t.default)
def _transposed(x: Dual) -> Any:
    """Transpose of a parameter: the weights with a BatchNorm folded in stay known."""
    if not x.from_outside:
        return NotImplemented
    value, tangents, folded = x.folded.setdefault("t", (x.value.t(), tuple(t.t() for t in x.tangents), {}))
    made = leaf(value, tangents)  # torch wants a new object for a view
    made.folded = folded
    return made


def _activation(x: Dual, value: Tensor, derivative: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Dual:
    """f(x) and f'(x) x', where ``derivative(tangent, x, f(x))`` is that product."""
    return Dual(value, tuple(derivative(t, x.value, value) for t in x.tangents), overwritable=True)


@rule(aten.relu.default)
def _relu(x: Dual) -> Dual:
    """ReLU: x' where x > 0, else 0."""
    return _activation(x, torch.relu(x.value), lambda t, _, y: aten.threshold_backward(t, y, 0))


@rule(aten.relu_.default)
def _relu_in_place(x: Dual) -> Any:
    """ReLU in place: x' where x > 0, else 0, written over the tangents where nothing else holds them."""
    value, tangents = x.value.relu_(), x.tangents
    for t in tangents if x.overwritable else ():
        aten.threshold_backward.grad_input(t, value, 0, grad_input=t)
    if not x.overwritable:
        tangents = tuple(aten.threshold_backward(t, value, 0) for t in tangents)
    x.assign(value, tangents, overwritable=True)
    return x


@rule(aten.hardtanh.default)
def _hardtanh(x: Dual, low: Any = -1, high: Any = 1) -> Dual:
    """Clipping: x' between the two bounds, else 0."""
    value = aten.hardtanh(x.value, low, high)
    return _activation(x, value, lambda t, x, _: aten.hardtanh_backward(t, x, low, high))


@rule(aten.gelu.default)
def _gelu(x: Dual, *, approximate: str = "none") -> Dual:
    """GELU: gelu'(x) x'."""
    value = aten.gelu(x.value, approximate=approximate)
    return _activation(x, value, lambda t, x, _: aten.gelu_backward(t, x, approximate=approximate))


@rule(aten.silu.default)
def _silu(x: Dual) -> Dual:
    """SiLU: silu'(x) x'."""
    return _activation(x, aten.silu(x.value), lambda t, x, _: aten.silu_backward(t, x))


@rule(aten.sigmoid.default)
def _sigmoid(x: Dual) -> Dual:
    """Sigmoid: s (1 - s) x', for s = sigmoid(x)."""
    return _activation(x, torch.sigmoid(x.value), lambda t, _, y: aten.sigmoid_backward(t, y))


@rule(aten.tanh.default)
def _tanh(x: Dual) -> Dual:
    """Tanh: (1 - h^2) x', for h = tanh(x)."""
    return _activation(x, torch.tanh(x.value), lambda t, _, y: aten.tanh_backward(t, y))


@rule(aten._softmax.default)
def _softmax(x: Dual, dim: int, to_float: bool) -> Any:
    """Softmax: p (x' - p . x'), for p = softmax(x)."""
    if to_float:
        return NotImplemented
    return _softmax_of(x, aten._softmax(x.value, dim, False), dim)


@rule(aten._safe_softmax.default)
def _safe_softmax(x: Dual, dim: int, dtype: Any = None) -> Any:
    """Masked softmax: p (x' - p . x'), and 0 where all of x is -inf (a query that may look at nothing)."""
    if dtype is not None:
        return NotImplemented
    return _softmax_of(x, aten._safe_softmax(x.value, dim), dim)


def _softmax_of(x: Dual, value: Tensor, dim: int) -> Dual:
    return _activation(x, value, lambda t, _, p: aten._softmax_backward_data(t, p, dim, p.dtype))


@rule(aten.logsumexp.default)
def _logsumexp(x: Dual, dim: Any, keepdim: bool = False) -> Dual:
    """Log of a sum of exponentials: p . x', for p = softmax(x)."""
    value = aten.logsumexp(x.value, dim, True)
    p = (x.value - value).exp_() if x.tangents else x.value
    tangents = tuple((p * t).sum(dim, keepdim) for t in x.tangents)
    return Dual(value if keepdim else value.squeeze(dim), tangents, overwritable=True)


@rule(aten.gather.default)
def _gather(x: Any, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Any:
    """Values at some places: x' there."""
    if not isinstance(x, Dual):
        return NotImplemented
    return Dual(x.value.gather(dim, value_of(index)), tuple(t.gather(dim, value_of(index)) for t in x.tangents))


@rule(aten.native_layer_norm.default)
def _layer_norm(x: Any, shape: Any, scale: Any, shift: Any, eps: float) -> Any:
    """LayerNorm: s' h + s h' + b', for scale s, shift b and h the normalised x."""
    value, mean, spread = aten.native_layer_norm(value_of(x), shape, value_of(scale), value_of(shift), eps)
    tx, ts, tb = tangents_of(x), tangents_of(scale), tangents_of(shift)
    h = aten.native_layer_norm(value_of(x), shape, None, None, eps)[0] if ts else None
    tangents = []
    for k in range(max(len(tx), len(ts), len(tb))):
        t = tb[k].expand(value.shape) if tb else None
        if ts:
            t = h * ts[k] if t is None else torch.addcmul(t, h, ts[k])  # type: ignore[operator]
        if tx:
            moved = aten.native_layer_norm_backward(
                tx[k], value_of(x), shape, mean, spread, None, None, [True, False, False]
            )[0]
            if scale is not None:
                moved = moved * value_of(scale) if t is None else torch.addcmul(t, moved, value_of(scale))
            elif t is not None:
                moved = moved + t
            t = moved
        assert t is not None
        tangents.append(t)
    return Dual(value, tuple(tangents)), mean, spread


@rule(aten.max_pool2d_with_indices.default)
def _max_pool(x: Dual, *args: Any) -> Any:
    """Max pooling: x' at the places that are the largest."""
    value, places = aten.max_pool2d_with_indices(x.value, *args)
    if x.ndim == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last):
        rows, at = value.shape[0], places.permute(0, 2, 3, 1).flatten(1, 2)
        tangents = tuple(
            t.permute(0, 2, 3, 1).flatten(1, 2).gather(1, at).view(rows, *value.shape[2:], -1).permute(0, 3, 1, 2)
            for t in x.tangents
        )
        return Dual(value, tangents, overwritable=True), places
    flat = places.flatten(2)
    tangents = tuple(t.flatten(2).gather(2, flat).view(value.shape) for t in x.tangents)
    return Dual(value, tangents, overwritable=True), places
