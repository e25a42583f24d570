"""The head of a causal language model: the loss of every next token, and from these what a row's output is.

A language model of a run is called with token numbers and a mask [n, T], filled up on the right, and returns for each
row its loss and how many tokens that is the sum over, [n, 2]:

    l_i = sum_t - log p(x_i,t | x_i,<t),      t = 2 .. T_i

Inside ``by_token(model)`` it returns these terms themselves, [n, T]: that of token t in column t, 0 at the first token
and where a row is filled up.

Logits [tokens, vocabulary] are made for a block of tokens at a time: forwards they are dropped once the losses are
known, and backwards they are computed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VALUES = 1 << 22  # logits of a block of tokens
Uniform = Callable[[int], Tensor]  # so many draws in [0, 1) for every row of a batch [n, T]


class NextTokenLoss(nn.Module):
    """Linear output layer and cross-entropy in one; the weight may be that of the embedding."""

    bias: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        """``weight`` [V, d] and ``bias`` [V] are taken as they are."""
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", bias)
        self.by_token = False
        self.uniform: Uniform | None = None

    def forward(self, hidden: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
        """Losses [n, T] of targets [n, T], in nats, after hidden states [n, T, d]; 0 where ``counted`` [n, T] is 0."""
        flat, wanted = hidden.flatten(0, 1), targets.flatten()
        made = losses(flat, self.weight, self.bias, wanted).view(targets.shape)
        return made * counted.to(made.dtype)

    @torch.no_grad()
    def drawn(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """Tokens [n, T] that the model itself gives after hidden states [n, T, d], by draws in [0, 1) [n, T]."""
        flat, u = hidden.flatten(0, 1), uniform.flatten().to(hidden.device)
        found = list[Tensor]()
        for some in blocks(len(u), len(self.weight)):
            sums = logits_of(flat[some], self.weight, self.bias).double().softmax(1).cumsum(1)
            wanted = u[some].double()[:, None] * sums[:, -1:]
            found.append(torch.searchsorted(sums, wanted, right=True).squeeze(1).clamp(max=len(self.weight) - 1))
        return torch.cat(found).view(uniform.shape) if found else uniform.long()


def row_output(head: NextTokenLoss, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """What a model returns of rows: losses and numbers of tokens [n, 2], or by token [n, T].

    ``hidden`` [n, T, d] is what the head takes; ``ids`` and ``mask`` [n, T] are the model's input.
    """
    counted, before = mask[:, 1:], hidden[:, :-1]
    targets = ids[:, 1:] if head.uniform is None else head.drawn(before, head.uniform(before.shape[1]))
    made = head(before, targets, counted)
    if head.by_token:
        return F.pad(made, (1, 0))
    return torch.stack([made.sum(1), counted.sum(1).to(made.dtype)], 1)


@contextlib.contextmanager
def by_token(model: nn.Module) -> Iterator[None]:
    """Within, a language model returns the loss of every token [n, T], and not of every row."""
    head = head_of(model)
    head.by_token = True
    try:
        yield
    finally:
        head.by_token = False


@contextlib.contextmanager
def drawing(model: nn.Module, uniform: Uniform) -> Iterator[None]:
    """Within, the losses are of tokens that the model itself gives, each after the row's own earlier ones.

    Their gradients have the Fisher for their second moment.
    """
    head = head_of(model)
    head.uniform = uniform
    try:
        yield
    finally:
        head.uniform = None


def head_of(model: nn.Module) -> NextTokenLoss:
    """The head of a language model."""
    return next(module for module in model.modules() if isinstance(module, NextTokenLoss))


def losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """- log softmax(W h + b) at the target, for hidden states [N, d] and targets [N]; float32 at least."""
    if torch.is_grad_enabled():
        return _Recomputed.apply(hidden, weight, bias, targets)  # pyright: ignore[reportReturnType]
    return _forward(hidden, weight, bias, targets)  # nothing is kept, and forward-mode derivatives pass through


def blocks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Slices of so many tokens that their logits are at most ``VALUES``."""
    step = max(1, VALUES // vocabulary)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits [b, V] of a block, in float32 at least."""
    made = F.linear(hidden, weight, bias)
    return made.float() if made.dtype in (torch.bfloat16, torch.float16) else made


def _forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    parts = list[Tensor]()
    for some in blocks(len(targets), len(weight)):
        z = logits_of(hidden[some], weight, bias)
        parts.append(torch.logsumexp(z, 1) - z.gather(1, targets[some][:, None]).squeeze(1))
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def slopes(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, along: Tensor) -> Tensor:
    """The gradient of ``along`` [b] times losses [b] in the logits of a block, [b, V]: along (p - e_y)."""
    p = logits_of(hidden, weight, bias).softmax(1)
    one = torch.ones_like(targets, dtype=p.dtype)[:, None]
    return (p.scatter_add(1, targets[:, None], -one) * along[:, None]).to(hidden.dtype)


class _Recomputed(torch.autograd.Function):
    """The same losses, of whose logits nothing is kept for the backward pass, which computes them block by block."""

    generate_vmap_rule = True

    @staticmethod
    def forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Losses [N]."""
        return _forward(hidden, weight, bias, targets)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """The inputs are all that is kept."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, along: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients in hidden states, weight and bias; differentiable once more."""
        hidden, weight, bias, targets = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        into, dw, db = list[Tensor](), None, None
        for some in blocks(len(targets), len(weight)):
            d = slopes(hidden[some], weight, bias, targets[some], along[some])
            if wanted[0]:
                into.append(d @ weight)
            if wanted[1]:
                dw = d.mT @ hidden[some] if dw is None else dw + d.mT @ hidden[some]
            if bias is not None and wanted[2]:
                db = d.sum(0) if db is None else db + d.sum(0)
        return torch.cat(into) if wanted[0] else None, dw, db, None
