"""BatchNorm in training over a batch whose rows lie in several processes, each of which has some of them.

With the statistics of all rows of the batch, whoever holds them,

    y = (x - mean) / sqrt(variance + eps) * weight + bias

and backwards, with g = dL / dy, h = (y - bias) / weight and means over all rows of the batch,

    dL / dx = weight / sqrt(variance + eps) * (g - mean(g) - h mean(g h))

where L is the sum of what the processes take gradients of.  So a process comes to the outputs and gradients of its own
rows that one process with all rows has, to rounding, and running statistics are the same in all (Ioffe and Szegedy,
arXiv:1502.03167; statistics are put together as Chan, Golub and LeVeque do, in float64).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SharedBatchNorm(TorchFunctionMode):
    """Within it, every BatchNorm in training mode is over the rows of all processes, all of which have to be in one.

    >>> x = torch.tensor([[1.0], [3.0]])
    >>> with SharedBatchNorm(0, 1, lambda tensor: None):
    ...     torch.nn.BatchNorm1d(1, eps=0.0)(x).tolist()
    [[-1.0], [1.0]]
    """

    def __init__(self, rank: int, size: int, add_up: Callable[[Tensor], None]) -> None:
        """``add_up`` puts the sum over ``size`` processes, of which this is number ``rank``, in a tensor's place."""
        super().__init__()
        self.among = rank, size, add_up

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What ``func`` gives."""
        if func is F.batch_norm:
            return self._functional(*args, **(kwargs or {}))
        if func is torch.batch_norm:
            return self._plain(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _functional(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """``torch.nn.functional.batch_norm``, by its names."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        y, mean, variance = _Normalised.apply(input, weight, bias, eps, *self.among)
        for running, new in ((running_mean, mean), (running_var, variance)):
            if running is not None:
                running.mul_(1 - momentum).add_(new, alpha=momentum)
        return y

    def _plain(self, *args: Any, **kwargs: Any) -> Tensor:
        """``torch.batch_norm``, which has other places for the same."""
        names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
        told = dict(zip((*names, "cudnn_enabled"), args, strict=False)) | kwargs
        told.pop("cudnn_enabled", None)
        return self._functional(**told)


class _Normalised(torch.autograd.Function):
    """Rows [b, C, ...] normalised by channel, the mean [C] of the whole batch, and its variance [C] over n - 1."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, rank: int, size: int, add_up: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32  # half a precision is none for sums
        variance, mean = torch.var_mean(x.to(exact), _all_but_channels(x), correction=0)
        table = x.new_zeros(size, 2 * x.shape[1] + 1, dtype=torch.float64)  # its row: number, means, squares
        own = x.numel() // x.shape[1]
        table[rank] = torch.cat([table.new_tensor([own]), mean.double(), own * variance.double()])
        add_up(table)
        counts, means, squares = table[:, :1], table[:, 1 : 1 + x.shape[1]], table[:, 1 + x.shape[1] :]
        count = counts.sum()
        whole = (counts * means).sum(0) / count
        scatter = squares.sum(0) + (counts * (means - whole) ** 2).sum(0)
        mean, variance = whole.to(exact), (scatter / count).to(exact)
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, mean, (scatter / count + eps).rsqrt().to(exact), weight)
        ctx.count, ctx.add_up, ctx.bias = count, add_up, None if bias is None else bias.dtype
        unbiased = (scatter / (count - 1)).to(exact)
        ctx.mark_non_differentiable(mean, unbiased)
        return y, mean, unbiased

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, mean, scale, weight = ctx.saved_tensors
        spread, over = (1, -1, *(1,) * (x.ndim - 2)), _all_but_channels(x)
        g = gradients[0].to(scale.dtype)
        h = (x.to(scale.dtype) - mean.view(spread)) * scale.view(spread)
        sums = torch.stack([g.sum(over), (g * h).sum(over)])
        means = sums.to(torch.float64, copy=True)
        ctx.add_up(means)
        of_g, of_gh = (means / ctx.count).to(scale.dtype)
        scale = scale if weight is None else scale * weight
        dx = scale.view(spread) * (g - of_g.view(spread) - h * of_gh.view(spread))
        dw = None if weight is None else sums[1].to(weight.dtype)
        db = None if ctx.bias is None else sums[0].to(ctx.bias)
        return dx.to(x.dtype), dw, db, None, None, None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]
