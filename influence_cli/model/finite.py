"""Which rows have numbers to reckon with: finite logits, and a finite gradient of what is summed over rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from influence_cli.model.forward import Point, differentiable_kernels
from influence_cli.model.parameters import pulled


def usable_rows(point: Point, x: Tensor, slope: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Which rows [b] have finite logits, and a finite gradient in the point's selected parameters.

    ``slope`` gives the gradient in the logits [k, C] of the scalars of k rows, from their logits and their places [k]
    among the b.  Gradients are summed over rows, and looked at row by row only where a sum is not finite.
    """
    usable = torch.ones(len(x), dtype=torch.bool, device=x.device)
    waiting = [torch.arange(len(x), device=x.device)]
    own = {n: p.detach().requires_grad_() for n, p in point.selected.items()}
    while waiting:
        some = waiting.pop()
        with torch.enable_grad(), differentiable_kernels(point.recurrent):
            logits = point.logits(x[some], own)
            finite = torch.isfinite(logits.detach()).all(1)
            if not bool(finite.all()):
                usable[some[~finite]] = False
                waiting += [some[finite]] if bool(finite.any()) else []
                continue
            gradients = pulled([logits], list(own.values()), [slope(logits.detach(), some).to(logits.dtype)])
        if all(bool(torch.isfinite(g).all()) for g in gradients):
            continue
        if len(some) == 1:
            usable[some] = False
        else:
            waiting += list(some.tensor_split(2))
    return usable
