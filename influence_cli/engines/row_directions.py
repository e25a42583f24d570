"""Directions of single rows, and scores of rows along many directions at once.

The direction of a target row v is grad l_v = J_v^T a_v with a_v = d l_v / d z_v [C]; the score of a train row i along a
direction u is < a_i, t_i > with t_i = J_i u its logit tangent.  Both begin with the same slopes a, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.engines.row_values import slopes
from influence_cli.model.losses import RowLoss
from influence_cli.model.parameters import pulled

Direction = dict[str, Tensor]  # shaped like the selected parameters, by name


def row_directions(point: Point, x: Tensor, labels: Tensor, loss: RowLoss) -> tuple[Tensor, list[Direction]]:
    """Logits [t, C] of rows, and every row's loss gradient by parameter name: a forward and a backward pass each."""
    selected = {n: p.detach().requires_grad_() for n, p in point.selected.items()}
    logits: list[Tensor] = []
    directions: list[Direction] = []
    device = torch.device("cpu") if point.device.type == "mps" else point.device  # mps has no float64
    with torch.enable_grad(), differentiable_kernels(point.recurrent):
        for row, label in zip(x.split(1), labels.split(1), strict=True):
            z = point.logits(row, selected)
            a = slopes(loss, z.detach().to(device), label.to(device)).to(z.device, z.dtype)
            gradients = pulled([z], list(selected.values()), [a])
            logits.append(z.detach())
            directions.append(dict(zip(selected, gradients, strict=True)))
    return torch.cat(logits), directions


def row_scores(loss: RowLoss, logits: Tensor, tangents: list[Tensor], of: Tensor, labels: Tensor) -> Tensor:
    """Scores [t, r] along t directions, in float64, of r rows: their places ``of`` [r] among b payloads, and labels.

    Several rows may have one payload, and other labels: logits and ``tangents`` [b, C] are of payloads.
    """
    device = torch.device("cpu") if logits.device.type == "mps" else logits.device
    a = slopes(loss, logits[of].to(device), labels.to(device))
    t = torch.stack(tangents).to(device)[:, of].double()
    return torch.einsum("rc,trc->tr", a, t)
