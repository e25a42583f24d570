"""Row gradients of any module's parameters through its own forward, run again with its inputs held fixed.

    <g_i, U> = < d_i, JVP of the module's forward in its parameters along U >,     g_i = VJP of row i with d_i

It asks of a module that rows are the leading dimension of its inputs and outputs, and nothing else: parameters that it
uses itself, hands to a function, or owns through sub-modules whose forward it never calls are all reached.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from influence_cli.engines.layerwise.protocol import Named, by_row, total
from influence_cli.engines.point import differentiable_kernels
from influence_cli.maths.forward_mode import FORWARD_MODE
from influence_cli.model.lean_imports import compiler_put_off
from influence_cli.model.parameters import pulled


@dataclass(frozen=True)
class Call:
    """One call of a module for b rows: the leaves of its arguments, and the gradient of each tensor it returned."""

    leaves: tuple[Any, ...]
    spec: TreeSpec  # of (args, kwargs)
    batched: tuple[bool, ...]  # which leaves have rows as their leading dimension
    gradients: tuple[Tensor | None, ...]  # None where the rows' scalars do not depend on it
    b: int

    @property
    def a(self) -> Any:
        """The argument, [b k, ...]; all of them where a module has several."""
        return self.leaves[0] if len(self.leaves) == 1 else self.leaves

    @property
    def d(self) -> Tensor:
        """The gradient of the only output, [b k, ...]."""
        (d,) = self.gradients
        assert d is not None
        return d

    @property
    def used(self) -> bool:
        """Whether any output reached the rows' scalars."""
        return any(d is not None for d in self.gradients)

    def rows(self, some: slice) -> Call:
        """The same call for some rows only."""
        first, last, _ = some.indices(self.b)

        def cut(t: Any) -> Any:
            k = len(t) // self.b
            return t[first * k : last * k]

        leaves = tuple(cut(t) if batched else t for t, batched in zip(self.leaves, self.batched, strict=True))
        gradients = tuple(None if d is None else cut(d) for d in self.gradients)
        return dataclasses.replace(self, leaves=leaves, gradients=gradients, b=max(0, last - first))


class OwnForward:
    """The general rule, for some parameters of a module and of its sub-modules."""

    def __init__(self, module: nn.Module, values: Named, names: tuple[str, ...], recurrent: bool) -> None:
        """``values`` are the module's selected parameters as they are taken, by local name; ``names`` its own."""
        self.module, self.values, self.recurrent = module, values, recurrent
        self.own = {n: values[n] for n in names}

    def _outputs(self, own: Named, call: Call, leaves: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Those outputs that the rows' scalars depend on."""
        args, kwargs = tree_unflatten(leaves, call.spec)
        out = functional_call(self.module, {**self.values, **own}, args, kwargs)
        tensors = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        return tuple(t for t, d in zip(tensors, call.gradients, strict=True) if d is not None)

    def dots(self, call: Call, u: Named) -> Tensor:
        """<g_i, u> for every row, float64 [b]."""
        pairs = zip(self.tangents(call, u), [d for d in call.gradients if d is not None], strict=True)
        return torch.stack([total((t * d).reshape(call.b, -1)) for t, d in pairs]).sum(0)

    def tangents(self, call: Call, u: Named, leaves: tuple[Any, ...] | None = None) -> tuple[Tensor, ...]:
        """Of each output that is used, its derivative along u, the inputs held fixed; with ``leaves`` in their place.

        By double reverse where an operator has no forward-mode rule.
        """
        function = lambda own: self._outputs(own, call, call.leaves if leaves is None else leaves)  # noqa: E731
        try:
            with torch.no_grad(), differentiable_kernels(self.recurrent), FORWARD_MODE:
                return jvp(function, (self.own,), ({n: u[n] for n in self.own},))[1]
        except (RuntimeError, NotImplementedError):
            with differentiable_kernels(self.recurrent):
                return double_reverse(function, self.own, u)

    def gradients(self, call: Call) -> Named:
        """g_i by local name, [b, *shape]: all rows at once, or one by one where the module cannot be batched so."""
        try:
            return self._gradients_at_once(call)
        except (RuntimeError, NotImplementedError):
            ones = torch.ones(1, device=next(iter(self.own.values())).device)
            rows = [self.weighted(call.rows(slice(i, i + 1)), ones) for i in range(call.b)]
            return {n: torch.stack([row[n] for row in rows]) for n in self.own}

    def _gradients_at_once(self, call: Call) -> Named:
        place = [i for i, batched in enumerate(call.batched) if batched]

        def of_row(leaves: tuple[Tensor, ...], d: tuple[Tensor, ...]) -> Named:
            every = list(call.leaves)
            for i, leaf in zip(place, leaves, strict=True):
                every[i] = leaf
            return vjp(lambda own: self._outputs(own, call, tuple(every)), self.own)[1](d)[0]

        apart = lambda t: t.unflatten(0, (call.b, -1))  # noqa: E731
        leaves = tuple(apart(call.leaves[i]) for i in place)
        with torch.no_grad(), differentiable_kernels(self.recurrent), compiler_put_off():
            return vmap(of_row)(leaves, tuple(apart(d) for d in call.gradients if d is not None))

    def weighted(self, call: Call, c: Tensor) -> Named:
        """sum_i c_i g_i by local name, for c [b]."""
        own = {n: p.detach().requires_grad_() for n, p in self.own.items()}
        gradients = [by_row(d, c) for d in call.gradients if d is not None]
        with torch.enable_grad(), differentiable_kernels(self.recurrent):
            out = self._outputs(own, call, call.leaves)
            found = pulled(out, list(own.values()), gradients)
        return dict(zip(own, found, strict=True))


def double_reverse(function: Any, parameters: Named, u: Named) -> tuple[Tensor, ...]:
    """Tangents of a function's outputs along u by two reverse passes: t = (d/dv) < J^T v, u >, linear in v."""
    own = {n: p.detach().requires_grad_() for n, p in parameters.items()}
    with torch.enable_grad():
        out = function(own)
        v = [torch.zeros_like(t).requires_grad_() for t in out]
        some = [(t, c) for t, c in zip(out, v, strict=True) if t.requires_grad]  # others depend on no parameter
        if not some:
            return tuple(torch.zeros_like(t) for t in out)
        ends, along = [t for t, _ in some], [c for _, c in some]
        reached = torch.autograd.grad(ends, list(own.values()), along, create_graph=True, allow_unused=True)
        terms = [(g * u[n]).sum() for n, g in zip(own, reached, strict=True) if g is not None]
        terms = [t for t in terms if t.requires_grad]
        if not terms:
            return tuple(torch.zeros_like(t) for t in out)
        found = torch.autograd.grad(terms, v, allow_unused=True)
    return tuple(torch.zeros_like(t) if g is None else g.detach() for t, g in zip(out, found, strict=True))
