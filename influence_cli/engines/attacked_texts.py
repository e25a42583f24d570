"""Attacked texts: a small constant vector is added to the embedding of every token.

With e_t(theta) the embedding of token t of a row, d_t its change and g_t the gradient of the row's loss in it,

    x'_t(theta) = e_t(theta) + d_t,    |d_t|_2 <= r = eps mean_t |e_t(theta_hat)|_2
    fgsm  d_t = r g_t / |g_t|
    pgd   d_t <- onto the ball of r (d_t + step mean_t |e_t(theta_hat)| g_t / |g_t|)

The text and the change d are constants; the embedding is the model's own at whatever parameters it is run.  So the
gradient of the attacked loss has a part in the embedding, and with d = 0 it is that of the loss (a constant x' would
have none, and would be foreign to a model whose embedding has moved).  The mean is over the row's own tokens, which
leaves what a row becomes to it alone; tokens that fill a batch up have d = 0 and no part in the mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from influence_cli.data.kinds.text import CHANGE, MASK
from influence_cli.engines.point import as_logits, differentiable_kernels, is_recurrent
from influence_cli.errors import ModelError
from influence_cli.maths.hashed_draws import hashed_uniform, stream_key
from influence_cli.model.examples import to_input
from influence_cli.model.named_tensors import NamedTensors

if TYPE_CHECKING:
    from influence_cli.model.losses import RowLoss
    from influence_cli.model.spec import ModelSpec
    from influence_cli.store.keys import Keys


def attack_texts(
    model: nn.Module, spec: ModelSpec, facts: dict[str, Any], decoded: Any, labels: Tensor, keys: Keys, loss: RowLoss
) -> NamedTensors:
    """Rows with the change of their embeddings [b, T, d], as they are run; ``facts`` are those of ``Attack.describe``.

    Raises:
        ModelError: the model does not say where its embedding is.
    """
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    inputs = to_input(decoded, spec, dtype)
    lengths = inputs.tensors[MASK].to(dtype)
    with torch.no_grad():
        own = embedding_of(model, spec)(inputs.tensors["input_ids"])
        mean = (own.norm(dim=2) * lengths).sum(1) / lengths.sum(1)
    radius, change = (facts["eps"] * mean)[:, None, None], torch.zeros_like(own)
    step, steps = (facts["step"], facts["steps"]) if "steps" in facts else (facts["eps"], 1)
    if facts.get("start") is not None:
        change = radius * _starts(keys, lengths, own.shape[2], facts["start"]).to(own)
    with differentiable_kernels(is_recurrent(model)):
        for _ in range(steps):
            slope = embedding_slopes(model, inputs, change, labels, loss) * lengths[:, :, None]
            change = _onto_ball(change + (step * mean)[:, None, None] * _directions(slope), radius)
    return NamedTensors({**inputs.tensors, CHANGE: change.detach()})


def embedding_of(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """The module that gives tokens their embeddings.  Raises ModelError: there is none."""
    try:
        found = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    except (AttributeError, NotImplementedError, TypeError):
        found = None
    if not isinstance(found, nn.Module):
        what = f"{spec.name} does not say where its embedding is, whose values an attack on texts changes"
        raise ModelError(what, fix="leave the objective robustness, or --attack, out")
    return found


def embedding_slopes(model: nn.Module, inputs: NamedTensors, change: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
    """The gradient of every row's loss in the change of its embeddings [b, T, d]."""
    with torch.enable_grad():
        at = change.detach().requires_grad_()
        logits = as_logits(model({**inputs.tensors, CHANGE: at}), len(labels))
        (slope,) = torch.autograd.grad(loss.rows(logits, labels).sum(), at, materialize_grads=True)
    return slope


def _directions(slope: Tensor) -> Tensor:
    """Every token's gradient over its length, 0 where it is 0; scaled first, so that no square is lost."""
    largest = slope.abs().amax(2, keepdim=True)
    some = torch.where(largest > 0, slope / largest, torch.zeros_like(slope))
    return torch.where(largest > 0, some / some.norm(dim=2, keepdim=True), some)


def _onto_ball(change: Tensor, radius: Tensor) -> Tensor:
    """Every token's change, shortened to the radius where it is longer."""
    length = change.norm(dim=2, keepdim=True)
    return torch.where(length > radius, change * (radius / length), change)


def _starts(keys: Keys, lengths: Tensor, width: int, seed: int) -> Tensor:
    """A point of the cube inside the ball of 1 for every token, drawn by the row's key: the same in every batch."""
    rows: list[Tensor] = []
    for key, count in zip(keys, lengths.sum(1).int().tolist(), strict=True):
        number = stream_key(f"{seed}:".encode() + key.tobytes(), "start")
        bits = hashed_uniform(number, count * width, lengths.device)
        drawn = (((bits.double() + 0.5) * 2.0**-31 - 1.0) * width**-0.5).view(count, width)
        rows.append(nn.functional.pad(drawn, (0, 0, 0, lengths.shape[1] - count)))
    return torch.stack(rows)
