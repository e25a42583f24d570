"""Row gradients of embeddings and norms, and the table of all modules that have a rule.

embedding       dW_i[k] = sum over t with token_it = k of d_it
norms           dgamma_i = sum_t d_it * xhat_it,   dbeta_i = sum_t d_it
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_cli.engines.layerwise.affine import Affine, Conv
from influence_cli.engines.layerwise.protocol import Named, Pair, Rule, by_row, total


class Embedding:
    """Embeddings: the rows of the table, but not that of the padding index."""

    def __init__(self, module: nn.Embedding) -> None:
        self.shape, self.padding = module.weight.shape, module.padding_idx

    def _flat(self, a: Tensor, d: Tensor, b: int) -> tuple[Tensor, Tensor]:
        if self.padding is not None:
            d = d * (a != self.padding).unsqueeze(-1)
        return a.reshape(b, -1), d.reshape(b, -1, d.shape[-1])

    def dots(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """<g_i, u> = sum_t d_it . U[token_it], float64 [b]."""
        at, dt = self._flat(a, d, b)
        return total(F.embedding(at, u["weight"]) * dt)

    def gradients(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Named:
        """Gradients dW [b, tokens, width]."""
        at, dt = self._flat(a, d, b)
        table = dt.new_zeros(b, *self.shape)
        return {"weight": table.scatter_add_(1, at.unsqueeze(-1).expand_as(dt), dt)}

    def norms(self, calls: list[Pair], b: int, names: tuple[str, ...]) -> Tensor | None:
        """Sum over t, t' of the same token of d_t . d_t', of one call where T^2 is below the size of the table."""
        if len(calls) > 1 or (calls[0][0].numel() // b) ** 2 >= self.shape.numel():
            return None
        at, dt = self._flat(*calls[0], b)
        return total((dt @ dt.mT) * (at[:, :, None] == at[:, None, :]))

    def weighted(self, a: Tensor, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i dW_i."""
        at, dt = self._flat(a, by_row(d, c), len(c))
        return {"weight": dt.new_zeros(self.shape).index_add_(0, at.flatten(), dt.flatten(0, 1))}


class Norm:
    """Scale and shift of the normalised input h: LayerNorm, GroupNorm, and BatchNorm in evaluation mode."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.trailing = len(module.normalized_shape) if isinstance(module, nn.LayerNorm) else 0

    def xhat(self, a: Tensor) -> Tensor:
        """The normalised input, before scale and shift."""
        m = self.module
        if isinstance(m, nn.LayerNorm):
            return F.layer_norm(a, m.normalized_shape, None, None, m.eps)
        if isinstance(m, nn.GroupNorm):
            return F.group_norm(a, m.num_groups, None, None, m.eps)
        assert isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        return F.batch_norm(a, m.running_mean, m.running_var, None, None, False, 0.0, m.eps)

    def _over_positions(self, values: Tensor, b: int) -> Tensor:
        """Sums over positions [b, *parameter]: trailing dimensions of a LayerNorm, else channels in dimension 1."""
        if self.trailing:
            return values.reshape(b, -1, *values.shape[values.ndim - self.trailing :]).sum(1)
        return values.reshape(b, len(values) // b, values.shape[1], -1).sum((1, 3))

    def _spread(self, parameter: Tensor, like: Tensor) -> Tensor:
        return parameter if self.trailing else parameter.reshape(1, -1, *[1] * (like.ndim - 2))

    def dots(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """<g_i, u> = sum_t d_it . (U_gamma * xhat_it + U_beta), float64 [b]."""
        value = self.xhat(a) * self._spread(u["weight"], a) if "weight" in u else 0.0
        value = value + self._spread(u["bias"], a) if "bias" in u else value
        return total((value * d).reshape(b, -1))

    def gradients(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Named:
        """Gradients dgamma and dbeta, [b, *shape]."""
        found = {"weight": self._over_positions(d * self.xhat(a), b)} if "weight" in names else {}
        return {**found, "bias": self._over_positions(d, b)} if "bias" in names else found

    def norms(self, calls: list[Pair], b: int, names: tuple[str, ...]) -> Tensor | None:
        """None: a norm's parameters are few."""
        return None

    def weighted(self, a: Tensor, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i dgamma_i and sum_i c_i dbeta_i."""
        return {
            n: torch.einsum("b,b...->...", c.to(g.dtype), g) for n, g in self.gradients(a, d, len(c), names).items()
        }


RULES: dict[type[nn.Module], Callable[[Any], Rule]] = {
    nn.Linear: Affine,
    nn.Conv2d: Conv,
    nn.Embedding: Embedding,
    nn.LayerNorm: Norm,
    nn.GroupNorm: Norm,
    nn.BatchNorm1d: Norm,
    nn.BatchNorm2d: Norm,
    nn.BatchNorm3d: Norm,
}


def rule_of(module: nn.Module) -> Rule | None:
    """The fast rule of a module whose forward is that of its torch class; None where it has none."""
    if getattr(module, "parametrizations", None) is not None:
        return None
    if "weight" not in module._parameters:  # computed from others, as old-style weight norm does
        return None
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
        return None
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return None
    for kind, rule in RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return rule(module)
    return None
