"""The attack on a linear model: a step along the normal of the nearest boundary.

Logits are z = W x + b; ``logits`` is any function from rows x [n, ...] to z [n, C] that is of this form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from influence_cli.errors import ModelError
from influence_cli.maths.hashed_draws import hashed_uniform

AFFINE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest logit: rounding, and no curvature
Logits = Callable[[Tensor], Tensor]


def over_the_boundary(logits: Logits, x: Tensor, labels: Tensor, kappa: float, label_aware: bool, name: str) -> Tensor:
    """Rows x - kappa (z_k - z_c) / |w_k - w_c|^2 (w_k - w_c), k the predicted class and c that of the nearest boundary.

    ``label_aware`` leaves alone rows that are predicted wrong; ``name`` is the model's, for messages.

    Raises:
        ModelError: the model is not linear, or its logits do not depend on the input.
    """
    weight = _weight(logits, x, name)
    with torch.no_grad():
        z = logits(x)
        k = z.argmax(1)
        slopes = weight.flatten(1)
        distance = torch.stack([(own - slopes).norm(dim=1) for own in slopes])  # |w_k - w_c| [C, C]
        margin = z.gather(1, k[:, None]) - z
        away = margin / distance[k]
        away[distance[k] == 0] = float("inf")  # the class itself, and one with the same slope: no boundary with it
        c = away.argmin(1)
        rows = torch.arange(len(x), device=x.device)
        if not bool(away[rows, c].isfinite().all()):
            raise ModelError("the logits do not depend on the input", fix="give a trained checkpoint")
        size = kappa * margin[rows, c] / distance[k, c] ** 2
        if label_aware:
            size = size * (k == labels)
        return x - (size[:, None] * (slopes[k] - slopes[c])).view(x.shape)


def _weight(logits: Logits, x: Tensor, name: str) -> Tensor:
    """W [C, ...], after seeing on these rows and on random ones that the logits are W x + b."""
    with torch.enable_grad():
        origin = torch.zeros_like(x[:1]).requires_grad_()
        bias = logits(origin)[0]
        weight = torch.stack([torch.autograd.grad(b, origin, retain_graph=True)[0][0] for b in bias])
    with torch.no_grad():
        draws = hashed_uniform(0, 8 * x[0].numel(), x.device).to(x.dtype) * 2.0**-31 - 1.0
        probes = torch.cat([x, draws.view(8, *x.shape[1:]) * x.abs().max().clamp(min=1.0)])
        z = logits(probes)
        off = (z - bias - probes.flatten(1) @ weight.flatten(1).T).abs().max()
        if not bool(off <= AFFINE.get(x.dtype, 1e-2) * z.abs().max()):
            raise ModelError(
                f"the attack linear needs a linear model, and {name} is not",
                fix="pass --set robustness.attack=pgd (or fgsm)",
            )
    return weight.detach()
