"""Which rows have numbers to reckon with: finite logits, and a Jacobian of them whose squares are finite too."""

from __future__ import annotations

import torch
from torch import Tensor

from influence_cli.engines.batch_size import out_of_memory
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.model.parameters import pulled


def usable_rows(point: Point, x: Tensor) -> Tensor:
    """Which rows [b] have finite logits, and derivatives in the point's selected parameters that are no overflow.

    A row's derivatives are J^T v, with one v [C] for all rows; their squared norm has to be finite in the point's
    precision, or tangents along any direction may not be.  The loss gradient is no measure: it is 0 for a row that is
    predicted with certainty, however large J is.  Rows are summed, with weights that let none hide another, and are
    looked at one by one only where the sum is too large.  Of a model that cannot be differentiated backwards (there are
    other ways) the logits alone are looked at.
    """
    usable = torch.ones(len(x), dtype=torch.bool, device=x.device)
    own = {n: p.detach().requires_grad_() for n, p in point.selected.items()}
    most = torch.finfo(point.dtype).max
    waiting = [torch.arange(len(x), device=x.device)]
    while waiting:
        some = waiting.pop()
        with torch.enable_grad(), differentiable_kernels(point.recurrent):
            logits = point.logits(x[some], own)
            finite = torch.isfinite(logits.detach()).all(1)
            if not bool(finite.all()):
                usable[some[~finite]] = False
                waiting += [some[finite]] if bool(finite.any()) else []
                continue
            generator = torch.Generator().manual_seed(0)
            v = torch.randn(logits.shape[1], generator=generator)
            weights = 0.5 + torch.rand(len(some), generator=generator) if len(some) > 1 else torch.ones(1)
            try:
                gradients = pulled([logits], list(own.values()), [(weights[:, None] * v).to(logits)])
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                continue
        if sum(float(g.double().square().sum()) for g in gradients) < (most if len(some) == 1 else most / 16):
            continue
        if len(some) == 1:
            usable[some] = False
        else:
            waiting += list(some.tensor_split(2))
    return usable


def comparable(point: Point, x: Tensor) -> Tensor:
    """The point's own few rows, or else those of ``x``, less those that nothing can be compared on."""
    for some in (point.few, x):
        usable = None if some is None else usable_rows(point, some)
        if some is not None and usable is not None and bool(usable.any()):
            return some[usable]
    return x
